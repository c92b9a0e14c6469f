//! Services beside the fast path: everything that the kernel translates is right, and what goes directly from
//! pod to pod is fast. The fabric is that of `tests/journey.rs`, with rules as kube-proxy writes them on both
//! nodes, and its drop of what connection tracking finds invalid.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use coil_kernel_tests::{
    Fabric, Pod,
    rules::{self, Front, Service, Writer},
    traffic::{self, Lines, Talk},
};
use coil_packet::Reason;

/// The fabric, with services.
struct Cluster {
    fabric: Fabric,
    writer: Writer,
    service: IpAddr,
}

const POD_PORT: u16 = 8080;
const DNS_PORT: u16 = 5353;

/// Ports of the cluster IP, and of the nodes.
mod port {
    pub(super) const OTHER_NODE: u16 = 80;
    pub(super) const SAME_NODE: u16 = 81;
    pub(super) const HAIRPIN: u16 = 82;
    pub(super) const DNS_OTHER_NODE: u16 = 53;
    pub(super) const DNS_SAME_NODE: u16 = 54;
    pub(super) const NODE: u16 = 30080;
    pub(super) const NODE_LOCAL: u16 = 30081;
    pub(super) const NODE_OTHER: u16 = 30082;
    pub(super) const HOST: u16 = 8088;
}

impl Cluster {
    fn new(writer: Writer, v4: bool) -> Result<Self> {
        let fabric = Fabric::new(v4)?;
        let service: IpAddr = if v4 { "10.96.0.10" } else { "fd96::10" }.parse()?;
        let at = |pod, port| SocketAddr::new(fabric.address(pod), port);
        let entry = |front, port, protocol, endpoint| Service { front, port, protocol, endpoint };
        let cluster = Front::Cluster(service);
        let services = [
            entry(cluster, port::OTHER_NODE, "tcp", at(Pod::Remote, POD_PORT)),
            entry(cluster, port::SAME_NODE, "tcp", at(Pod::Client, POD_PORT)),
            entry(cluster, port::HAIRPIN, "tcp", at(Pod::Plain, POD_PORT)),
            entry(cluster, port::DNS_OTHER_NODE, "udp", at(Pod::Remote, DNS_PORT)),
            entry(cluster, port::DNS_SAME_NODE, "udp", at(Pod::Client, DNS_PORT)),
            entry(Front::NodePort, port::NODE, "tcp", at(Pod::Remote, POD_PORT)),
            entry(Front::NodePortLocal, port::NODE_LOCAL, "tcp", at(Pod::Remote, POD_PORT)),
            entry(Front::NodePort, port::NODE_OTHER, "tcp", at(Pod::Client, POD_PORT)),
            entry(Front::NodePortLocal, port::HOST, "tcp", at(Pod::Remote, POD_PORT)),
        ];
        for node in [0, 1] {
            fabric.on_node(node, || rules::install(writer, v4, &services))??;
        }
        Ok(Self { fabric, writer, service })
    }

