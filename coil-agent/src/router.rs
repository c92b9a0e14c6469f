//! coil-router: routes to the other nodes' address blocks, where no routing daemon is.
//!
//! ```text
//! API server ─▶ watch ─▶ index (nodes, blocks) ─▶ routes ─▶ main table, protocol 31
//! ```

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use coil_api::{
    flags::{GoDuration, ListenAddr},
    names::{DEFAULT_ROUTER_PROTOCOL, ENV_NODE_NAME},
};
use kube::Client;
use prometheus::{IntCounter, IntGauge, Opts};
use tracing::{error, info};

use crate::{
    metrics,
    net::{
        Rtnl,
        route::{MAIN_TABLE, Owned, Path, Routes},
    },
    program,
    watch::{Feed, Index},
};

/// After an error.
const RETRY: Duration = Duration::from_secs(5);
/// Changes that come together are applied together.
const SETTLE: Duration = Duration::from_millis(50);

/// Routes to the address blocks of other nodes, by their InternalIP
#[derive(Debug, Clone, Parser)]
#[command(name = "coil-router", version)]
pub struct Options {
    /// Name of this node in the API
    #[arg(long, env = ENV_NODE_NAME)]
    pub node_name: String,
    /// Where to serve /metrics
    #[arg(long, default_value = ":9388")]
    pub metrics_addr: ListenAddr,
    /// Where to serve /healthz and /readyz
    #[arg(long, default_value = ":9389")]
    pub health_addr: ListenAddr,
    /// Route protocol that marks coil-router's routes
    #[arg(long, default_value_t = DEFAULT_ROUTER_PROTOCOL)]
    pub protocol_id: u8,
    /// How often all routes are compared with the kernel's
    #[arg(long, default_value = "10m")]
    pub update_interval: GoDuration,
}

/// The routes that a node should have: each other node's blocks, through its address of the same family.
#[must_use]
pub fn routes(index: &Index, own_name: &str) -> Routes {
    let addresses: BTreeMap<&str, &Vec<IpAddr>> =
        index.nodes.iter().map(|(key, addresses)| (key.name.as_str(), addresses)).collect();
    let mut routes = Routes::new();
    for block in index.blocks.values().filter(|block| block.node != own_name) {
        let Some(node) = addresses.get(block.node.as_str()) else { continue };
        for net in &block.networks {
            let gateway = node.iter().find(|a| a.is_ipv4() == net.addr().is_ipv4());
            if let Some(gateway) = gateway {
                routes.insert(*net, Path { gateway: Some(*gateway), ..Path::default() });
            }
        }
    }
    routes
}

/// Runs until SIGTERM. The routes stay.
///
/// # Errors
/// When it cannot start, with what to do about it.
pub async fn run(options: Options) -> Result<()> {
    let stopped = program::stopped()?;
    let registry = metrics::registry()?;
    let opts = |name: &str, help: &str| Opts::new(name, help).const_label("node", &options.node_name);
    let syncs =
        IntCounter::with_opts(opts("coil_router_syncs_total", "Comparisons with the kernel's routes."))?;
    let synced = IntGauge::with_opts(opts("coil_router_routes_synced", "Routes to other nodes' blocks."))?;
    registry.register(Box::new(syncs.clone()))?;
    registry.register(Box::new(synced.clone()))?;

    let client = Client::try_default()
        .await
        .context("cannot find the API server: run in a pod with a service account, or set KUBECONFIG")?;
    let rtnl = Rtnl::open()?;
    let table = Owned { table: MAIN_TABLE, protocol: options.protocol_id };
    let feed = Feed::default();
    feed.start_router(&client);
    let done_once = Arc::new(AtomicBool::new(false));
    let ready = {
        let (feed, done_once) = (feed.clone(), done_once.clone());
        program::ready_when(move || {
            let mut missing: Vec<String> = feed.missing().into_iter().map(str::to_owned).collect();
            if !done_once.load(Ordering::Relaxed) {
                missing.push("the first sync of routes".to_owned());
            }
            missing
        })
    };
    program::serve_http(options.health_addr, ready, options.metrics_addr, registry)?;

    let work = async {
        let mut changes = feed.changes();
        // An incomplete list would remove routes that are needed.
        feed.synced().await;
        loop {
            changes.mark_unchanged();
            let wanted = feed.read(|index| routes(index, &options.node_name));
            let pause = match table.sync(&rtnl, &wanted).await {
                Ok(changes) => {
                    syncs.inc();
                    synced.set(i64::try_from(wanted.len()).unwrap_or(i64::MAX));
                    done_once.store(true, Ordering::Relaxed);
                    if changes.set + changes.removed > 0 {
                        info!(
                            routes = wanted.len(),
                            set = changes.set,
                            removed = changes.removed,
                            "synced routes"
                        );
                    }
                    options.update_interval.0
                }
                Err(e) => {
                    error!(error = %e, "not all routes could be set; will try again");
                    RETRY
                }
            };
            tokio::select! {
                _ = changes.changed() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(pause.max(SETTLE)) => {}
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stopped => info!("stopped; the routes stay"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::index::{BlockInfo, ObjectKey};

    #[test]
    fn other_nodes_blocks_by_family() {
        let mut index = Index::default();
        let mut block = |name: &str, node: &str, nets: &[&str]| {
            let networks = nets.iter().map(|n| n.parse().unwrap()).collect();
            index.blocks.insert(ObjectKey::new("", name), BlockInfo { node: node.into(), networks });
        };
        block("default-0", "n1", &["10.64.0.0/27", "fd64::/123"]);
        block("default-1", "n2", &["10.64.0.32/27", "fd64::20/123"]);
        block("default-2", "n3", &["10.64.0.64/27", "fd64::40/123"]);
        block("default-3", "gone", &["10.64.0.96/27"]);
        for (name, addresses) in
            [("n1", vec!["172.18.0.1"]), ("n2", vec!["172.18.0.2", "fd00:18::2"]), ("n3", vec!["fd00:18::3"])]
        {
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            index.nodes.insert(ObjectKey::new("", name), addresses);
        }
        let found: Vec<String> = routes(&index, "n1")
            .iter()
            .map(|(dst, path)| format!("{dst} {}", path.gateway.unwrap()))
            .collect();
        assert_eq!(found, ["10.64.0.32/27 172.18.0.2", "fd64::20/123 fd00:18::2", "fd64::40/123 fd00:18::3"]);
    }
}
