//! `cargo xtask bench datapath`

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{
    build,
    sheet::{self, Scenario, Sheet, TRAFFIC},
};
use crate::run;

/// How fast pods reach each other: the eBPF path, the kernel's, and a bare veth pair.
///
/// All are measured in turn on one core, round by round: small datagrams, TCP with and without segmentation offload,
/// requests and connections, on one node and between two; the kernel's path also with kube-proxy's rules for 1,000
/// services. UDP is that of --fast-udp. Results are a table and, with --json,
/// {"results":[{"scenario","path","metric","median","ratio_to_veth"}]}: medians over the rounds, and medians of the
/// ratios to the bare pair in the same round.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; each measures everything once
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 300)]
    millis: u64,
    /// IPv6 in place of IPv4
    #[arg(long)]
    v6: bool,
    /// Write table and plot into docs/performance.md
    #[arg(long)]
    docs: bool,
}

pub(super) const SHEET: Sheet = Sheet {
    verb: "datapath",
    scenarios: &[
        Scenario { name: "same-node", title: "one node", metrics: TRAFFIC },
        Scenario { name: "two-nodes", title: "two nodes", metrics: TRAFFIC },
    ],
    paths: &[
        ("veth", "bare veth", None),
        ("kernel", "kernel", Some("#9aa5b1")),
        ("kernel+services", "kernel, 1,000 services", Some("#5f6c7b")),
        ("ebpf", "eBPF", Some("#2f7ed8")),
    ],
};

pub(super) fn run(args: &Args, file: Option<&Path>) -> Result<()> {
    let programs = build(&["coil-kernel-tests/coil-bench-datapath"])?;
    let mut bench = Command::new(programs.join("coil-bench-datapath"));
    bench.args(["--rounds", &args.rounds.to_string(), "--millis", &args.millis.to_string()]);
    if args.v6 {
        bench.arg("--v6");
    }
    eprintln!("+ {}", run::shown(&bench));
    let found = sheet::parse(&run::output(&mut bench)?)?;
    let how = sheet::how(&sheet::kernel(), args.v6, args.rounds, args.millis);
    SHEET.publish(&found, file, args.docs.then_some(&how))
}
