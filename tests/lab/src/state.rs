//! A lab's directory on the host: what the other verbs know about a running lab.
//!
//! ```text
//! /run/coil-lab/NAME/lock           locked by the lab's keeper as long as the lab lives
//!                    lab.json       options, logs, the process id of the lab's init
//!                    places.json    namespaces of nodes, control and world
//!                    kubeconfig     for kubectl on the host
//!                    inside/        those of the API server's users, for programs inside the lab
//!                    pods/NS/POD    namespaces of a pod, as JSON
//!                    programs/PLACE/PROGRAM   process id inside the lab
//!                    builds/PLACE   link to the folder of another build's programs, which the place runs
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{config::Options, place::Place};

const ROOT: &str = "/run/coil-lab";
#[expect(clippy::cast_possible_truncation, reason = "the constants of a 16-bit field")]
const WRITE_LOCK: i16 = libc::F_WRLCK as i16;
#[expect(clippy::cast_possible_truncation, reason = "the constants of a 16-bit field")]
const FROM_START: i16 = libc::SEEK_SET as i16;

/// The API server's user that may do everything.
pub(crate) const ADMIN: &str = "admin";

/// The API server's user that a node's kubelet is.
pub(crate) fn node_user(node: &str) -> String {
    format!("system:node:{node}")
}

/// What the keeper writes down when the lab's init runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LabFile {
    pub(crate) options: Options,
    /// Process id of the lab's init, as the host sees it.
    pub(crate) init: i32,
    /// Process id of the keeper.
    pub(crate) keeper: i32,
    pub(crate) logs: PathBuf,
}

/// The namespaces of everything that is no pod.
pub(crate) type Places = BTreeMap<String, Place>;

/// The directory of one lab.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    pub(crate) fn of(name: &str) -> Self {
        Self { path: Path::new(ROOT).join(name) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    /// Kubeconfig of a user of the API server, for programs that run inside the lab.
    pub(crate) fn inner_kubeconfig(&self, user: &str) -> PathBuf {
        self.inside().join(format!("{user}.kubeconfig"))
    }

    pub(crate) fn inside(&self) -> PathBuf {
        self.path.join("inside")
    }

    /// Mount points of the network namespaces; mounted only inside the lab.
    pub(crate) fn netns(&self) -> PathBuf {
        self.path.join("netns")
    }

    pub(crate) fn pod_file(&self, namespace: &str, pod: &str) -> PathBuf {
        self.path.join("pods").join(namespace).join(pod)
    }

    pub(crate) fn program_file(&self, place: &str, program: &str) -> PathBuf {
        self.path.join("programs").join(place).join(program)
    }

    /// The folder of another build's programs, while a place runs these.
    pub(crate) fn other_build(&self, place: &str) -> Option<PathBuf> {
        fs::read_link(self.path.join("builds").join(place)).ok()
    }

    /// Makes a place run another build's programs when they are started next; none for the lab's own.
    pub(crate) fn set_other_build(&self, place: &str, other: Option<&Path>) -> Result<()> {
        let link = self.path.join("builds").join(place);
        let describe = || format!("cannot set {}", link.display());
        let Some(other) = other else { return fs::remove_file(&link).with_context(describe) };
        fs::create_dir_all(self.path.join("builds")).with_context(describe)?;
        std::os::unix::fs::symlink(other, &link).with_context(describe)
    }

    /// Takes the directory for a new lab. `Ok(true)`: remains of a crashed one were taken over.
    pub(crate) fn claim(&self, name: &str) -> Result<(File, bool)> {
        let stale = self.path.exists();
        fs::create_dir_all(&self.path).with_context(|| format!("cannot make {}", self.path.display()))?;
        let path = self.path.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => {
                bail!("lab {name:?} is running: end it with `lab down --name {name}`, or give another --name")
            }
            Err(e) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
        for entry in fs::read_dir(&self.path)?.flatten().filter(|e| e.file_name() != "lock") {
            let path = entry.path();
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok((file, stale))
    }

    /// Whether a keeper holds the lock.
    pub(crate) fn is_held(&self) -> bool {
        self.lock().is_some_and(|lock| lock.is_held())
    }

    /// The lock, to look at also after the directory is gone.
    pub(crate) fn lock(&self) -> Option<Lock> {
        File::open(self.path.join("lock")).ok().map(Lock)
    }

    /// Removes the directory, and the parent with the last lab.
    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => {
                let _ = fs::remove_dir(ROOT); // fails while another lab is there
                Ok(())
            }
        }
    }

    pub(crate) fn lab(&self, name: &str) -> Result<LabFile> {
        if !self.is_held() {
            bail!("no lab {name:?} is running: start it with `lab up --name {name}`");
        }
        read(&self.path.join("lab.json"))
    }

    pub(crate) fn write_lab(&self, lab: &LabFile) -> Result<()> {
        write(&self.path.join("lab.json"), lab)
    }

    pub(crate) fn places(&self) -> Result<Places> {
        read(&self.path.join("places.json"))
    }

    pub(crate) fn write_places(&self, places: &Places) -> Result<()> {
        write(&self.path.join("places.json"), places)
    }
}

/// The lock of a lab: held until its keeper has removed all else.
pub(crate) struct Lock(File);

impl Lock {
    /// Only asks: to take the lock, even for a moment, would be in the way of a lab that starts.
    pub(crate) fn is_held(&self) -> bool {
        let mut lock = whole_file();
        fcntl(&self.0, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
    }
}

/// An exclusive lock of a whole file, held by its open description: it ends with the process.
fn whole_file() -> libc::flock {
    libc::flock { l_type: WRITE_LOCK, l_whence: FROM_START, l_start: 0, l_len: 0, l_pid: 0 }
}

/// The labs that have a directory, with whether each is alive.
pub(crate) fn all() -> Vec<(String, bool)> {
    let mut names: Vec<String> = fs::read_dir(ROOT)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), StateDir::of(&name).is_held())).collect()
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Writes a document in one step: a reader sees the old one or the new one.
pub(crate) fn write<T: Serialize>(path: &Path, document: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(document)?;
    replace(path, &text)
}

/// As [`write()`], for text.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let describe = || format!("cannot write {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(describe)?;
    }
    let new = path.with_added_extension("new");
    fs::write(&new, text).with_context(describe)?;
    fs::rename(&new, path).with_context(describe)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A child of another test that has just been forked has the lock's descriptor, too, until it runs its program.
    fn let_go(lock: &Lock) {
        let end = Instant::now() + Duration::from_secs(60);
        while lock.is_held() {
            assert!(Instant::now() < end, "still held");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_name_is_taken_once_and_asking_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir { path: dir.path().join("x") };
        let (lock, stale) = state.claim("x").unwrap();
        assert!(!stale && state.is_held());
        assert!(state.claim("x").unwrap_err().to_string().contains("is running"));
        let seen = state.lock().unwrap();
        state.remove().unwrap();
        assert!(!state.is_held() && seen.is_held(), "held to the end of its keeper");
        drop(lock);
        let_go(&seen);
        drop(state.claim("x").unwrap());
        let_go(&state.lock().unwrap());
        let _asked = File::open(state.path().join("lock")).unwrap();
        let (_lock, stale) = state.claim("x").unwrap();
        assert!(stale);
    }
}
