//! coild: puts the parts together and runs them.
//!
//! ```text
//!  plugin ─gRPC─▶ cni ─▶ ipam, net ─▶ node ─▶ plane (eBPF)
//!  API server ─▶ watch ─▶ index ──────▶ node ─▶ plane, routes in pods, gateways
//!                         ipam ─▶ blocks ─▶ table 119
//! ```

mod datapath;
mod export;
pub mod options;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use coil_api::crd::AddressPool;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::{Api, Client, api::ListParams};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    cni::{
        health::Health,
        server::{self, CniService},
        socket,
    },
    datapath::NetworkChanges,
    egress::{plan::NodeFacts, support::Support},
    ipam::NodeIpam,
    metrics,
    net::{
        Rtnl,
        host::{self, HostAddresses},
        monitor::{Monitor, Topic},
        pod::PodNetwork,
        recover,
        route::Owned,
    },
    node::{Node, Settings},
    watch::{Feed, Scope, index::Index, objects},
};
use export::Exporter;
use options::{Mode, Options};

/// How long to wait before asking the API server again at the start.
const RETRY: Duration = Duration::from_secs(2);
/// How often free memory is given back.
const TRIM: Duration = Duration::from_secs(30);
/// How often expired flows are removed.
const SWEEP: Duration = Duration::from_secs(5);
/// Least time between two orders to decide anew.
const CHANGES_SETTLE: Duration = Duration::from_millis(5);
/// Why there is no egress by the kernel where nobody wants it.
const NO_EGRESS: &str = "--enable-egress is off";

/// Runs until SIGTERM.
///
/// # Errors
/// When it cannot start, with what to do about it.
pub async fn run(options: Options) -> Result<()> {
    if options.cleanup {
        return datapath::cleanup();
    }
    options.check()?;
    if let Some(flag) = options.without_effect() {
        warn!("no effect: {flag}");
    }
    let stopped = coil_program::stopped()?;
    let registry = metrics::registry()?;
    let feed = Feed::default();
    let serving = Arc::new(AtomicBool::new(false));
    let ready = {
        let (feed, serving) = (feed.clone(), serving.clone());
        coil_program::ready_when(move || {
            let mut missing: Vec<String> = feed.missing().into_iter().map(str::to_owned).collect();
            if !serving.load(Ordering::Relaxed) {
                missing.push("the plugin's socket".to_owned());
            }
            missing
        })
    };
    coil_program::serve_http(options.health_addr, ready, options.metrics_addr, registry.clone())?;

    tokio::pin!(stopped);
    let Started { node, exporter, health } = tokio::select! {
        started = start(&options, &feed) => started?,
        () = &mut stopped => return Ok(()),
    };
    metrics::DatapathInfo::register(node.clone(), &registry)?;
    metrics::DatapathCounters::register(node.clone(), &registry)?;
    registry.register(Box::new(node.drift.clone()))?;
    let service = CniService::new(node.clone(), health, &registry)?;
    let listener = socket::listen(&options.socket).context("cannot start")?;
    let _until_the_end = socket::hold(&listener).context("cannot start")?;
    tokio::spawn(service.clone().let_go_of_lost_pods(options.addressblock_gc_interval.0));
    tokio::spawn(service.clone().watch_health());
    serving.store(true, Ordering::Relaxed);
    info!(socket = %options.socket.display(), "ready for the plugin");
    server::serve(listener, service, stopped).await.map_err(anyhow::Error::from_boxed)?;
    if let Some(exporter) = exporter.filter(|_| options.clear_routes_on_shutdown) {
        exporter.end(node.client.clone(), &options.node_name).await;
    }
    info!("stopped; pods and their traffic stay as they are");
    Ok(())
}

/// What runs before the plugin is served.
struct Started {
    node: Arc<Node>,
    /// None when the node has no blocks.
    exporter: Option<Exporter>,
    health: Arc<Health>,
}

