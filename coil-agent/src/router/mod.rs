//! coil-router: routes to the other nodes' address blocks, for clusters on one layer-2 network.
//!
//! ```text
//! AddressBlocks ─┐
//!                ├─▶ Index ─┐
//! Nodes ─────────┘          ├─▶ Plan ──▶ main table, protocol 31
//! main table ────▶ Reach ───┘  (pure)     (net: diff, apply)
//! ```
//!
//! The next hop of a block is the InternalIP of its node, in the block's family. A node that is not on
//! a link of this one cannot be a next hop: that is said once, and its blocks have no route.

mod index;
mod watch;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use kube::Client;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::watch::Receiver;
use tracing::{info, warn};

pub use index::{Index, Plan};

use crate::net::{
    Rtnl, RtnlError,
    monitor::{Monitor, is_about_node, is_lost_route, is_route_of},
    reach::Reach,
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

/// Changes of the node's links come in crowds.
const SETTLE: Duration = Duration::from_millis(200);
/// A sync that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// Watches and syncs for ever. `ready` becomes true after the first sync.
pub async fn run(
    client: Client,
    rtnl: Rtnl,
    mut monitor: Monitor,
    config: Config,
    metrics: Metrics,
    ready: tokio::sync::watch::Sender<bool>,
) -> std::convert::Infallible {
    let (_watch, mut index) = watch::start(client);
    let mut elsewhere = BTreeSet::new();
    loop {
        let mut pause = config.interval;
        match sync(&rtnl, &config, &metrics, &mut index, &mut elsewhere).await {
            Ok(true) => drop(ready.send_replace(true)),
            Ok(false) => {}
            Err(error) => {
                warn!(%error, "some routes could not be synced; will try again");
                pause = pause.min(RETRY);
            }
        }
        // The node's own routes in the way of a next hop, and ours that somebody removed. All lead to a full sync;
        // the index's sender lives as long as this loop.
        tokio::select! {
            _ = index.changed() => {}
            () = monitor.changed(|message| matters(message, config.routes)) => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Our own changes are no news, except that one of our routes went.
fn matters(message: &RouteNetlinkMessage, own: Owned) -> bool {
    is_lost_route(message, own) || (is_about_node(message) && !is_route_of(message, own))
}

/// One full sync; false before the cluster is known.
async fn sync(
    rtnl: &Rtnl,
    config: &Config,
    metrics: &Metrics,
    index: &mut Receiver<Index>,
    known_elsewhere: &mut BTreeSet<(String, IpAddr)>,
) -> Result<bool, RtnlError> {
    let index = index.borrow_and_update().clone();
    // Half a picture would remove the routes of what is not seen yet.
    if !index.is_complete() {
        return Ok(false);
    }
    let plan = index.plan(&config.node, &Reach::read(rtnl).await?);
    for (node, address) in plan.elsewhere.difference(known_elsewhere) {
        warn!(
            node,
            %address,
            "is on no link of this node: no route to its blocks; let a routing daemon carry table 119 there"
        );
    }
    *known_elsewhere = plan.elsewhere;
    let changes = config.routes.sync(rtnl, &plan.routes).await?;
    metrics.syncs.with_label_values(&[&config.node]).inc();
    let routes = i64::try_from(plan.routes.len()).unwrap_or(i64::MAX);
    metrics.routes.with_label_values(&[&config.node]).set(routes);
    if changes != Changes::default() {
        info!(routes, set = changes.set, removed = changes.removed, "routes synced");
    }
    Ok(true)
}
