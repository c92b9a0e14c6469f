//! Two nodes and a world in network namespaces: the topology of `tests/journey.rs`.

mod stated;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::IpAddr,
    path::PathBuf,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use coil_agent::datapath::{Datapath, DatapathConfig, Desired};
use coil_netns::NetNs;
use coil_packet::{Class, Reason};

use crate::Pins;

/// Someone who sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pod {
    /// An egress client on node a.
    Client,
    /// A pod that is nothing special, on node a.
    Plain,
    /// The gateway pod, on node b.
    Gateway,
    /// A pod that is nothing special, on node b.
    Remote,
    /// An egress client on the gateway's node.
    Neighbour,
    /// The world.
    World,
}

/// Names of namespaces that are no pods.
const NODES: [&str; 2] = ["a", "b"];
const SWITCH: &str = "switch";

/// All pods with their node (none for the world).
const PODS: [(Pod, &str, Option<usize>, u8); 6] = [
    (Pod::Client, "client", Some(0), 1),
    (Pod::Plain, "plain", Some(0), 2),
    (Pod::Gateway, "gateway", Some(1), 1),
    (Pod::Remote, "remote", Some(1), 2),
    (Pod::Neighbour, "neighbour", Some(1), 3),
    (Pod::World, "world", None, 1),
];

const UPLINK: u32 = 2;
/// Where the local network is one of several on a wire.
const VLAN: u16 = 10;
/// The world's number on the local network.
const ROUTER: u8 = 254;

/// The namespaces, and the datapath of each node.
pub struct Fabric {
    prefix: String,
    v4: bool,
    spaces: BTreeMap<&'static str, NetNs>,
    datapaths: Vec<Mutex<Option<Datapath>>>,
    pins: Vec<Pins>,
    /// Sizes of maps that the first agents make.
    entries: Vec<(&'static str, u32)>,
}

impl Fabric {
    /// Makes everything of one family.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses something.
    pub fn new(v4: bool) -> Result<Self> {
        Self::make(v4, [true; 2], vec![], false)
    }

    /// The same, with a datapath on those nodes that say so.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_agents(v4: bool, agents: [bool; 2]) -> Result<Self> {
        Self::make(v4, agents, vec![], false)
    }

