//! Routes to the other nodes' address blocks.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use coil_agent::{
    net::{
        Rtnl,
        monitor::{Monitor, Topic},
        route::{MAIN_TABLE, Owned},
    },
    router::{self, Config, Metrics},
};
use coil_api::{
    flags::{GoDuration, ListenAddr},
    names,
};
use tracing::info;

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

fn main() -> ExitCode {
    coil_program::main(2, run())
}

async fn run() -> Result<()> {
    let args: Args = coil_program::start();
    let stopped = coil_program::stopped()?;
    let registry = prometheus::Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let metrics = Metrics::register(&registry)?;
    let (ready, is_ready) = tokio::sync::watch::channel(false);
    let readiness = coil_program::ready_when(move || {
        if *is_ready.borrow() { Vec::new() } else { vec!["the first sync of the routes".to_owned()] }
    });
    coil_program::serve_http(args.health_addr, readiness, args.metrics_addr, registry)?;

    let client = kube::Client::try_default()
        .await
        .context("cannot find the API server: run in a pod with a service account, or set KUBECONFIG")?;
    let rtnl = Rtnl::open()?;
    let monitor = Monitor::open(&[Topic::Node])?;
    let config = Config {
        node: args.node_name,
        routes: Owned { table: MAIN_TABLE, protocol: args.protocol_id },
        interval: args.update_interval.0,
    };
    info!(node = %config.node, "starting");
    tokio::select! {
        never = router::run(client, rtnl, monitor, config, metrics, ready) => match never {},
        // The routes stay: the cluster goes on while the program is replaced.
        () = stopped => info!("stopped; the routes stay"),
    }
    Ok(())
}
