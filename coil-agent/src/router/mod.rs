//! coil-router: routes to the other nodes' address blocks, for clusters on one layer-2 network.
//!
//! ```text
//! AddressBlocks ─┐
//!                ├─▶ Index ──▶ wanted routes ──▶ main table, protocol 31
//! Nodes ─────────┘   (pure)        (pure)          (net: diff, apply)
//! ```
//!
//! The next hop of a block is the InternalIP of its node, in the block's family. A node that is not on
//! a link of this one cannot be a next hop; the kernel refuses such a route, the others are made.

mod index;
mod watch;

use std::time::Duration;

use kube::Client;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use tokio::sync::watch::Receiver;
use tracing::{info, warn};

pub use index::Index;

use crate::net::{
    Rtnl,
    route::{Changes, Owned},
};

/// What coil-router is told to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// Where the routes go, and how they are marked.
    pub routes: Owned,
    /// Full sync at least this often.
    pub interval: Duration,
}

/// The program's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    syncs: IntCounterVec,
    routes: IntGaugeVec,
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// When the registry has metrics of these names.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let opts = |name: &str, help: &str| Opts::new(name, help).namespace("coil").subsystem("router");
        let syncs = IntCounterVec::new(opts("syncs_total", "Completed syncs of the routes."), &["node"])?;
        let routes =
            IntGaugeVec::new(opts("routes_synced", "Routes in place after the last sync."), &["node"])?;
        registry.register(Box::new(syncs.clone()))?;
        registry.register(Box::new(routes.clone()))?;
        Ok(Self { syncs, routes })
    }
}

/// Watches and syncs for ever. `ready` becomes true after the first sync.
pub async fn run(
    client: Client,
    rtnl: Rtnl,
    config: Config,
    metrics: Metrics,
    ready: tokio::sync::watch::Sender<bool>,
) -> std::convert::Infallible {
    let (_watch, mut index) = watch::start(client);
    loop {
        sync(&rtnl, &config, &metrics, &mut index, &ready).await;
        // A change, or the interval: both lead to a full sync. The sender lives as long as this loop.
        let _ = tokio::time::timeout(config.interval, index.changed()).await;
    }
}

async fn sync(
    rtnl: &Rtnl,
    config: &Config,
    metrics: &Metrics,
    index: &mut Receiver<Index>,
    ready: &tokio::sync::watch::Sender<bool>,
) {
    let wanted = {
        let index = index.borrow_and_update();
        // Half a picture would remove the routes of what is not seen yet.
        if !index.is_complete() {
            return;
        }
        index.routes(&config.node)
    };
    match config.routes.sync(rtnl, &wanted).await {
        Ok(changes) => {
            metrics.syncs.with_label_values(&[&config.node]).inc();
            metrics
                .routes
                .with_label_values(&[&config.node])
                .set(i64::try_from(wanted.len()).unwrap_or(i64::MAX));
            ready.send_replace(true);
            if changes != Changes::default() {
                info!(routes = wanted.len(), set = changes.set, removed = changes.removed, "routes synced");
            }
        }
        Err(error) => {
            warn!(%error, "some routes could not be synced; is the node of the block on a link of this one?");
        }
    }
}