    fn with_fast_udp(self) -> Result<Self> {
        for node in [0, 1] {
            let desired = coil_agent::datapath::Desired { fast_udp: true, ..self.fabric.stated(node) };
            self.fabric.with_datapath(node, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;
        }
        Ok(self)
    }

    /// TCP from a pod through a service to the pod behind it, which sees `seen`.
    fn tcp(&self, from: Pod, target: SocketAddr, to: Pod, seen: IpAddr) -> Result<()> {
        for size in [10, 1 << 20] {
            let is = traffic::tcp_via(&self.fabric, from, target, to, POD_PORT, size)?;
            ensure!(is == seen, "{from:?} by {target}: {to:?} saw {is}, not {seen}");
        }
        Ok(())
    }

    fn services(&self) -> Result<()> {
        let fabric = &self.fabric;
        let service = |port| SocketAddr::new(self.service, port);
        let node = |node, port| SocketAddr::new(fabric.node_address(node), port);
        let plain = fabric.address(Pod::Plain);
        let world = fabric.router_address();

        self.tcp(Pod::Plain, service(port::OTHER_NODE), Pod::Remote, plain)?;
        self.tcp(Pod::Plain, service(port::SAME_NODE), Pod::Client, plain)?;
        self.tcp(Pod::Remote, service(port::SAME_NODE), Pod::Client, fabric.address(Pod::Remote))?;
        // A pod that reaches itself sees one of the node's addresses.
        traffic::tcp_via(fabric, Pod::Plain, service(port::HAIRPIN), Pod::Plain, POD_PORT, 1 << 20)?;
        for _ in 0..3 {
            for (port, to) in [(port::DNS_OTHER_NODE, Pod::Remote), (port::DNS_SAME_NODE, Pod::Client)] {
                let seen = traffic::udp_via(fabric, Pod::Plain, service(port), to, DNS_PORT, 40)?;
                ensure!(seen == plain, "{to:?} saw {seen}, not {plain}");
            }
        }
        // Node ports: of the own node, of another, from outside, with the client's address and without.
        self.tcp(Pod::Plain, node(0, port::NODE), Pod::Remote, fabric.node_address(0))?;
        self.tcp(Pod::Plain, node(1, port::NODE_LOCAL), Pod::Remote, plain)?;
        self.tcp(Pod::World, node(1, port::NODE_LOCAL), Pod::Remote, world)?;
        self.tcp(Pod::World, node(1, port::NODE_OTHER), Pod::Client, fabric.node_address(1))?;
        self.tcp(Pod::World, node(1, port::HOST), Pod::Remote, world)
    }

    /// Pod to pod without a service is fast in both directions.
    fn direct(&self, udp: bool) -> Result<()> {
        // A port of its own: one that the kernel has had a flow to may meet that flow's mark.
        let port = if udp { DNS_PORT + 1 } else { DNS_PORT };
        for (to, reason) in [(Pod::Remote, Reason::ToNode), (Pod::Client, Reason::ToPod)] {
            let before = self.fabric.count(reason);
            traffic::tcp(&self.fabric, Pod::Plain, to, 9000, 10 << 20)?;
            self.fabric.ping(Pod::Plain, to)?;
            let fast = self.fabric.count(reason) - before;
            ensure!(fast > 300, "{fast} packets were {}\n{}", reason.name(), self.fabric.counters());
            let before = self.fabric.count(reason);
            for _ in 0..10 {
                traffic::udp_via(
                    &self.fabric,
                    Pod::Plain,
                    SocketAddr::new(self.fabric.address(to), port),
                    to,
                    port,
                    40,
                )?;
            }
            let fast = self.fabric.count(reason) - before;
            let expected = if udp { 20 } else { 0 };
            ensure!(fast >= expected && (udp || fast == 0), "{fast} datagrams were {}", reason.name());
        }
        Ok(())
    }

    /// Nothing was dropped as invalid, and no packet by us.
    fn intact(&self) -> Result<()> {
        for node in [0, 1] {
            let v4 = self.fabric.is_v4();
            let invalid = self.fabric.on_node(node, || rules::invalid(self.writer, v4))??;
            ensure!(
                invalid == 0,
                "node {node} dropped {invalid} packets as invalid\n{}",
                self.fabric.counters()
            );
        }
        Ok(())
    }
}

fn everything(writer: Writer, v4: bool) -> Result<()> {
    let cluster = Cluster::new(writer, v4)?;
    cluster.services()?;
    cluster.direct(false)?;
    cluster.services().context("once more")?;
    cluster.intact()?;
    let cluster = cluster.with_fast_udp()?;
    cluster.services().context("with fast UDP")?;
    cluster.direct(true).context("with fast UDP")?;
    cluster.services().context("with fast UDP once more")?;
    cluster.intact()
}

#[test]
fn services_by_nft() -> Result<()> {
    everything(Writer::Nft, true)?;
    everything(Writer::Nft, false)
}

#[test]
fn services_by_iptables_over_nftables() -> Result<()> {
    everything(Writer::IptablesNft, true)?;
    everything(Writer::IptablesNft, false)
}

#[test]
fn services_by_iptables_of_old() -> Result<()> {
    everything(Writer::IptablesLegacy, true)?;
    everything(Writer::IptablesLegacy, false)
}

/// Does something while the agents do what they do every few seconds.
fn while_sweeping(fabric: &Fabric, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sweeping = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                for node in [0, 1] {
                    let now = coil_agent::datapath::monotonic_seconds();
                    fabric.with_datapath(node, |datapath| Ok(datapath.sweep(now).map(drop)?))?;
                }
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        sweeping.join().expect("no panic")?;
        worked
    })
}

