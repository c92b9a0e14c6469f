//! The program in a gateway pod: readiness, metrics, and an end that waits for flows.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use coil_agent::gateway::{Endpoints, LIMIT, run, settings::Settings};
use coil_api::{
    flags::{GoDuration, ListenAddr, parse_bool},
    gateway::SOCKET,
    names::DEFAULT_EGRESS_PORT,
};
use tracing::info;

/// coil-egress: stands for a gateway of an Egress; the node's coild does its translation.
///
/// Environment: COIL_POD_ADDRESSES (status.podIPs), COIL_POD_NAMESPACE, COIL_EGRESS_NAME, HOSTNAME.
#[derive(Debug, Parser)]
#[command(version, name = "coil-egress")]
struct Args {
    /// Address of /metrics.
    #[arg(long, default_value = ":8080")]
    metrics_addr: ListenAddr,
    /// Address of /healthz and /readyz.
    #[arg(long, default_value = ":8081")]
    health_addr: ListenAddr,
    /// UDP port of the encapsulation; coild's --egress-port decides.
    #[arg(long, default_value_t = DEFAULT_EGRESS_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    fou_port: u16,
    /// Source ports by flow; the Egress's fouSourcePortAuto decides, as coild reads it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", action = clap::ArgAction::Set, value_parser = parse_bool)]
    enable_sport_auto: bool,
    /// Tool for NAT rules of the kernel path; coild translates without any.
    #[arg(long, value_enum, default_value_t = Backend::Iptables)]
    backend: Backend,
    /// Longest wait for flows to end after SIGTERM; less than the pod's
    /// terminationGracePeriodSeconds, which is 30 s unless set.
    #[arg(long, default_value = "25s")]
    drain_timeout: GoDuration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Backend {
    Iptables,
    Nftables,
}

fn main() -> ExitCode {
    coil_program::main(1, serve())
}

async fn serve() -> Result<()> {
    let args: Args = coil_program::start();
    let settings = Settings::from_env(|name| std::env::var(name).ok())?;
    info!(
        namespace = settings.namespace,
        egress = settings.egress,
        addresses = ?settings.addresses,
        "gateway; the node's coild encapsulates and translates, by its own flags and the Egress"
    );
    info!(
        fou_port = args.fou_port,
        sport_auto = args.enable_sport_auto,
        backend = ?args.backend,
        "these flags are for Coil v2's manifests alone: coild makes the tunnels, also by the kernel"
    );
    let endpoints = Endpoints {
        metrics: coil_program::listen("--metrics-addr", args.metrics_addr)?,
        health: coil_program::listen("--health-addr", args.health_addr)?,
        socket: SOCKET.to_owned(),
        limit: LIMIT,
    };
    run(settings, endpoints, args.drain_timeout.0, coil_program::stopped()?).await
}
