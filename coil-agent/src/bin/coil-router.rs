//! Routes to the other nodes' address blocks.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context as _, Result};
use clap::Parser;
use coil_agent::{
    net::{Rtnl, route::Owned},
    router::{self, Config, Metrics},
    serve,
};
use coil_api::{
    flags::{GoDuration, ListenAddr, strip_zap},
    names,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// Programs routes to the address blocks of the other nodes into the main routing table.
///
/// For clusters whose nodes share a layer-2 network. Elsewhere routing software, such as BIRD, carries
/// the blocks that coild exports to table 119.
#[derive(Parser)]
#[command(name = "coil-router", version)]
struct Args {
    /// Address of the metrics endpoint
    #[arg(long, default_value = ":9388")]
    metrics_addr: ListenAddr,
    /// Address of the health endpoints
    #[arg(long, default_value = ":9389")]
    health_addr: ListenAddr,
    /// Protocol that marks the program's own routes
    #[arg(long, default_value_t = names::DEFAULT_ROUTER_PROTOCOL, value_parser = clap::value_parser!(u8).range(1..))]
    protocol_id: u8,
    /// Full sync at least this often
    #[arg(long, default_value = "10m")]
    update_interval: GoDuration,
    /// Name of the Node that the program runs on
    #[arg(long, env = names::ENV_NODE_NAME)]
    node_name: String,
}

/// RT_TABLE_MAIN of linux/rtnetlink.h.
const MAIN_TABLE: u32 = 254;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    let (args, dropped) = strip_zap(std::env::args_os());
    if !dropped.is_empty() {
        warn!(flags = ?dropped, "logging flags of Coil v2 have no meaning here; set RUST_LOG instead");
    }
    match start(Args::parse_from(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coil-router: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn start(args: Args) -> Result<()> {
    let registry = prometheus::Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let metrics = Metrics::register(&registry)?;
    let (ready, is_ready) = tokio::sync::watch::channel(false);

    let listen = |flag: &str, addr: &ListenAddr| {
        addr.bind().with_context(|| format!("cannot listen on {addr}; choose another --{flag}"))
    };
    let metrics_server = serve::metrics(listen("metrics-addr", &args.metrics_addr)?, registry);
    let readiness: serve::Readiness =
        Arc::new(
            move || {
                if *is_ready.borrow() { Ok(()) } else { Err("the routes have not been synced yet".into()) }
            },
        );
    let health_server = serve::health(listen("health-addr", &args.health_addr)?, readiness);

    let client = kube::Client::try_default()
        .await
        .context("cannot find the API server: run in a pod with a service account, or set KUBECONFIG")?;
    let rtnl = Rtnl::open()?;
    let config = Config {
        node: args.node_name,
        routes: Owned { table: MAIN_TABLE, protocol: args.protocol_id },
        interval: args.update_interval.0,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    info!(node = %config.node, "starting");
    tokio::select! {
        end = metrics_server => end.context("the metrics endpoint failed")?,
        end = health_server => end.context("the health endpoints failed")?,
        never = router::run(client, rtnl, config, metrics, ready) => match never {},
        // The routes stay: the cluster goes on while the program is replaced.
        _ = terminate.recv() => info!("terminated"),
        _ = interrupt.recv() => info!("interrupted"),
    }
    Ok(())
}
