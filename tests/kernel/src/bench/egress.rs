//! A client, a gateway and the world, between which egress is measured.
//!
//! ```text
//! client ── node a ── node b ── world
//!                       │
//!                    gateway
//! ```

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use coil_agent::{
    datapath::{Datapath, Desired, Egress, EgressId, Gateway, LocalPod, Reading},
    egress::{
        kernel::{
            apply::{self, Common},
            nft,
            plan::{self, Via, Wanted},
        },
        support::Support,
    },
};
use coil_kernel_tests::{
    MARK, Pins,
    rules::{Front, Service},
};
use coil_packet::{Class, Reason, abi::egress_flag};
use ipnet::IpNet;

use crate::place::{End, Space, UPLINK, address, block, forwards, join, local_pod, nodad, with_services};

/// What carries a client's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Routes alone, and masquerading in the gateway pod: the least that the kernel can do.
    KernelWithoutTunnel,
    /// FOU and masquerading on nodes without any rule, where the client knows the gateway's address. No cluster has that.
    KernelFouDirect,
    /// The same as Coil does it without eBPF: the client sends to the Egress's Service, which kube-proxy's rules turn into
    /// the gateway.
    KernelFou,
    /// The programs, beside the same rules.
    Ebpf,
}

impl By {
    /// Whether it needs the modules of FOU.
    pub(crate) fn fou(self) -> bool {
        matches!(self, Self::KernelFou | Self::KernelFouDirect)
    }
}

/// Index of the link to the world.
const OUTSIDE: u32 = 3;
/// Numbers of the pods.
const CLIENT: u8 = 1;
const GATEWAY: u8 = 2;
/// Network of the world: see [`address`].
const WORLD: u8 = 7;
const WORLD_MAC: &str = "02:00:00:00:07:02";
const COMMON: Common = Common { port: 5555 };
const EGRESS: EgressId = 1;

/// The namespaces of one path.
pub(crate) struct Journey {
    pub(crate) client: End,
    pub(crate) world: End,
    /// An address beside the world's, where datagrams come to nothing.
    pub(crate) nobody: IpAddr,
    gateway: End,
    nodes: [Space; 2],
    datapaths: Vec<(Datapath, Pins)>,
}

impl Journey {
    pub(crate) fn new(name: &str, by: By, v4: bool) -> Result<Self> {
        let nodes = [Space::new(&format!("{name}-a"))?, Space::new(&format!("{name}-b"))?];
        let end = |name: &str, address| -> Result<End> { Ok(End { space: Space::new(name)?, address }) };
        let client = end(&format!("{name}-client"), address(v4, 0, CLIENT))?;
        let gateway = end(&format!("{name}-gateway"), address(v4, 1, GATEWAY))?;
        let world = end(&format!("{name}-world"), address(v4, WORLD, 2))?;
        nodes[0].ip(&format!(
            "link add eth0 index {UPLINK} type veth peer name eth0 index {UPLINK} netns {}",
            nodes[1].file()
        ))?;
        nodes[1].ip(&format!(
            "link add eth1 index {OUTSIDE} type veth peer name eth0 address {WORLD_MAC} netns {}",
            world.space.file()
        ))?;
        let (len, nodad) = (if v4 { 24 } else { 120 }, nodad(v4));
        for (here, node) in (1..).zip(&nodes) {
            forwards(node)?;
            node.ip("link set eth0 up")?;
            node.ip(&format!("addr add {}/{len} dev eth0 {nodad}", address(v4, 8, here)))?;
        }
        nodes[1].ip("link set eth1 up")?;
        nodes[1].ip(&format!("addr add {}/{len} dev eth1 {nodad}", address(v4, WORLD, 1)))?;
        world.space.ip("link set eth0 up")?;
        world.space.ip(&format!("addr add {}/{len} dev eth0 {nodad}", world.address))?;
        let nobody = address(v4, WORLD, 9);
        nodes[1].ip(&format!("neigh replace {nobody} lladdr {WORLD_MAC} dev eth1 nud permanent"))?;
        // The world knows the gateway alone.
        world.space.ip(&format!("route add {} via {}", gateway.address, address(v4, WORLD, 1)))?;
        nodes[0].ip(&format!("route add {} via {}", block(v4, 1)?, address(v4, 8, 2)))?;
        nodes[1].ip(&format!("route add {} via {}", block(v4, 0)?, address(v4, 8, 1)))?;
        join(&nodes[0], &client.space, CLIENT, client.address, v4)?;
        join(&nodes[1], &gateway.space, GATEWAY, gateway.address, v4)?;
        let mut journey = Self { client, world, nobody, gateway, nodes, datapaths: vec![] };
        if matches!(by, By::KernelFou | By::Ebpf) {
            let pods = [journey.client.address, journey.gateway.address];
            with_services(&journey.nodes, &pods, &[journey.service(v4)], v4)?;
        }
        match by {
            By::KernelWithoutTunnel => journey.without_tunnel(v4)?,
            By::KernelFou => journey.with_fou(service(v4), v4)?,
            By::KernelFouDirect => journey.with_fou(journey.gateway.address, v4)?,
            By::Ebpf => journey.with_programs(v4)?,
        }
        Ok(journey)
    }

    /// The world's network, which is a client's destination.
    fn destination(v4: bool) -> Result<IpNet> {
        block(v4, WORLD)
    }

