//! Waiting for conditions, with a bound.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{self, Instant};

const POLL: Duration = Duration::from_millis(300);

/// What is looked at: there, or why not.
pub(crate) type Seen<T> = Result<std::result::Result<T, String>>;

/// Looks again and again; fails with what was seen last.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Seen<T>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match look().await? {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() > end => bail!("not within {} s: {what}; {seen}", limit.as_secs()),
            Err(_) => time::sleep(POLL).await,
        }
    }
}
