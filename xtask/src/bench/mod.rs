//! `cargo xtask bench`: measures the release-built programs.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::{build_ebpf, run, setup};

mod cni;

/// Measure the release-built programs. Needs root.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Cni(cni::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    run::need_root("bench");
    setup::ensure()?;
    match &args.what {
        What::Cni(cni) => cni::run(cni, args.json.as_deref()),
    }
}

/// Builds the eBPF object and these programs for release, each given as PACKAGE/PROGRAM; returns their folder.
fn build(programs: &[&str]) -> Result<PathBuf> {
    build_ebpf::build()?;
    let mut cargo = run::cargo();
    cargo.args(["build", "--release"]);
    for program in programs {
        let (package, program) = program.split_once('/').context("write PACKAGE/PROGRAM")?;
        cargo.args(["--package", package, "--bin", program]);
    }
    run::run(&mut cargo)?;
    Ok(run::target_dir().join("release"))
}
