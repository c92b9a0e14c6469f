//! Network namespaces: open one by path, make a new one, run code inside one.
//!
//! A thread has a network namespace of its own, so code runs inside another one on a
//! thread that is made for it ([`NetNs::run`]): nothing can be left behind in a
//! thread that a runtime uses for something else. A socket keeps the namespace
//! it was made in, so `run` is also how an async program gets its sockets: make the
//! socket inside, use it outside.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// Runs code inside a new namespace without a name, on a thread of its own, and waits for it. The namespace goes with the
/// thread, and with what was made in it.
///
/// # Errors
/// When this process may not make namespaces.
pub fn in_new<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_own_thread(|| unshare(CloneFlags::CLONE_NEWNET).map(|()| work()))
        .and_then(|r| r.map_err(io::Error::from))
}

/// A handle on a network namespace; it lives at least as long as the handle.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

/// An operation on a namespace failed.
#[derive(Debug, thiserror::Error)]
#[error("network namespace {}: cannot {action}", path.display())]
pub struct NetNsError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

impl NetNsError {
    /// Whether the reason is that there is no such namespace (any more).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        // A namespace file whose mount is gone is an ordinary empty file: setns says EINVAL.
        self.source.kind() == io::ErrorKind::NotFound || self.source.raw_os_error() == Some(nix::libc::EINVAL)
    }
}

impl NetNs {
    /// Opens a namespace by the path of its file.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, NetNsError> {
        let path = path.into();
        match File::open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(NetNsError { path, action: "open it", source }),
        }
    }

    /// The calling thread's own namespace.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Makes a new namespace, kept by a mount at `path`, as `ip netns add` does.
    ///
    /// # Errors
    /// When the file exists or the mount fails.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, NetNsError> {
        let path = path.into();
        let failed = |action, source| NetNsError { path: path.clone(), action, source };
        File::create_new(&path).map_err(|e| failed("make its file", e))?;
        let mounted = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        if let Err(e) = mounted.and_then(|r| r.map_err(io::Error::from)) {
            let _ = std::fs::remove_file(&path);
            return Err(failed("make it", e));
        }
        Self::open(path)
    }

    /// Removes the mount and file that [`NetNs::create`] made. The namespace goes with its last user.
    ///
    /// # Errors
    /// When the mount cannot be removed.
    pub fn remove(path: &Path) -> Result<(), NetNsError> {
        let failed = |action, source| NetNsError { path: path.to_owned(), action, source };
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(nix::errno::Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(failed("unmount it", e.into())),
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove its file", e)),
            _ => Ok(()),
        }
    }

    /// Runs code inside the namespace, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        on_own_thread(|| setns(&self.file, CloneFlags::CLONE_NEWNET).map(|()| work()))
            .and_then(|r| r.map_err(io::Error::from))
            .map_err(|source| NetNsError { path: self.path.clone(), action: "enter it", source })
    }

    /// A second handle on the same namespace.
    ///
    /// # Errors
    /// When this process may not open more files.
    pub fn try_clone(&self) -> Result<Self, NetNsError> {
        let failed = |source| NetNsError { path: self.path.clone(), action: "open it once more", source };
        Ok(Self { file: self.file.try_clone().map_err(failed)?, path: self.path.clone() })
    }

    /// Where the handle was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let handle = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        handle.join().or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> Vec<String> {
        nix::net::if_::if_nameindex()
            .unwrap()
            .iter()
            .map(|i| i.name().to_string_lossy().into_owned())
            // Every namespace has these once the modules ipip and ip6_tunnel are loaded
            // (net.core.fb_tunnels_only_for_init_net).
            .filter(|name| !["tunl0", "ip6tnl0"].contains(&name.as_str()))
            .collect()
    }

    /// Needs root.
    #[test]
    fn a_new_namespace_has_only_lo_and_leaves_nothing() {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let dir = std::env::temp_dir().join(format!("coil-netns-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("one");
        let before = interfaces();
        let ns = NetNs::create(&path).unwrap();
        assert_eq!(ns.run(interfaces).unwrap(), ["lo"]);
        assert_eq!(interfaces(), before, "the caller's own namespace is untouched");
        assert!(NetNs::create(&path).unwrap_err().to_string().contains("one"));
        NetNs::remove(&path).unwrap();
        NetNs::remove(&path).unwrap();
        assert!(!path.exists());
        assert!(NetNs::open(&path).unwrap_err().is_gone());
        std::fs::remove_dir(&dir).unwrap();
    }

    /// Needs root.
    #[test]
    fn a_nameless_namespace_is_another_one() {
        let before = interfaces();
        assert_eq!(in_new(interfaces).unwrap(), ["lo"]);
        let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(in_new(own).unwrap(), own());
        assert_eq!(interfaces(), before, "the caller's own namespace is untouched");
    }

    #[test]
    fn a_file_that_is_no_namespace_is_gone() {
        let ns = NetNs::open("/etc/passwd").unwrap();
        assert!(ns.run(|| ()).unwrap_err().is_gone());
    }
}
