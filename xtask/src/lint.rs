//! `cargo xtask lint`

use anyhow::Result;

use crate::{build_ebpf, chart, crdgen, run, setup};

/// Check formatting, lints of every crate (the eBPF one for its own target), and generated files.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    setup::ensure()?;
    run::run(run::cargo().args(["fmt", "--all", "--check"]))?;
    build_ebpf::build()?;
    build_ebpf::clippy()?;
    let mut clippy = run::cargo();
    clippy.args(["clippy", "--workspace", "--exclude", "coil-ebpf", "--all-targets", "--", "-D", "warnings"]);
    run::run(&mut clippy)?;
    crdgen::run(&crdgen::Args::check())?;
    chart::run(&chart::Args::check())
}
