//! A place in the lab: a network namespace together with a mount namespace.

use std::{
    ffi::OsStr,
    fs::File,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use serde::{Deserialize, Serialize};

/// Where the namespaces of a place are found, seen from inside the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) net: PathBuf,
    pub(crate) mnt: PathBuf,
}

/// A place whose namespaces are held open.
#[derive(Debug, Clone)]
pub(crate) struct OpenPlace {
    net: Arc<File>,
    mnt: Arc<File>,
}

impl Place {
    pub(crate) fn open(&self) -> Result<OpenPlace> {
        Ok(OpenPlace { net: Arc::new(open(&self.net)?), mnt: Arc::new(open(&self.mnt)?) })
    }
}

pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open the namespace {}", path.display()))
}

impl OpenPlace {
    /// The caller's own namespaces.
    pub(crate) fn own() -> Result<Self> {
        let ns = |kind| open(Path::new(&format!("/proc/thread-self/ns/{kind}"))).map(Arc::new);
        Ok(Self { net: ns("net")?, mnt: ns("mnt")? })
    }

    /// The network namespace of `net` with this place's files.
    pub(crate) fn with_net(&self, net: File) -> Self {
        Self { net: Arc::new(net), mnt: self.mnt.clone() }
    }

    /// How another process of the lab finds this place, as long as this process holds it.
    pub(crate) fn published(&self) -> Place {
        use std::os::fd::AsRawFd as _;
        let path =
            |file: &File| PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        Place { net: path(&self.net), mnt: path(&self.mnt) }
    }

    /// A command that runs in this place.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.prepare(&mut command);
        command
    }

    /// Makes a command run in this place.
    pub(crate) fn prepare(&self, command: &mut Command) {
        let place = self.clone();
        let enter = move || place.enter().map_err(Into::into);
        // SAFETY: between fork and exec the closure makes two setns calls on descriptors that it
        // keeps open itself; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(enter) };
    }

    /// Moves the calling thread, which must share its file-system context with no other.
    pub(crate) fn enter(&self) -> nix::Result<()> {
        // The network first: entering another mount namespace does not close descriptors.
        setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET)?;
        setns(self.mnt.as_fd(), CloneFlags::CLONE_NEWNS)
    }

    /// Runs code in this place, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            self.enter().context("cannot enter the namespaces")?;
            work()
        })
    }

    /// A copy of this place with a mount namespace of its own, furnished by `furnish`.
    pub(crate) fn with_own_mounts(&self, furnish: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        let mnt = on_own_thread(|| {
            self.enter().context("cannot enter the namespaces")?;
            unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
            keep_mounts_private()?;
            furnish()?;
            open(Path::new("/proc/thread-self/ns/mnt"))
        })?;
        Ok(Self { net: self.net.clone(), mnt: Arc::new(mnt) })
    }
}

/// Cuts the caller's mount namespace off from the one it was copied from.
pub(crate) fn keep_mounts_private() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make the mounts private")
}

/// Mounts a file system that needs no device.
pub(crate) fn mount_fs(kind: &str, target: &Path, options: Option<&str>) -> Result<()> {
    std::fs::create_dir_all(target).with_context(|| format!("cannot make {}", target.display()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(kind), target, Some(kind), flags, options)
        .with_context(|| format!("cannot mount {kind} on {}", target.display()))
}

/// Makes a directory or file appear at another path too.
pub(crate) fn bind(source: &Path, target: &Path) -> Result<()> {
    std::fs::create_dir_all(target).with_context(|| format!("cannot make {}", target.display()))?;
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("cannot mount {} on {}", source.display(), target.display()))
}

/// A thread shares its root and working directory with its process; a mount namespace can be
/// entered only by a thread that does not.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let handle = std::thread::Builder::new()
            .name("place".into())
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_FS).context("cannot leave the shared file-system context")?;
                work()
            })
            .context("cannot start a thread")?;
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
