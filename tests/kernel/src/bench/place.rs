//! The places between which traffic is measured.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use coil_agent::datapath::{Datapath, Desired, LocalPod};
use coil_kernel_tests::{
    MARK, Pins,
    rules::{self, Front, Service, Writer},
};
use coil_netns::NetNs;
use ipnet::IpNet;

/// What forwards between the pods of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The kernel with nothing but routes.
    Kernel,
    /// The kernel with connection tracking and kube-proxy's rules for [`SERVICES`].
    KernelWithServices,
    /// The programs, beside the same rules.
    Ebpf,
}

/// Services that kube-proxy has rules for.
const SERVICES: u16 = 1000;
/// Interface index of the link between the nodes.
pub(crate) const UPLINK: u32 = 2;
/// Interface index of the first pod's link on its node.
const FIRST_POD: u32 = 10;

/// A network namespace that ends with this.
pub(crate) struct Space(NetNs);

impl Space {
    pub(crate) fn new(name: &str) -> Result<Self> {
        std::fs::create_dir_all("/run/netns").context("cannot make /run/netns")?;
        let path = PathBuf::from(format!("/run/netns/coil-bench-{}-{name}", std::process::id()));
        let space = Self(NetNs::create(path)?);
        space.ip("link set lo up")?;
        // Some rounds of connections are more than there are ports, and each port waits for a minute: whoever searches for
        // one of the last free ones measures that.
        space.run(|| {
            std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")
        })??;
        Ok(space)
    }

    pub(crate) const fn netns(&self) -> &NetNs {
        &self.0
    }

    pub(crate) fn file(&self) -> String {
        self.0.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.0.run(work)?)
    }

    pub(crate) fn ip(&self, arguments: &str) -> Result<()> {
        let output = self.run(|| Command::new("ip").args(arguments.split_whitespace()).output())?;
        let output = output.context("cannot run ip (package iproute2)")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: ip {arguments}: {}", self.file(), error.trim());
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = NetNs::remove(self.0.path());
    }
}

/// One end of a measurement.
pub(crate) struct End {
    pub(crate) space: Space,
    pub(crate) address: IpAddr,
}

/// Two ends joined by nothing but a veth pair.
pub(crate) fn bare(v4: bool) -> Result<[End; 2]> {
    let (left, right) = (Space::new("left")?, Space::new("right")?);
    left.ip(&format!("link add eth0 type veth peer name eth0 netns {}", right.file()))?;
    let addresses = [address(v4, 9, 1), address(v4, 9, 2)];
    for (space, address) in [(&left, addresses[0]), (&right, addresses[1])] {
        space.ip("link set eth0 up")?;
        space.ip(&format!("addr add {address}/{} dev eth0 {}", if v4 { 24 } else { 120 }, nodad(v4)))?;
    }
    let [one, two] = addresses;
    Ok([End { space: left, address: one }, End { space: right, address: two }])
}

/// Two nodes with three pods: two on the first, one on the second.
pub(crate) struct Cluster {
    pub(crate) pods: [End; 3],
    datapaths: Vec<(Datapath, Pins)>,
    _nodes: [Space; 2],
}

impl Cluster {
    pub(crate) fn new(name: &str, by: By, v4: bool) -> Result<Self> {
        let nodes = [Space::new(&format!("{name}-a"))?, Space::new(&format!("{name}-b"))?];
        nodes[0].ip(&format!(
            "link add eth0 index {UPLINK} type veth peer name eth0 index {UPLINK} netns {}",
            nodes[1].file()
        ))?;
        for (here, node) in (1..).zip(&nodes) {
            forwards(node)?;
            node.ip("link set eth0 up")?;
            node.ip(&format!(
                "addr add {}/{} dev eth0 {}",
                address(v4, 8, here),
                if v4 { 24 } else { 120 },
                nodad(v4)
            ))?;
        }
        for (here, node) in nodes.iter().enumerate() {
            let other = 1 - here;
            let block = block(v4, u8::try_from(other)?)?;
            node.ip(&format!("route add {block} via {}", address(v4, 8, u8::try_from(other)? + 1)))?;
        }
        let pod = |number: u8, node: usize| -> Result<End> {
            let (space, address) =
                (Space::new(&format!("{name}-pod{number}"))?, address(v4, u8::try_from(node)?, number));
            join(&nodes[node], &space, number, address, v4)?;
            Ok(End { space, address })
        };
        let pods = [pod(1, 0)?, pod(2, 0)?, pod(3, 1)?];
        if by != By::Kernel {
            with_services(&nodes, &[pods[0].address, pods[1].address, pods[2].address], &[], v4)?;
        }
        let mut datapaths = vec![];
        if by == By::Ebpf {
            for (index, node) in nodes.iter().enumerate() {
                let pins = Pins::new()?;
                let config = pins.config();
                let desired = desired(&pods, index, v4)?;
                let datapath = node.run(|| -> Result<_> {
                    let mut datapath = Datapath::open(&config)?;
                    datapath.apply(&desired)?;
                    Ok(datapath)
                })??;
                datapaths.push((datapath, pins));
            }
        }
        Ok(Self { pods, datapaths, _nodes: nodes })
    }

