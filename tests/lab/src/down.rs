//! `down`: ends a lab and looks whether anything is left.

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    remains::Remains,
    state::{StateDir, all},
};

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
    let remains = Remains::of(&lab, &state)?;
    match kill(Pid::from_raw(lab.keeper), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => {
            return Err(e).with_context(|| format!("cannot end the lab's keeper, process {}", lab.keeper));
        }
    }
    remains.wait_until_gone().with_context(|| format!("lab {name:?}"))?;
    println!("lab {name:?} is gone: nothing is left of its {}", remains.summary());
    Ok(())
}
