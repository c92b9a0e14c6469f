//! Ctrl-C and SIGTERM of a command that owns a lab.

use std::{
    process::exit,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::state::StateDir;

/// What a shell shows for a command that Ctrl-C ended.
const INTERRUPTED: i32 = 130;
/// Set when a signal came: from then on the process ends by it, whatever its work comes to.
static CAME: AtomicBool = AtomicBool::new(false);
const POLL: Duration = Duration::from_millis(20);

/// From now on a signal ends the lab of this name before it ends the process. Without this the lab
/// ends too, only after the prompt is back.
pub(crate) fn end_lab_first(name: &str) -> Result<()> {
    let state = StateDir::of(name);
    let name = name.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        CAME.store(true, Ordering::Relaxed);
        eprintln!("interrupted: ending lab {name:?}");
        // Not yet there, or gone: the keeper sees the end of this process.
        if let (Some(lock), Ok(lab)) = (state.lock(), state.lab(&name))
            && kill(Pid::from_raw(lab.keeper), Signal::SIGTERM).is_ok()
        {
            while lock.is_held() {
                thread::sleep(POLL);
            }
        }
        exit(INTERRUPTED);
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// Does not return once a signal came: the lab is being ended, and its end is what the work stumbles over.
pub(crate) fn leave_the_end_to_them() {
    while CAME.load(Ordering::Relaxed) {
        thread::park();
    }
}