    /// Packets that the programs sent on, on both nodes.
    pub(crate) fn fast(&self) -> Result<u64> {
        fast(self.datapaths.iter().map(|(datapath, _)| datapath))
    }
}

pub(crate) fn join(node: &Space, pod: &Space, number: u8, address: IpAddr, v4: bool) -> Result<()> {
    let index = FIRST_POD + u32::from(number);
    node.ip(&format!(
        "link add pod{number} index {index} address {} type veth peer name eth0 address {} netns {}",
        mac(1, number),
        mac(2, number),
        pod.file()
    ))?;
    node.ip(&format!("link set pod{number} up"))?;
    pod.ip("link set eth0 up")?;
    node.ip(&format!("route add {address} dev pod{number}"))?;
    node.ip(&format!("neigh replace {address} lladdr {} dev pod{number} nud permanent", mac(2, number)))?;
    let (router, len) = if v4 { ("169.254.1.1", 32) } else { ("fe80::1", 128) };
    pod.ip(&format!("addr add {address}/{len} dev eth0 {}", nodad(v4)))?;
    pod.ip(&format!("neigh replace {router} lladdr {} dev eth0 nud permanent", mac(1, number)))?;
    if v4 {
        pod.ip(&format!("route add {router} dev eth0 scope link"))?;
    }
    pod.ip(&format!("{} route add default via {router} dev eth0", if v4 { "-4" } else { "-6" }))
}

pub(crate) const fn nodad(v4: bool) -> &'static str {
    if v4 { "" } else { "nodad" }
}

fn mac(side: u8, number: u8) -> String {
    format!("02:00:00:00:0{side}:0{number}")
}

/// Makes a node forward.
pub(crate) fn forwards(node: &Space) -> Result<()> {
    node.run(|| -> Result<()> {
        for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{sysctl}"), "1")?;
        }
        Ok(())
    })?
}

/// A whole network.
pub(crate) fn block(v4: bool, network: u8) -> Result<IpNet> {
    Ok(IpNet::new(address(v4, network, 0), if v4 { 24 } else { 120 })?)
}

/// Packets that the programs of some nodes sent on.
pub(crate) fn fast<'a>(datapaths: impl Iterator<Item = &'a Datapath>) -> Result<u64> {
    let mut fast = 0;
    for datapath in datapaths {
        let readings = datapath.counters()?;
        let sent = readings.iter().filter(|r| r.reason.class() == coil_packet::Class::Sent);
        fast += sent.map(|r| r.packets).sum::<u64>();
    }
    Ok(fast)
}

/// Networks 0 and 1 are the nodes' blocks, 7 is the world, 8 is between the nodes, 9 is of the bare pair.
pub(crate) fn address(v4: bool, network: u8, host: u8) -> IpAddr {
    if v4 {
        [10, 64, network, host].into()
    } else {
        [0xfd64, 0, 0, 0, 0, 0, 0, u16::from(network) << 8 | u16::from(host)].into()
    }
}

/// Gives nodes connection tracking and kube-proxy's rules for [`SERVICES`] of these pods, and `others`.
pub(crate) fn with_services(nodes: &[Space], pods: &[IpAddr], others: &[Service], v4: bool) -> Result<()> {
    let service = |(number, pod): (u16, &IpAddr)| {
        let [high, low] = number.to_be_bytes();
        let front = if v4 { [10, 96, high, low].into() } else { [0xfd96, 0, 0, 0, 0, 0, 0, number].into() };
        Service {
            front: Front::Cluster(front),
            port: 80,
            protocol: "tcp",
            endpoint: SocketAddr::new(*pod, 8080),
        }
    };
    let mut services: Vec<Service> = (0..SERVICES).zip(pods.iter().cycle()).map(service).collect();
    services.extend(others);
    nodes.iter().try_for_each(|node| node.run(|| rules::install(Writer::Nft, v4, &services))?)
}

/// A pod as the agent states it.
pub(crate) fn local_pod(number: u8, address: IpAddr) -> LocalPod {
    LocalPod {
        name: format!("bench/pod{number}"),
        addresses: vec![address],
        ifindex: FIRST_POD + u32::from(number),
        mac: [2, 0, 0, 0, 2, number],
        host_mac: [2, 0, 0, 0, 1, number],
        mtu: 1500,
        policy: 0,
        client: false,
        originating_only: false,
        kernel_client: false,
        gateway: false,
        new_clients: false,
        kernel_gateway: false,
        by_kernel: false,
        shaped: false,
    }
}

fn desired(pods: &[End; 3], node: usize, v4: bool) -> Result<Desired> {
    let on = |pod: usize| usize::from(pod == 2) == node;
    let local = (0..3).filter(|pod| on(*pod)).map(|pod| {
        let number = u8::try_from(pod + 1).unwrap_or_default();
        local_pod(number, pods[pod].address)
    });
    // The blocks alone: what is between the nodes is no pod's.
    Ok(Desired {
        pools: [block(v4, 0)?, block(v4, 1)?].into(),
        pods: local.collect(),
        uplinks: [UPLINK].into(),
        forward: true,
        fast_udp: true,
        fou_port: 5555,
        mark: MARK,
        ..Desired::default()
    })
}
