//! How fast pods reach each other: the eBPF path and the kernel's own, each beside a bare veth pair.
//!
//! ```text
//! bare:      left ────────────────────────── right
//! same-node: pod 1 ── node a ── pod 2
//! two-nodes: pod 1 ── node a ── node b ── pod 3
//! egress:    client ── node a ── node b with the gateway pod ── world
//! ```
//!
//! All subjects have links, routes and addresses of their own, and are measured in turn, round by round, on one
//! core that the two ends share: what else the machine does meets all of them. Prints one measurement a line.

mod egress;
mod flows;
mod measure;
mod place;
mod traffic;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use nix::unistd::geteuid;

/// See `cargo xtask bench datapath --help`.
#[derive(Parser)]
struct Args {
    /// Rounds; each measures every subject once
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(50..))]
    millis: u64,
    /// IPv6 in place of IPv4
    #[arg(long)]
    v6: bool,
    /// Only this metric, such as udp_pps; again for more
    #[arg(long)]
    metric: Vec<String>,
    /// Only this path, such as ebpf, beside the bare pair; again for more
    #[arg(long)]
    path: Vec<String>,
    /// Through a gateway to the world, not from pod to pod
    #[arg(long)]
    egress: bool,
    /// With --egress: the kernel's FOU, too, for which it needs modules; the machine is for this alone
    #[arg(long, requires = "egress")]
    fou: bool,
    /// With --egress: up to a million flows, too
    #[arg(long, requires = "egress")]
    flows: bool,
}

fn main() -> ExitCode {
    if !geteuid().is_root() {
        eprintln!("this makes network namespaces and loads eBPF programs: run it as root");
        return ExitCode::FAILURE;
    }
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let (rounds, time, v4) = (args.rounds, std::time::Duration::from_millis(args.millis), !args.v6);
    let chosen = measure::Chosen { metrics: &args.metric, paths: &args.path };
    if args.fou {
        traffic::nobody_else_is_here();
    }
    let lines = if args.egress {
        measure::egress(rounds, time, v4, args.fou, args.flows, &chosen)?
    } else {
        measure::pods(rounds, time, v4, &chosen)?
    };
    for line in lines {
        println!("{line}");
    }
    Ok(())
}
