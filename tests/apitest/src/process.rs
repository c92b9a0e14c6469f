//! Child processes that cannot outlive this one.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::Error;

/// How much of a log an error shows.
const LOG_TAIL: usize = 2000;

/// A running program. Dropped, it is killed and waited for.
#[derive(Debug)]
pub(crate) struct Process {
    program: &'static str,
    log: PathBuf,
    /// Dropping it tells the thread to end the program.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a program; its output goes into a file.
    pub(crate) fn start(
        program: &'static str,
        path: &Path,
        args: &[String],
        log: PathBuf,
    ) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Program { program, why: error.to_string() };
        let output = File::create(&log).map_err(|error| failed(&error))?;
        let mut command = Command::new(path);
        command.args(args).stdin(Stdio::null());
        command.stdout(output.try_clone().map_err(|error| failed(&error))?).stderr(output);
        // SAFETY: between fork and exec the closure makes one system call, and allocates nothing.
        unsafe { command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
        let (started, wait) = mpsc::channel();
        let (stop, end) = mpsc::channel::<()>();
        // The kernel ends the child with the thread that made it: one that lasts as long.
        let thread = std::thread::spawn(move || {
            let child = command.spawn();
            let failure = child.as_ref().err().map(ToString::to_string);
            let _ = started.send(failure);
            if let Ok(child) = child {
                keep(child, &end);
            }
        });
        let this = Self { program, log, stop: Some(stop), thread: Some(thread) };
        match wait.recv() {
            Ok(None) => Ok(this),
            Ok(Some(why)) => {
                Err(Error::Program { program, why: format!("starting {}: {why}", path.display()) })
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Whether the program has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The error of a program that does not do what it should, with the end of its log.
    pub(crate) fn failure(&self, what: &str) -> Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_TAIL);
        let from = (from..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
        Error::Program { program: self.program, why: format!("{what}; its log ends: {}", &log[from..]) }
    }
}

/// Waits until told to end the child, or it ends by itself.
fn keep(mut child: Child, end: &mpsc::Receiver<()>) {
    loop {
        match end.recv_timeout(std::time::Duration::from_millis(100)) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                    return;
                }
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