/// One source port, a connection through the service and one directly to the pod behind it, in either order:
/// both work, and are two connections.
fn one_port_twice(v4: bool) -> Result<()> {
    let cluster = Cluster::new(Writer::Nft, v4)?;
    let fabric = &cluster.fabric;
    for (pod, port, first) in [(Pod::Remote, port::OTHER_NODE, 41000), (Pod::Client, port::SAME_NODE, 42000)]
    {
        let server = Lines::start(fabric, pod, POD_PORT)?;
        let service = SocketAddr::new(cluster.service, port);

        let mut by_service = Talk::open(fabric, Pod::Plain, first, service)?;
        by_service.say("by the service\n")?;
        let mut direct =
            Talk::open(fabric, Pod::Plain, first, server.address).context("after the service")?;
        for _ in 0..3 {
            direct.say("directly\n")?;
            by_service.say("by the service\n")?;
        }
        direct.close()?;
        by_service.say("and after\n")?;

        let mut direct = Talk::open(fabric, Pod::Plain, first + 1, server.address)?;
        direct.say("directly\n")?;
        while_sweeping(fabric, || {
            let mut by_service = Talk::open(fabric, Pod::Plain, first + 1, service)
                .with_context(|| format!("after the direct one\n{}", fabric.counters()))?;
            for _ in 0..3 {
                by_service.say("by the service\n")?;
                direct.say("directly\n").context("the direct one suffers")?;
            }
            Ok(())
        })?;
        ensure!(fabric.count(Reason::FlowClash) > 0, "the second connection met no fast flow");
    }
    cluster.intact()
}

#[test]
fn one_source_port_for_a_service_and_its_pod() -> Result<()> {
    one_port_twice(true)?;
    one_port_twice(false)
}

/// An Egress that leads to a Service and to the pod behind it, on another node than the gateway. One client goes there by the
/// Service and one directly, from the same port, and in either order: the gateway has one port for both, and each gets its own
/// answers.
fn by_a_gateway(v4: bool) -> Result<()> {
    let cluster = Cluster::new(Writer::Nft, v4)?;
    let fabric = &cluster.fabric;
    let backend = fabric.address(Pod::Plain);
    for node in [0, 1] {
        let mut desired = fabric.stated(node);
        desired.ranges =
            desired.pools.iter().copied().chain([cluster.service.into()]).map(|net| (net, true)).collect();
        for to in [backend, cluster.service] {
            desired.policies.insert((1, to.into()), Some(1));
        }
        fabric.with_datapath(node, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;
    }
    let server = Lines::start(fabric, Pod::Plain, POD_PORT)?;
    let service = SocketAddr::new(cluster.service, port::HAIRPIN);
    let before = fabric.count(Reason::OutByStack);
    for (number, first_by_service) in [true, false].into_iter().enumerate() {
        for (client, other) in [(Pod::Client, Pod::Neighbour), (Pod::Neighbour, Pod::Client)] {
            let from = 43000 + 10 * u16::try_from(number)? + u16::from(client == Pod::Client);
            let (one, two) =
                if first_by_service { (service, server.address) } else { (server.address, service) };
            let what = || format!("{client:?} to {one}, then {other:?} to {two}\n{}", fabric.counters());
            let mut first = Talk::open(fabric, client, from, one).with_context(what)?;
            first.say("the first\n").with_context(what)?;
            let mut second = Talk::open(fabric, other, from, two).with_context(what)?;
            for _ in 0..3 {
                second.say("the second\n").with_context(what)?;
                first.say("the first\n").with_context(what)?;
            }
            second.close()?;
            first.say("and after\n").with_context(what)?;
            first.close()?;
        }
    }
    let by_stack = fabric.count(Reason::OutByStack) - before;
    ensure!(
        by_stack >= 8 * 6,
        "{by_stack} packets of the gateway passed its node's stack\n{}",
        fabric.counters()
    );
    cluster.intact()
}

#[test]
fn one_port_of_a_gateway_for_a_service_and_its_pod() -> Result<()> {
    by_a_gateway(true)?;
    by_a_gateway(false)
}