    /// The same with a VLAN of the local network as everybody's link.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn over_vlan(v4: bool) -> Result<Self> {
        Self::make(v4, [true; 2], vec![], true)
    }

    /// The same with agents whose maps have other sizes; those who replace them have this version's.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_another_version(v4: bool, entries: Vec<(&'static str, u32)>) -> Result<Self> {
        Self::make(v4, [true; 2], entries, false)
    }

    fn make(v4: bool, agents: [bool; 2], entries: Vec<(&'static str, u32)>, vlan: bool) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let pins = vec![Pins::new()?, Pins::new()?];
        let prefix = format!("coil-{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut fabric = Self { prefix, v4, spaces: BTreeMap::new(), datapaths: vec![], pins, entries };
        std::fs::create_dir_all("/run/netns").context("cannot make /run/netns")?;
        let names = PODS.map(|(_, name, ..)| name);
        for name in [SWITCH].into_iter().chain(NODES).chain(names) {
            let path = PathBuf::from("/run/netns").join(format!("{}{name}", fabric.prefix));
            fabric.spaces.insert(name, NetNs::create(path)?);
        }
        // The programs have the number in them. By the kernel alone, links of modules may have it.
        fabric.make_switch(vlan, agents.contains(&true))?;
        for (index, node) in NODES.into_iter().enumerate() {
            fabric.make_node(index, node)?;
        }
        fabric.make_world()?;
        for (index, node) in NODES.into_iter().enumerate() {
            let open = || agents[index].then(|| fabric.open(index)).transpose();
            let datapath = fabric.space(node)?.run(open)??;
            fabric.datapaths.push(Mutex::new(datapath));
        }
        Ok(fabric)
    }

    /// Runs code inside a pod.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, pod: Pod, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.space(name(pod))?.run(work)?)
    }

    /// The address of a pod.
    #[must_use]
    pub fn address(&self, pod: Pod) -> IpAddr {
        let (.., node, host) = entry(pod);
        match (self.v4, node) {
            (true, Some(node)) => [10, 64, u8::from(node == 1), host].into(),
            (true, None) => [198, 51, 100, host].into(),
            (false, Some(node)) => {
                [0xfd64, 0, 0, 0, 0, 0, 0, if node == 1 { 0x100 } else { 0 } | u16::from(host)].into()
            }
            (false, None) => [0x2001, 0xdb8, 9, 0, 0, 0, 0, u16::from(host)].into(),
        }
    }

    /// The address of a node on the local network.
    #[must_use]
    pub fn node_address(&self, node: usize) -> IpAddr {
        self.lan_address(u8::from(node == 1) + 1)
    }

    /// The address that the world has on the local network.
    #[must_use]
    pub fn router_address(&self) -> IpAddr {
        self.lan_address(ROUTER)
    }

    fn lan_address(&self, host: u8) -> IpAddr {
        if self.v4 {
            [172, 18, 0, host].into()
        } else {
            // As `lan` writes it: the digits of the number.
            let digits = u16::from_str_radix(&host.to_string(), 16).unwrap_or_default();
            [0xfd00, 0x18, 0, 0, 0, 0, 0, digits].into()
        }
    }

    /// True for IPv4.
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.v4
    }

    /// The namespace of a pod.
    ///
    /// # Errors
    /// When there is none.
    pub fn netns(&self, pod: Pod) -> Result<&NetNs> {
        self.space(name(pod))
    }

    /// The MAC addresses of a pod's link: of the host's side, and of its own.
    #[must_use]
    pub fn macs(&self, pod: Pod) -> ([u8; 6], [u8; 6]) {
        (host_mac(pod), pod_mac(pod))
    }

    /// Runs `ip` inside a pod.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip_in(&self, pod: Pod, arguments: &str) -> Result<()> {
        self.ip(name(pod), arguments)
    }

    /// Runs `ip` on a node.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip_on(&self, node: usize, arguments: &str) -> Result<()> {
        self.ip(NODES[node], arguments)
    }

    /// Runs code on a node.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn on_node<T: Send>(&self, node: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.space(NODES[node])?.run(work)?)
    }

    /// Does something with a node's datapath, on that node.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `work` fails with.
    pub fn with_datapath<T: Send>(
        &self,
        node: usize,
        work: impl FnOnce(&mut Datapath) -> Result<T> + Send,
    ) -> Result<T> {
        self.on_node(node, || {
            let mut datapath =
                self.datapaths[node].lock().expect("no test panics with a datapath in its hands");
            work(datapath.as_mut().context("the node's agent has ended")?)
        })?
    }

    fn open(&self, node: usize) -> Result<Datapath> {
        let config = DatapathConfig { entries: self.entries.clone(), ..self.pins[node].config() };
        let mut datapath = Datapath::open(&config)?;
        datapath.apply(&self.desired(node))?;
        Ok(datapath)
    }

    /// The agent of a node ends, `meanwhile` happens, and another takes over with `desired`.
    ///
    /// # Errors
    /// When the kernel refuses, or what `meanwhile` fails with.
    pub fn replace_agent(
        &self,
        node: usize,
        desired: &Desired,
        meanwhile: impl FnOnce() -> Result<()> + Send,
    ) -> Result<()> {
        self.on_node(node, || {
            let mut datapath =
                self.datapaths[node].lock().expect("no test panics with a datapath in its hands");
            *datapath = None;
            meanwhile()?;
            let mut next = Datapath::open(&self.pins[node].config())?;
            next.apply(desired)?;
            *datapath = Some(next);
            Ok(())
        })?
    }

    /// The directory of a node's pinned maps.
    #[must_use]
    pub fn maps(&self, node: usize) -> PathBuf {
        self.pins[node].config().pin_root.join("maps")
    }

    /// The state of a node as it was stated, for a change of it.
    #[must_use]
    pub fn stated(&self, node: usize) -> Desired {
        self.desired(node)
    }

    /// Sends an echo request and waits for the reply.
    ///
    /// # Errors
    /// When none comes.
    pub fn ping(&self, from: Pod, to: Pod) -> Result<()> {
        let to = self.address(to);
        let output = self.inside(from, || {
            Command::new("ping").args(["-c", "2", "-i", "0.2", "-W", "5", &to.to_string()]).output()
        })?;
        let output = output.context("cannot run ping (package iputils-ping)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{from:?} pings {to}: {text}\n{}", self.counters());
        Ok(())
    }

    /// Makes a pod's routes as long as the link, as if nobody had told it of the tunnel.
    ///
    /// # Errors
    /// When the route cannot be replaced.
    pub fn forget_mtu(&self, pod: Pod) -> Result<()> {
        let (family, router) = (self.family(), self.router());
        self.ip(name(pod), &format!("{family} route replace default via {router} dev eth0"))
    }

    /// Counters of all nodes.
    #[must_use]
    pub fn readings(&self) -> Vec<(Reason, u64)> {
        let readings = self.datapaths.iter().flat_map(|datapath| {
            let datapath = datapath.lock().expect("no test panics with a datapath in its hands");
            datapath.as_ref().and_then(|datapath| datapath.counters().ok()).unwrap_or_default()
        });
        readings.map(|reading| (reading.reason, reading.packets)).collect()
    }

    /// Packets with a reason, on all nodes.
    #[must_use]
    pub fn count(&self, reason: Reason) -> u64 {
        self.readings().iter().filter(|(r, _)| *r == reason).map(|(_, n)| n).sum()
    }

    /// The counters that moved, for messages.
    #[must_use]
    pub fn counters(&self) -> String {
        let mut text = String::new();
        for (reason, packets) in self.readings() {
            if packets > 0 {
                let class: Class = reason.class();
                let _ = writeln!(text, "  {} {}: {packets}", class.name(), reason.name());
            }
        }
        text
    }

    fn space(&self, name: &str) -> Result<&NetNs> {
        self.spaces.get(name).with_context(|| format!("no namespace {name}"))
    }

    fn ip(&self, space: &str, arguments: &str) -> Result<()> {
        let output = self.space(space)?.run(|| Command::new("ip").args(arguments.split(' ')).output())?;
        let output = output.context("cannot run ip (package iproute2)")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{space}: ip {arguments}: {}", error.trim());
        Ok(())
    }

    const fn family(&self) -> &'static str {
        if self.v4 { "-4" } else { "-6" }
    }

    const fn router(&self) -> &'static str {
        if self.v4 { "169.254.1.1" } else { "fe80::1" }
    }

    /// The host route and, where there is one, the prefix on the local network.
    fn lan(&self, host: u8) -> String {
        if self.v4 { format!("172.18.0.{host}") } else { format!("fd00:18::{host}") }
    }

    fn add_lan_address(&self, space: &str, host: u8) -> Result<()> {
        let (len, more) = if self.v4 { (24, "") } else { (64, " nodad") };
        self.ip(space, &format!("{} addr add {}/{len} dev eth0{more}", self.family(), self.lan(host)))
    }

    fn make_switch(&self, vlan: bool, numbered: bool) -> Result<()> {
        self.ip(SWITCH, "link add br0 type bridge")?;
        self.ip(SWITCH, "link set br0 up")?;
        for (port, space) in NODES.into_iter().chain([name(Pod::World)]).enumerate() {
            let there = format!("{}{space}", self.prefix);
            // A number of its own: the first free one would be the uplink's.
            let peer = match (vlan, numbered) {
                (true, _) => "trunk index 99".to_owned(),
                (false, true) => format!("eth0 index {UPLINK}"),
                (false, false) => "eth0".to_owned(),
            };
            self.ip(
                SWITCH,
                // Before 6.14 a peer's number counts only when its other side has one, too.
                &format!(
                    "link add name sw-{space} index {} master br0 type veth peer name {peer} netns {there}",
                    100 + port
                ),
            )?;
            self.ip(SWITCH, &format!("link set sw-{space} up"))?;
            if vlan {
                self.ip(space, "link set trunk up")?;
                self.ip(space, &format!("link add link trunk name eth0 index {UPLINK} type vlan id {VLAN}"))?;
            }
            self.ip(space, "link set eth0 up")?;
            self.ip(space, "link set lo up")?;
        }
        Ok(())
    }

    fn make_node(&self, index: usize, node: &str) -> Result<()> {
        let family = self.family();
        self.space(node)?.run(|| -> Result<()> {
            for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{sysctl}"), "1")?;
            }
            Ok(())
        })??;
        let here = if index == 0 { 1 } else { 2 };
        self.add_lan_address(node, here)?;
        self.ip(node, &format!("{family} route add default via {} dev eth0", self.lan(ROUTER)))?;
        let other = match (self.v4, index) {
            (true, 0) => "10.64.1.0/24",
            (true, _) => "10.64.0.0/24",
            (false, 0) => "fd64::100/120",
            (false, _) => "fd64::/120",
        };
        self.ip(node, &format!("{family} route add {other} via {} dev eth0", self.lan(3 - here)))?;
        for (pod, name, ..) in PODS.into_iter().filter(|(_, _, at, _)| *at == Some(index)) {
            self.make_pod(node, pod, name)?;
        }
        Ok(())
    }

    fn make_pod(&self, node: &str, pod: Pod, name: &str) -> Result<()> {
        let (family, router, address) = (self.family(), self.router(), self.address(pod));
        let (index, there) = (link(pod), format!("{}{name}", self.prefix));
        self.ip(
            node,
            &format!(
                "link add name {name} index {index} address {} type veth peer name eth0 address {} netns {there}",
                mac(host_mac(pod)),
                mac(pod_mac(pod))
            ),
        )?;
        self.ip(node, &format!("link set {name} up"))?;
        self.ip(node, &format!("{family} route add {address} dev {name}"))?;
        self.ip(name, "link set lo up")?;
        self.ip(name, "link set eth0 up")?;
        let (len, more, overhead) = if self.v4 { (32, "", 28) } else { (128, " nodad", 48) };
        self.ip(name, &format!("{family} addr add {address}/{len} dev eth0{more}"))?;
        self.ip(name, &format!("{family} neigh add {router} lladdr {} dev eth0", mac(host_mac(pod))))?;
        if self.v4 {
            self.ip(name, &format!("-4 route add {router} dev eth0 scope link"))?;
        }
        let pods = if self.v4 { "10.64.0.0/16" } else { "fd64::/112" };
        self.ip(name, &format!("{family} route add {pods} via {router} dev eth0"))?;
        let mtu = if matches!(pod, Pod::Client | Pod::Neighbour) { 1500 - overhead } else { 1500 };
        self.ip(name, &format!("{family} route add default via {router} dev eth0 mtu {mtu}"))
    }

    fn make_world(&self) -> Result<()> {
        let (family, world, len) = (self.family(), name(Pod::World), if self.v4 { 32 } else { 128 });
        self.add_lan_address(world, ROUTER)?;
        self.ip(world, &format!("{family} addr add {}/{len} dev lo", self.address(Pod::World)))?;
        let gateway = self.address(Pod::Gateway);
        self.ip(world, &format!("{family} route add {gateway} via {} dev eth0", self.lan(2)))?;
        Ok(())
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        for space in self.spaces.values() {
            let _ = NetNs::remove(space.path());
        }
    }
}

fn entry(pod: Pod) -> (Pod, &'static str, Option<usize>, u8) {
    PODS.into_iter().find(|entry| entry.0 == pod).expect("PODS has every pod")
}

fn name(pod: Pod) -> &'static str {
    entry(pod).1
}

/// The host side of a pod's veth.
fn link(pod: Pod) -> u32 {
    10 + pod as u32
}

fn pod_mac(pod: Pod) -> [u8; 6] {
    [2, 0, 0, 0, 2, pod as u8]
}

fn host_mac(pod: Pod) -> [u8; 6] {
    [2, 0, 0, 0, 1, pod as u8]
}

fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
