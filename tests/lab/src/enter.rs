//! Commands of the host that run inside a lab: `exec`, `node`, `world`.

use std::{
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl, signal::Signal},
};

use crate::{
    place::{self, Place},
    programs,
    state::{self, StateDir},
};

/// Where a command runs.
#[derive(Debug, Clone)]
pub(crate) enum Where {
    /// A node, control or the world.
    Member(String),
    /// A pod.
    Pod { namespace: String, name: String },
}

impl Where {
    /// Reads `NAMESPACE/POD`.
    pub(crate) fn pod(text: &str) -> Result<Self> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => bail!("{text:?}: write NAMESPACE/POD"),
        }
    }

    fn place(&self, lab: &str, state: &StateDir) -> Result<Place> {
        match self {
            Self::Member(name) => {
                let mut places = state.places()?;
                let known = places.keys().cloned().collect::<Vec<_>>().join(", ");
                places.remove(name).with_context(|| format!("lab {lab:?} has no {name:?}, but {known}"))
            }
            Self::Pod { namespace, name } => {
                let path = state.pod_file(namespace, name);
                if !path.exists() {
                    bail!(
                        "pod {namespace}/{name} has no sandbox in lab {lab:?}; see `kubectl describe pod -n {namespace} {name}`"
                    );
                }
                state::read(&path)
            }
        }
    }
}

/// Runs a command inside a lab and waits for it. The process must have one thread only, and is
/// in the lab's namespaces afterwards.
pub(crate) fn run(lab: &str, place: &Where, command: &[String]) -> Result<ExitStatus> {
    let state = StateDir::of(lab);
    let running = state.lab(lab)?;
    let place = place.place(lab, &state)?;
    let namespace = |kind: &str| place::open(&PathBuf::from(format!("/proc/{}/ns/{kind}", running.init)));
    let (pid, mnt) = (namespace("pid")?, namespace("mnt")?);
    // Found by /proc, which does not know this process once the mounts are the lab's.
    let path = programs::search_path()?;
    // Children, not this process, will be in the PID namespace.
    setns(&pid, CloneFlags::CLONE_NEWPID).context("cannot enter the lab's PID namespace")?;
    setns(&mnt, CloneFlags::CLONE_NEWNS).context("cannot enter the lab's mount namespace")?;
    let (program, args) = command.split_first().context("no command")?;
    let mut command: Command = place.open()?.command(program);
    command.args(args).env("PATH", path).env("COIL_LAB", lab);
    // The files are the machine's own, so a lab's command may well start where its caller is.
    if let Ok(cwd) = std::env::current_dir() {
        command.current_dir(if cwd.starts_with("/run") { Path::new("/") } else { &cwd });
    }
    // SAFETY: between fork and exec the closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
    command.status().with_context(|| format!("cannot run {program:?}"))
}

/// The exit code that a shell would show.
pub(crate) fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_written_with_their_namespace() {
        assert!(
            matches!(Where::pod("a/b").unwrap(), Where::Pod { namespace, name } if namespace == "a" && name == "b")
        );
        for bad in ["a", "/b", "a/", "a/b/c", ""] {
            assert!(Where::pod(bad).unwrap_err().to_string().contains("NAMESPACE/POD"), "{bad}");
        }
    }
}
