//! Process 1 of a lab: starts the supervisor, and waits for whatever is left to it.
//!
//! It is apart from the supervisor because process 1 is handed every orphan of the lab, and a
//! program that waits for its own children must not take those of others.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::wait::{WaitStatus, wait},
    unistd::Pid,
};

use crate::{keeper, place};

/// Init's main function. When it returns, the kernel ends every process of the lab.
pub(crate) fn main(options: &str) -> Result<()> {
    if std::process::id() != 1 {
        bail!("this is the lab's own command: use `up`");
    }
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    place::keep_mounts_private()?;
    // /proc has to show the processes of this PID namespace.
    mount(Some("proc"), Path::new("/proc"), Some("proc"), MsFlags::empty(), None::<&str>)
        .context("cannot mount /proc")?;
    let supervisor = Command::new(keeper::own_program()?)
        .arg("supervisor")
        .arg(options)
        .spawn()
        .context("cannot start the supervisor")?;
    let supervisor = Pid::from_raw(supervisor.id().cast_signed());
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, status)) if pid == supervisor => {
                bail!("the supervisor exited with {status}")
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == supervisor => {
                bail!("the supervisor got {signal}")
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => bail!("cannot wait for children: {e}"),
        }
    }
}