/// Everything up to the socket.
async fn start(options: &Options, feed: &Feed) -> Result<Started> {
    let client = Client::try_default()
        .await
        .context("cannot find the API server: run in a pod with a service account, or set KUBECONFIG")?;
    let rtnl = Rtnl::open()?;
    let pod_routes = Owned { table: options.pod_table_id, protocol: options.protocol_id };
    if options.enable_ipam {
        host::prepare(&rtnl, pod_routes.table, options.pod_rule_prio).await?;
    } else {
        // The routes to the pods are the other plugin's.
        host::forward()?;
    }
    let addresses = node_addresses(&client, &options.node_name).await;
    let mtu = host::mtu(&rtnl).await?;
    info!(node = options.node_name, ?addresses, mtu, "pods' gateways are this node's addresses");
    let network = PodNetwork::new(rtnl.clone(), pod_routes, HostAddresses::of(&addresses), mtu)
        .with_calico_names(options.compat_calico);
    let mut found = recover::pods(&rtnl, pod_routes, options.register_from_main).await?;
    let health = Arc::new(Health::new(!found.is_empty()));

    let pools =
        if options.datapath == Mode::Ebpf && options.enable_ipam { pools(&client).await } else { Vec::new() };
    let plane = datapath::choose(options.datapath, &pools, options.ebpf_log)?;
    let by_kernel = plane.mode() == "kernel";
    let support = kernel_egress(options.enable_egress, by_kernel);
    let kernel_egress_missing =
        support.as_ref().map_or_else(|| Some(NO_EGRESS.to_owned()), Support::obstacle);
    // Clients that the Go version made dial the Services of their Egresses, whatever serves the others. Whether or not this
    // kernel can: what coild asks for, and so whether its role is enough, is no matter of modules.
    let kernel_egress = by_kernel || found.iter().any(|pod| pod.kernel_client);
    feed.start(
        &client,
        &options.node_name,
        Scope { ipam: options.enable_ipam, egress: options.enable_egress, kernel_egress },
    );
    let (blocks, on_blocks) = watch::channel(BTreeSet::new());
    let ipam = options.enable_ipam.then(|| NodeIpam::new(client.clone(), options.node_name.clone(), blocks));
    let settings = Settings {
        by_host_stack: options.by_host_stack(),
        name: options.node_name.clone(),
        egress: options.enable_egress,
        kernel_egress_lacks: support.map_or_else(|| Some(NO_EGRESS.to_owned()), |support| support.missing()),
        kernel_egress_missing,
        devices: options.devices.clone(),
        pod_rule: options.enable_ipam.then_some(options.pod_rule_prio),
        facts: NodeFacts {
            in_cluster: options.in_cluster_cidrs.clone(),
            fast_udp: options.fast_udp,
            forward: plane.mode() == "ebpf" && options.by_host_stack().is_none(),
            host_stack: options.by_host_stack().is_some(),
            fou_port: options.egress_port,
            mark: options.mark.0,
            originating_only: options.enable_originating_only,
            addresses_of_others: !options.enable_ipam,
            quota: options.egress_quota,
            former_clients: plane.with(|plane| plane.clients()).unwrap_or_default(),
            former_destinations: plane.with(|plane| plane.destinations()).unwrap_or_default(),
            ..NodeFacts::default()
        },
    };
    let node = Node::new(settings, client, feed.clone(), ipam.clone(), network, plane, rtnl.clone());
    node.chained.complete(&mut found).await;
    node.recover(found);
    node.look_at_node().await?;
    tokio::spawn(node.clone().run(Monitor::open(&[Topic::Node])?));
    let export = Owned { table: options.export_table_id, protocol: options.protocol_id };
    let interval = options.addressblock_gc_interval.0;
    let mut exporter = None;
    if let Some(ipam) = ipam {
        exporter = Some(Exporter::start(rtnl, export, on_blocks, ipam.clone(), interval, health.clone())?);
        tokio::spawn(drain_pools(feed.clone(), ipam.clone()));
        tokio::spawn(collect_garbage(ipam, interval));
    }
    tokio::spawn(return_memory());
    tokio::spawn(sweep(node.clone()));
    follow_changes(node.clone())?;
    Ok(Started { node, exporter, health })
}

