//! Only one agent owns a node's datapath: a lock on the directory of the pins.
//!
//! A bpf file system holds no files, but its directories can be locked. Each mount of one is another, so nodes that
//! share a machine do not meet. The kernel gives the lock back when its holder ends, however that ends.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::DatapathError;

/// How often the lock is tried.
const TRY: Duration = Duration::from_millis(50);

/// Held as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _dir: File,
}

impl Lock {
    /// Makes the directory when it is missing, and takes the lock, waiting for it up to `patience`: an agent that
    /// is being replaced may take a moment to end.
    pub(super) fn take(root: &Path, patience: Duration) -> Result<Self, DatapathError> {
        let end = Instant::now() + patience;
        loop {
            let failed = |action| move |source| DatapathError::Pins { action, path: root.to_owned(), source };
            fs::create_dir_all(root).map_err(failed("make"))?;
            let dir = match File::open(root) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                dir => dir.map_err(failed("open"))?,
            };
            match dir.try_lock() {
                // The one before may have removed the directory at its end.
                Ok(()) if is_at(&dir, root) => return Ok(Self { _dir: dir }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(TRY),
                Err(TryLockError::WouldBlock) => return Err(DatapathError::Owned { path: root.to_owned() }),
                Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
            }
        }
    }
}

fn is_at(dir: &File, path: &Path) -> bool {
    match (dir.metadata(), fs::metadata(path)) {
        (Ok(here), Ok(there)) => (here.dev(), here.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("coil");
        let first = Lock::take(&root, Duration::ZERO).unwrap();
        let refused = Lock::take(&root, Duration::from_millis(100)).unwrap_err();
        assert!(refused.to_string().contains("another coild"), "{refused}");
        // One that waits for the first to end gets it then, also when the directory went with the first.
        let next = thread::spawn({
            let root = root.clone();
            move || Lock::take(&root, Duration::from_secs(60))
        });
        fs::remove_dir(&root).unwrap();
        drop(first);
        let next = next.join().unwrap().unwrap();
        assert!(root.is_dir());
        drop(next);
    }
}
