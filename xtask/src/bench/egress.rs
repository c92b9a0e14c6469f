//! `cargo xtask bench egress`

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{
    build,
    sheet::{self, Scenario, Sheet, TRAFFIC},
};
use crate::{run, vm};

/// How fast a client reaches the world through a gateway on another node: the eBPF path, the kernel's, and a bare veth
/// pair.
///
/// All are measured in turn on one core, round by round: small datagrams, TCP with and without segmentation offload,
/// requests and connections (each a new translation); then, once, nearly a million flows, and what they take. The
/// kernel's path here has no tunnel, as few machines have the modules of FOU: routes and masquerading in the gateway pod.
/// With --vm everything runs in a virtual machine under emulation, where the kernel's FOU is measured, too: as in a
/// cluster, to the Egress's Service between nodes with kube-proxy's rules (beside which the eBPF path runs always), and
/// straight to the gateway between nodes without any. Results are a table and, with --json,
/// {"results":[{"scenario","path","metric","median","ratio_to_veth"}]}, with --vm "ratio_to_kernel_fou" too.
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
    /// In a virtual machine with this of the kernels of `cargo xtask vm`, beside the kernel's FOU
    #[arg(long, value_name = "KERNEL", num_args = 0..=1, default_missing_value = "6.12")]
    vm: Option<String>,
    /// Write table and plot into docs/performance.md
    #[arg(long)]
    docs: bool,
}

/// What is measured on this machine.
pub(super) const SHEET: Sheet = Sheet { verb: "egress", scenarios: &[ONE, MANY], paths: PATHS };
/// What is measured in a virtual machine.
pub(super) const SHEET_VM: Sheet = Sheet { verb: "egress --vm", scenarios: &[ONE], paths: PATHS };

const ONE: Scenario = Scenario { name: "egress", title: "egress", metrics: TRAFFIC };
/// Each new flow is a datagram.
const MANY: Scenario = Scenario {
    name: "flows",
    title: "many flows",
    metrics: &[
        ("new_flows_10k", "new flows, up to 10,000", "1/s"),
        ("new_flows_100k", "new flows, up to 100,000", "1/s"),
        ("new_flows_999k", "new flows, up to 999,000", "1/s"),
        ("udp_pps", "UDP, 18 bytes, beside these", "packets/s"),
        ("memory_10k_mib", "memory of 10,000", "MiB"),
        ("memory_100k_mib", "memory of 100,000", "MiB"),
        ("memory_999k_mib", "memory of 999,000", "MiB"),
    ],
};
const PATHS: &[(&str, &str, Option<&str>)] = &[
    ("veth", "bare veth", None),
    ("kernel-no-tunnel", "kernel, no tunnel", Some("#9aa5b1")),
    ("kernel-fou-direct", "kernel, FOU without the Service", Some("#5f6c7b")),
    ("kernel-fou", "kernel, FOU", Some("#3d4652")),
    ("ebpf", "eBPF", Some("#2f7ed8")),
];

pub(super) fn run(args: &Args, file: Option<&Path>) -> Result<()> {
    let programs = build(&["coil-kernel-tests/coil-bench-datapath"])?;
    let mut words = vec![programs.join("coil-bench-datapath").display().to_string()];
    let (rounds, millis) = (args.rounds.to_string(), args.millis.to_string());
    words.extend(["--egress", "--rounds", &rounds, "--millis", &millis].map(str::to_owned));
    if args.v6 {
        words.push("--v6".to_owned());
    }
    let (text, kernel, sheet) = if let Some(kernel) = &args.vm {
        words.push("--fou".to_owned());
        (vm::output(kernel, &words)?, format!("{kernel} of Debian under emulation"), &SHEET_VM)
    } else {
        words.push("--flows".to_owned());
        let mut bench = Command::new(&words[0]);
        bench.args(&words[1..]);
        eprintln!("+ {}", run::shown(&bench));
        (run::output(&mut bench)?, sheet::kernel(), &SHEET)
    };
    let found = sheet::parse(&text)?;
    let how = sheet::how(&kernel, args.v6, args.rounds, args.millis);
    sheet.publish(&found, file, args.docs.then_some(&how))
}
