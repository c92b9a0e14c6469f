//! `down`: ends a lab and looks whether anything is left.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    remains::Holdings,
    state::{StateDir, all},
};

/// The kernel frees namespaces and BPF objects a moment after their last user.
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Ends a lab. A lab that is not there is no error: nothing of it is left.
pub(crate) fn down(name: &str) -> Result<()> {
    let state = StateDir::of(name);
    if !state.is_held() {
        if state.path().exists() {
            state.remove()?;
            println!("lab {name:?} had crashed: its directory is removed");
            return Ok(());
        }
        let others: Vec<String> = all().into_iter().filter(|(_, held)| *held).map(|(name, _)| name).collect();
        let others =
            if others.is_empty() { String::new() } else { format!(" (running: {})", others.join(", ")) };
        println!("no lab {name:?} is running{others}");
        return Ok(());
    }
    let lab = state.lab(name)?;
    let holdings = Holdings::of(&lab, &state)?;
    match kill(Pid::from_raw(lab.keeper), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => {
            return Err(e).with_context(|| format!("cannot end the lab's keeper, process {}", lab.keeper));
        }
    }
    wait_until_gone(&holdings, name)?;
    println!("lab {name:?} is gone: nothing is left of its {}", holdings.summary());
    Ok(())
}

/// Waits until the kernel holds nothing of a lab any more.
pub(crate) fn wait_until_gone(holdings: &Holdings, name: &str) -> Result<()> {
    let until = Instant::now() + LIMIT;
    loop {
        let left = holdings.left()?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("lab {name:?}: still there after {LIMIT:?}:\n  {}", left.join("\n  "));
        }
        std::thread::sleep(POLL);
    }
}
