//! Things that are done for many pods, of which none may hold up the others.

use std::{future::ready, time::Duration};

use futures::{StreamExt as _, stream};
use tokio::{task::JoinHandle, time::timeout};
use tracing::error;

/// How many are done at once.
pub(super) const AT_ONCE: usize = 8;
/// How long others wait for one.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// Does them, `at_once` at a time. What takes longer than `limit` goes on by itself, and is the answer.
pub(super) async fn in_time<K, F>(
    all: impl IntoIterator<Item = (K, F)>,
    at_once: usize,
    limit: Duration,
) -> Vec<(K, JoinHandle<()>)>
where
    F: Future<Output = ()> + Send + 'static,
{
    let each = all.into_iter().map(|(key, work)| async move {
        let mut task = tokio::spawn(work);
        match timeout(limit, &mut task).await {
            Ok(ended) => {
                if let Err(e) = ended {
                    error!(error = %e, "what is done inside a pod was cut short; it is tried again later");
                }
                None
            }
            Err(_) => Some((key, task)),
        }
    });
    stream::iter(each).buffer_unordered(at_once).filter_map(ready).collect().await
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Instant,
    };

    use super::*;

    #[tokio::test]
    async fn one_that_hangs_holds_nobody_up_for_long() {
        let done = Arc::new(AtomicUsize::new(0));
        let work = |n: usize| {
            let done = done.clone();
            let work = async move {
                if n % 10 == 3 {
                    std::future::pending::<()>().await;
                }
                done.fetch_add(1, Ordering::Relaxed);
            };
            (n, work)
        };
        let since = Instant::now();
        let late = in_time((0..40).map(work), 4, Duration::from_millis(200)).await;
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        let mut names: Vec<usize> = late.iter().map(|(n, _)| *n).collect();
        names.sort_unstable();
        assert_eq!((names, done.load(Ordering::Relaxed)), (vec![3, 13, 23, 33], 36));
        assert!(late.iter().all(|(_, task)| !task.is_finished()), "it goes on");
    }
}
