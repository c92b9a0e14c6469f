//! `cargo xtask bench cni`

use std::{path::Path, process::Command};

use anyhow::Result;

use super::build;
use crate::{plugin, run, setup};

/// Where Debian's containernetworking-plugins are.
const REFERENCE: &str = "/usr/lib/cni";

/// How long ADD and DEL take, beside the reference plugin ptp with host-local.
///
/// Both are called in turn on one node, in IPv4 and dual stack, one pod after the other and 50 at once. Results are
/// a table and, with --json, {"results":[{"scenario","subject","p50_ms","p99_ms","ratio_to_ptp"}]}.
/// The ratio is p50 by ptp's p50; for pods at once, pods a second by those of ptp one after the other.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds of IPv4; of dual stack ptp has a tenth, as each takes seconds
    #[arg(long, default_value_t = 60)]
    rounds: u32,
}

pub(super) fn run(args: &Args, json: Option<&Path>) -> Result<()> {
    if !Path::new(REFERENCE).join("ptp").exists() {
        setup::install(&["containernetworking-plugins".to_owned()])?;
    }
    plugin::build()?;
    let programs = build(&["coil-agent/coild", "coil-node-tests/coil-bench-cni"])?;
    let mut bench = Command::new(programs.join("coil-bench-cni"));
    bench.arg("--programs").arg(&programs).args(["--reference", REFERENCE]);
    bench.args(["--rounds", &args.rounds.to_string()]);
    if let Some(file) = json {
        bench.arg("--json").arg(file);
    }
    run::run(&mut bench)
}
