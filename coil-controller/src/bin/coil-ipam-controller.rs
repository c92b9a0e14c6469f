//! Carves AddressBlocks out of AddressPools.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use coil_api::flags::{GoDuration, ListenAddr};
use coil_controller::{
    ipam,
    program::{self, Program},
    webhook::{Pools, flags::Flags, names::IPAM},
};
use prometheus::Registry;

/// coil-ipam-controller: answers BlockRequests with AddressBlocks, and judges AddressPools.
#[derive(Debug, Parser)]
#[command(version, name = "coil-ipam-controller")]
struct Args {
    /// Address of /metrics.
    #[arg(long, default_value = ":9386")]
    metrics_addr: ListenAddr,
    /// Address of /healthz and /readyz.
    #[arg(long, default_value = ":9387")]
    health_addr: ListenAddr,
    /// Time between two collections of blocks whose node is gone.
    #[arg(long, default_value = "1h")]
    gc_interval: GoDuration,
    #[command(flatten)]
    webhook: Flags,
}

fn main() -> ExitCode {
    coil_program::main(2, run())
}

async fn run() -> Result<()> {
    let args: Args = coil_program::start();
    let registry = Registry::new();
    let options = ipam::Options { gc_interval: args.gc_interval.0 };
    let work_registry = registry.clone();
    let program = Program {
        lease: "coil-ipam-leader",
        metrics_addr: args.metrics_addr,
        health_addr: args.health_addr,
        registry,
        webhook: IPAM,
        flags: args.webhook,
    };
    program::run(
        program,
        |client| Pools::new(client.clone()),
        |client, ready| async move { ipam::run(client, options, &work_registry, ready).await },
    )
    .await
}