    fn without_tunnel(&self, v4: bool) -> Result<()> {
        let (to, family) = (Self::destination(v4)?, if v4 { "-4" } else { "-6" });
        let [a, b] = &self.nodes;
        a.ip(&format!("route add {to} via {}", address(v4, 8, 2)))?;
        // What comes from the other node goes through the gateway pod.
        b.ip(&format!("{family} rule add iif eth0 to {to} lookup 100 pref 100"))?;
        b.ip(&format!(
            "{family} route add {to} dev pod{GATEWAY} table 100 {}",
            via(v4, self.gateway.address)
        ))?;
        let own = self.gateway.address;
        self.gateway.space.run(|| -> Result<()> {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
            nft::ensure(own, "eth0", None, &nft::Links::default()).context("cannot masquerade")
        })?
    }

    /// The Egress's Service.
    fn service(&self, v4: bool) -> Service {
        let (front, endpoint) =
            (Front::Cluster(service(v4)), SocketAddr::new(self.gateway.address, COMMON.port));
        Service { front, port: COMMON.port, protocol: "udp", endpoint }
    }

    /// The client's tunnel leads to `remote`.
    fn with_fou(&self, remote: IpAddr, v4: bool) -> Result<()> {
        if let Some(missing) = Support::with_modules().missing() {
            bail!("no egress by the kernel: {missing}");
        }
        let (to, client, gateway) = (Self::destination(v4)?, self.client.address, self.gateway.address);
        let policy: BTreeMap<IpNet, Option<EgressId>> = [(to, Some(EGRESS))].into();
        let (service, gateways) = (vec![remote], vec![gateway]);
        let via = Via { service, gateways, sport_auto: false, originating_only: false };
        let mut wanted = Wanted::default();
        plan::client(&mut wanted, &[client], &policy, &[(EGRESS, via)].into());
        apply(&self.client.space, &wanted)?;
        let mut wanted = Wanted::default();
        plan::gateway(&mut wanted, &[gateway], "eth0", &[client], Some(false));
        apply(&self.gateway.space, &wanted)
    }

    fn with_programs(&mut self, v4: bool) -> Result<()> {
        let (to, overhead) = (Self::destination(v4)?, if v4 { 28 } else { 48 });
        let router = if v4 { "169.254.1.1" } else { "fe80::1" };
        self.client.space.ip(&format!("route add {to} via {router} dev eth0 mtu {}", 1500 - overhead))?;
        for (index, node) in self.nodes.iter().enumerate() {
            let pins = Pins::new()?;
            let config = pins.config();
            let desired = self.desired(index, v4)?;
            let datapath = node.run(|| -> Result<_> {
                let mut datapath = Datapath::open(&config)?;
                datapath.apply(&desired)?;
                Ok(datapath)
            })??;
            self.datapaths.push((datapath, pins));
        }
        Ok(())
    }

    fn desired(&self, node: usize, v4: bool) -> Result<Desired> {
        let pod = if node == 0 {
            let pod = local_pod(CLIENT, self.client.address);
            LocalPod { policy: 1, client: true, ..pod }
        } else {
            LocalPod { gateway: true, ..local_pod(GATEWAY, self.gateway.address) }
        };
        let gateways = vec![Gateway { address: self.gateway.address, ready: true }];
        let egress = Egress {
            name: "bench/egress".into(),
            gateways,
            services: vec![],
            sport_auto: false,
            affinity: Some(egress_flag::DEFAULT_AFFINITY),
            originating_only: false,
        };
        Ok(Desired {
            pools: [block(v4, 0)?, block(v4, 1)?].into(),
            pods: vec![pod],
            policies: [((1, Self::destination(v4)?), Some(EGRESS))].into(),
            egresses: [(EGRESS, egress)].into(),
            all_gateways: [self.gateway.address].into(),
            clients: [(self.gateway.address, self.client.address)].into(),
            uplinks: if node == 0 { [UPLINK].into() } else { [UPLINK, OUTSIDE].into() },
            forward: true,
            fou_port: COMMON.port,
            mark: MARK,
            ..Desired::default()
        })
    }

    /// Packets that the programs sent on, on both nodes.
    pub(crate) fn fast(&self) -> Result<u64> {
        crate::place::fast(self.datapaths.iter().map(|(datapath, _)| datapath))
    }
}

impl Journey {
    /// Packets with a reason, on the gateway's node.
    pub(crate) fn count(&self, reason: Reason) -> Result<u64> {
        Ok(self.readings()?.iter().filter(|r| r.reason == reason).map(|r| r.packets).sum())
    }

    /// What was dropped there, for messages.
    pub(crate) fn drops(&self) -> Result<String> {
        let dropped = |r: &Reading| r.packets > 0 && r.reason.class() == Class::Drop;
        let lines = self.readings()?.into_iter().filter(dropped);
        Ok(lines.map(|r| format!("{}: {}", r.reason.name(), r.packets)).collect::<Vec<_>>().join(", "))
    }

    fn readings(&self) -> Result<Vec<Reading>> {
        let (datapath, _) = self.datapaths.last().context("no programs run here")?;
        Ok(datapath.counters()?)
    }

    /// Where the gateway's node has its maps.
    pub(crate) fn maps(&self) -> PathBuf {
        let root = self.datapaths.last().map(|(_, pins)| pins.config().pin_root);
        root.unwrap_or_default().join("maps")
    }
}

/// The address of the Egress's Service, beside those of [`with_services`].
fn service(v4: bool) -> IpAddr {
    if v4 { [10, 96, 255, 1].into() } else { [0xfd96, 0, 0, 0, 0, 0, 0, 0xff01].into() }
}

/// A next hop for a route through a pod.
fn via(v4: bool, pod: IpAddr) -> String {
    if v4 { format!("via {pod} onlink") } else { format!("via {pod}") }
}

fn apply(space: &Space, wanted: &Wanted) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let made = runtime.block_on(apply::apply(space.netns(), "eth0", COMMON, None, wanted));
    made.context("cannot make the inside of a pod")
}
