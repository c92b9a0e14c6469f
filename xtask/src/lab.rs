//! `cargo xtask lab`

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{build, run, setup};

/// A Coil cluster in network namespaces: up, status, kubeconfig, exec, node, world, down, demo.
///
/// Try `cargo xtask lab demo`, or `cargo xtask lab help` for the verbs. `up` and `demo` install
/// what is missing and build everything first.
#[derive(clap::Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Args {
    /// The lab's verb and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = run::target_dir().join("debug/coil-lab");
    let verb = args.rest.first().map_or("", String::as_str);
    let help = args.rest.iter().take_while(|word| *word != "--").any(|word| word == "--help" || word == "-h");
    if !help && verb != "help" {
        run::need_root(&format!("lab {verb}"));
        setup::ensure()?;
    }
    // A lab that is running keeps the programs it was started with: other verbs build nothing.
    if !program.exists() || (matches!(verb, "up" | "demo") && !help) {
        build::all()?;
    }
    // This process becomes the lab's command: killing the one is killing the other.
    let error = Command::new(&program).args(&args.rest).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
