//! The keeper: the one process of a lab that lives outside of it.
//!
//! ```text
//! up, demo, a test ──pipe──▶ keeper ──▶ init (process 1 of a new PID namespace) ──▶ supervisor ──▶ all else
//!   (the owner)    ◀─stdout─────────────────────────────────────────────────────────┘
//! ```
//!
//! Everything of a lab lives in the PID namespace, and its namespaces, mounts and pins in the
//! supervisor's mount namespace: when init dies, the kernel ends and removes all of it. The keeper
//! has three things to do: end init when it is told to or when the owner of a lab that was
//! not let go is gone, wait, and remove the state directory. Init dies with the keeper.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::{Pid, setsid},
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, signal::unix::SignalKind};

use crate::{
    config::{self, Options},
    programs,
    state::{LabFile, StateDir},
};

/// What an owner writes to let a lab live on without it.
const LET_GO: u8 = b'.';
/// The supervisor's last word before the lab is ready.
pub(crate) const READY: &str = "ready";
/// Begins the supervisor's last word when it will not be.
pub(crate) const FAILED: &str = "failed: ";

/// The owner's end of a running lab. Dropped or killed with its process, the lab ends.
#[derive(Debug)]
pub(crate) struct Owned {
    keeper: Child,
    pipe: Option<ChildStdin>,
}

/// Starts a lab and waits until it is ready; `say` is told how far it is.
pub(crate) fn start(program: &Path, options: &Options, mut say: impl FnMut(&str)) -> Result<Owned> {
    config::check_name(&options.name)?;
    let mut command = Command::new(program);
    command.arg("keeper").arg(serde_json::to_string(options)?).stdin(Stdio::piped()).stdout(Stdio::piped());
    // Whoever reads the owner's complaints must not wait for a lab that lives on.
    let logs = programs::logs_beside(program, &options.name);
    command.stderr(programs::append(&logs.with_file_name("keeper.log"))?);
    let detach = || {
        // A terminal's Ctrl-C ends the owner and leaves the keeper to clean up.
        setsid()?;
        // A lab that lives on must not keep open what the owner's caller has open.
        let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
        // SAFETY: marks descriptors to be closed by exec; 0 to 2 are the keeper's own.
        Errno::result(unsafe { libc::close_range(3, libc::c_uint::MAX, flags) })?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(detach) };
    let mut keeper = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let (Some(pipe), Some(progress)) = (keeper.stdin.take(), keeper.stdout.take()) else {
        bail!("the keeper has no pipes");
    };
    let owned = Owned { keeper, pipe: Some(pipe) };
    for line in BufReader::new(progress).lines() {
        let line = line.context("cannot read the keeper's progress")?;
        if line == READY {
            return Ok(owned);
        }
        match line.strip_prefix(FAILED) {
            Some(reason) => {
                owned.end()?;
                bail!("{reason}");
            }
            None => say(&line),
        }
    }
    let _ = owned.end();
    bail!("the lab ended while it was starting; see {}", logs.display())
}

impl Owned {
    /// Lets the lab live on.
    pub(crate) fn let_go(mut self) -> Result<()> {
        if let Some(mut pipe) = self.pipe.take() {
            pipe.write_all(&[LET_GO]).context("the lab has ended")?;
        }
        Ok(())
    }

    /// Process id of the keeper.
    pub(crate) fn keeper_pid(&self) -> u32 {
        self.keeper.id()
    }

    /// Ends the lab and waits until nothing is left.
    pub(crate) fn end(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        drop(self.pipe.take());
        self.keeper.wait().context("cannot wait for the keeper")?;
        Ok(())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.pipe.is_some() {
            let _ = self.finish();
        }
    }
}

/// The keeper's main function.
pub(crate) fn main(options: &str) -> Result<()> {
    let options: Options = serde_json::from_str(options).context("the keeper's argument is no lab")?;
    let state = StateDir::of(&options.name);
    let (_lock, stale) = state.claim(&options.name).inspect_err(|e| say(&format!("{FAILED}{e:#}")))?;
    if stale {
        say(&format!("taking over what a crashed lab {:?} left behind", options.name));
    }
    let logs = programs::logs_dir(&options.name)?;
    let _ = std::fs::remove_dir_all(&logs);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(keep(&options, &state, &logs));
    let ended = ended.inspect_err(|e| say(&format!("{FAILED}{e:#}")));
    state.remove()?;
    ended
}

/// Tells the owner, who may be gone or not listening any more.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn keep(options: &Options, state: &StateDir, logs: &Path) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    let mut owner =
        pipe::Receiver::from_owned_fd(std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned()?)
            .context("standard input is not the owner's pipe")?;
    let mut init = spawn_init(options, logs)?;
    let pid = init.id().and_then(|id| i32::try_from(id).ok()).context("init ended at once")?;
    state.write_lab(&LabFile {
        options: options.clone(),
        init: pid,
        keeper: std::process::id().cast_signed(),
        logs: logs.to_owned(),
    })?;
    let mut let_go = false;
    loop {
        let mut byte = [0];
        tokio::select! {
            read = owner.read(&mut byte), if !let_go => match read {
                Ok(1) if byte[0] == LET_GO => let_go = true,
                _ => break,
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            status = init.wait() => {
                let status = status.context("cannot wait for init")?;
                bail!("the lab's supervisor ended ({}); see {}", describe(status), logs.display());
            }
        }
    }
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    init.wait().await.context("cannot wait for init")?;
    Ok(())
}

fn describe(status: std::process::ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    }
}

fn spawn_init(options: &Options, logs: &Path) -> Result<tokio::process::Child> {
    std::fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let log = logs.join("supervisor.log");
    let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    unshare(CloneFlags::CLONE_NEWPID).context("cannot make a PID namespace")?;
    let mut command = Command::new(own_program()?);
    command.arg("init").arg(serde_json::to_string(options)?);
    command.stdin(Stdio::null()).stderr(log);
    // SAFETY: between fork and exec the closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
    tokio::process::Command::from(command).spawn().context("cannot start the lab's init")
}

/// The running program: the lab starts itself in several roles.
pub(crate) fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the running program")
}
