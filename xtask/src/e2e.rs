//! `cargo xtask e2e`

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::run;

/// End-to-end tests of a running cluster with Coil installed, through its API alone.
///
/// Try `cargo xtask e2e --kubeconfig FILE`, with --only NAME for one scenario, --junit FILE for machines, --list for the
/// names, --help for the rest. Nodes need the image that `cargo xtask image --e2e` builds.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Options of the tests
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    run::run(run::cargo().args(["build", "--quiet", "--package", "coil-e2e", "--bin", "coil-e2e"]))?;
    let program = run::target_dir().join("debug/coil-e2e");
    // This process becomes the tests: interrupting the one interrupts the other, which then cleans up.
    let error = Command::new(&program).args(&args.rest).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
