//! `cargo xtask bench ipam`

use std::process::Command;

use anyhow::Result;

use super::Measurement;

/// Blocks per second and their latency, start-up with 10,000 nodes and 50,000 blocks, memory.
///
/// Runs coil-ipam-controller and coild against the embedded API server, each a process of its own, in
/// network and mount namespaces that are gone afterwards. Takes about two minutes. Results are a table and, with
/// --json, {"results":[{"scenario","metric","value","unit"}]}.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these scenarios: requests, start, coild; again for more
    #[arg(long, value_name = "SCENARIO", value_parser = ["requests", "start", "coild"])]
    only: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<Vec<Measurement>> {
    let programs = super::build(&[
        "coil-bench/coil-bench",
        "coil-apiserver/coil-apiserver",
        "coil-controller/coil-ipam-controller",
        "coil-agent/coild",
    ])?;
    let mut bench = Command::new(programs.join("coil-bench"));
    bench.arg("ipam").arg("--programs").arg(&programs);
    for scenario in &args.only {
        bench.args(["--only", scenario]);
    }
    super::measure(&mut bench)
}