/// The node's InternalIPs. Without them there is no pod network, so this waits as long as it takes.
async fn node_addresses(client: &Client, name: &str) -> Vec<IpAddr> {
    let api: Api<ApiNode> = Api::all(client.clone());
    loop {
        match api.get_opt(name).await {
            Ok(Some(node)) => match objects::node(&node).unwrap_or_default() {
                addresses if addresses.is_empty() => warn!(node = name, "the Node has no InternalIP yet"),
                addresses => return addresses,
            },
            Ok(None) => warn!(node = name, "the Node does not exist yet; is COIL_NODE_NAME right?"),
            Err(e) => warn!(node = name, error = %e, "cannot read the Node"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The ranges of all pools. Asks until it gets an answer: what `--datapath ebpf` says at the start must be true.
async fn pools(client: &Client) -> Vec<IpNet> {
    let api: Api<AddressPool> = Api::all(client.clone());
    loop {
        match api.list(&ListParams::default()).await {
            Ok(list) => {
                let pools = list.items.iter().filter_map(objects::pool);
                return pools.flat_map(|pool| pool.subnets).collect();
            }
            Err(e) => warn!(error = %e, "cannot list the AddressPools"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What the kernel has for egress, which is said here once; none when nobody wants it. Where eBPF does egress, nothing is
/// loaded for it.
fn kernel_egress(enabled: bool, by_kernel: bool) -> Option<Support> {
    if !enabled {
        return None;
    }
    let support = if by_kernel { Support::with_modules() } else { Support::as_it_is() };
    match support.missing() {
        None => info!("the kernel has what egress needs"),
        Some(missing) if by_kernel => warn!(reason = missing, "no egress by the kernel"),
        Some(missing) => info!(reason = missing, "no egress by the kernel, only by eBPF"),
    }
    Some(support)
}

/// Tells the node's IPAM which pools are being deleted.
async fn drain_pools(feed: Feed, ipam: NodeIpam) {
    let mut changes = feed.changes();
    let mut known = BTreeSet::new();
    loop {
        let draining = feed.read(Index::draining_pools);
        if draining != known {
            known.clone_from(&draining);
            ipam.drain(draining);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn collect_garbage(ipam: NodeIpam, interval: Duration) {
    ipam.synced().await;
    loop {
        if let Err(e) = ipam.gc().await {
            warn!(error = %e, "cannot return blocks without pods; will try again");
        }
        tokio::time::sleep(interval.max(RETRY)).await;
    }
}

/// Makes the programs decide anew whenever routes, rules or links change, for ever.
fn follow_changes(node: Arc<Node>) -> Result<()> {
    let mut changes = NetworkChanges::listen().context("cannot listen to changes of the network")?;
    thread::Builder::new().name("changes".to_owned()).spawn(move || {
        while changes.wait().is_ok() {
            if let Some(Err(e)) = node.plane.with(|plane| plane.forget_decisions()) {
                warn!(error = %e, "the programs cannot be told of a change; they follow within a second");
            }
            // Those that come together are one.
            thread::sleep(CHANGES_SETTLE);
        }
    })?;
    Ok(())
}

/// A burst of pods leaves free memory in pieces, which the allocator keeps.
async fn return_memory() {
    loop {
        tokio::time::sleep(TRIM).await;
        coil_program::memory::trim();
    }
}

async fn sweep(node: Arc<Node>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match node.plane.with(|plane| plane.sweep()) {
            None => return,
            Some(Ok(())) => node.warn_of_ports(),
            Some(Err(e)) => warn!(error = %e, "cannot remove expired flows"),
        }
    }
}
