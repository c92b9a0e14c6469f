//! The program in a gateway pod: readiness, metrics, and an end that waits for flows.

use std::{io::IsTerminal, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use coil_agent::gateway::{Endpoints, run, settings::Settings};
use coil_api::{
    flags::{GoDuration, ListenAddr, parse_bool, strip_zap},
    gateway::SOCKET,
    names::DEFAULT_EGRESS_PORT,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

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

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    let (args, dropped) = strip_zap(std::env::args_os());
    if !dropped.is_empty() {
        warn!(flags = dropped.join(" "), "logging flags have no effect; use RUST_LOG");
    }
    let args = Args::parse_from(args);
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
        "these flags concern the kernel path alone, which this version of coil-egress does not have"
    );
    let bind = |flag: &str, address: ListenAddr| {
        address.bind().with_context(|| format!("cannot listen on {address} ({flag})"))
    };
    let endpoints = Endpoints {
        metrics: bind("--metrics-addr", args.metrics_addr)?,
        health: bind("--health-addr", args.health_addr)?,
        socket: SOCKET.to_owned(),
    };
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(settings, endpoints, args.drain_timeout.0, stop).await
}
