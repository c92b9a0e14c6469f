//! The node that all cases run on.
//!
//! ```text
//!  11 client 10.64.0.1 ─┐                     ┌─ 172.18.0.2    node with 10.64.1.0/24: pod .1, client .2,
//!  12 plain  10.64.0.2 ─┤ this node ─ uplink ─┤                gateways .9, .10, .11, .13
//!  13 gateway 10.64.0.3 ┘ 172.18.0.1    2     └─ 172.18.0.254  router to the world
//! ```
//!
//! On this node, too: 14 kernel client 10.64.0.4, which has tunnels of its own, and 15 kernel gateway 10.64.0.5, whose own
//! kernel translates what the programs do not, and some of whose clients are being started; 16 is both a gateway 10.64.0.6
//! and a client with tunnels; 17 is a client 10.64.0.7 with a queue on its link. 10.96.0.20 is the Service of Egress 1;
//! 10.96.0.30 is one behind the gateway of this node.
//!
//! IPv6 the same: fd64:: for 10.64., fd00:18:: for 172.18.0., 2001:db8:9:: for 198.51.100.

use std::net::IpAddr;

use coil_packet::abi::cluster_range;

/// Interface indices.
pub const UPLINK: u32 = 2;
/// A link to another node that is no uplink: one without MAC addresses, say.
pub const BESIDE: u32 = 3;
/// The client's veth.
pub const CLIENT: u32 = 11;
/// The plain pod's veth.
pub const PLAIN: u32 = 12;
/// The gateway pod's veth.
pub const GATEWAY: u32 = 13;

/// The kernel client's veth.
pub const KERNEL_CLIENT: u32 = 14;
/// The kernel gateway's veth.
pub const KERNEL_GATEWAY: u32 = 15;

/// The veth of the gateway that is a kernel client.
pub const BOTH: u32 = 16;

/// The veth of the client with a queue on its link.
pub const QUEUED: u32 = 17;

/// MAC address of the router and of the other node.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0xff, 1];

/// MTU of the uplink.
pub const MTU: u32 = 1500;

/// MTU of the client's veth.
pub const CLIENT_MTU: u32 = 1400;

/// MTU of the veth of a pod.
#[must_use]
pub const fn pod_mtu(ifindex: u32) -> u32 {
    if ifindex == CLIENT { CLIENT_MTU } else { MTU }
}

/// An Egress whose clients keep their gateway.
pub const AFFINE: u32 = 5;
/// Seconds that an idle client of it keeps its gateway.
pub const AFFINITY: u32 = 10;
/// An Egress that is originating only.
pub const ORIGINATING: u32 = 6;

/// The Egress with [`Net::service`].
pub const SERVED: u32 = 1;

/// An Egress whose gateway is behind [`BESIDE`].
pub const BESIDE_EGRESS: u32 = 9;
/// An Egress of the kernel gateway.
pub const KERNEL: u32 = 8;

/// Policy of the clients.
pub const POLICY: u32 = 7;

/// MAC address of the host's side of a link.
#[must_use]
pub const fn host_mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, ifindex.to_be_bytes()[3]]
}

/// MAC address of the pod's side of a veth.
#[must_use]
pub const fn pod_mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 2, ifindex.to_be_bytes()[3]]
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// An egress client of this node.
    pub client: IpAddr,
    /// A pod of this node that is nothing special.
    pub plain: IpAddr,
    /// A gateway pod of this node.
    pub gateway: IpAddr,
    /// A client of this node whose own kernel does its egress.
    pub kernel_client: IpAddr,
    /// A gateway of this node whose own kernel translates what the programs do not, and that has new clients.
    pub kernel_gateway: IpAddr,
    /// A gateway of this node that is a client by its own kernel of other gateways.
    pub both: IpAddr,
    /// A client of this node with a queue on its link.
    pub queued: IpAddr,
    /// The Service of an Egress: what clients with tunnels dial.
    pub service: IpAddr,
    /// A Service behind the gateway of this node.
    pub cluster_ip: IpAddr,
    /// A pod of the other node.
    pub remote: IpAddr,
    /// An egress client of the other node.
    pub remote_client: IpAddr,
    /// A gateway of the other node.
    pub remote_gateway: IpAddr,
    /// Another, whose Egress hashes source ports.
    pub auto_gateway: IpAddr,
    /// Behind the remote gateway.
    pub world: IpAddr,
    /// Behind the gateway with hashed source ports.
    pub world_auto: IpAddr,
    /// Behind the gateway of this node.
    pub world_local: IpAddr,
    /// The same, without a route.
    pub world_lost: IpAddr,
    /// Behind an Egress without gateways.
    pub world_none: IpAddr,
    /// Behind the remote gateway, chosen by the client's address.
    pub world_affine: IpAddr,
    /// Behind the remote gateway, for connections that the client begins.
    pub world_originating: IpAddr,
    /// A pod of the other node to which that Egress leads, too.
    pub remote_originating: IpAddr,
    /// Behind the kernel gateway of this node.
    pub world_kernel: IpAddr,
    /// A gateway of the other node that is terminating.
    pub leaving_gateway: IpAddr,
    /// A gateway of the other node, of an Egress that no pod of this node is a client of.
    pub strange_gateway: IpAddr,
    /// Link-local: never egress.
    pub link_local: IpAddr,
    /// A pod, a client and a gateway of a node behind [`BESIDE`].
    pub beside: IpAddr,
    /// The client.
    pub beside_client: IpAddr,
    /// The gateway.
    pub beside_gateway: IpAddr,
    /// Behind that gateway.
    pub world_beside: IpAddr,
    /// A pool address without a route.
    pub lost: IpAddr,
    /// A router between the nodes.
    pub router: IpAddr,
    /// The other node.
    pub node: IpAddr,
    /// In a private range that is nobody's of the cluster.
    pub private: IpAddr,
}

impl Net {
    /// IPv4.
    #[must_use]
    pub fn v4() -> Self {
        Self::made(|part, host| match part {
            Part::Here => [10, 64, 0, host].into(),
            Part::There => [10, 64, 1, host].into(),
            Part::Lost => [10, 64, 2, host].into(),
            Part::Beside => [10, 64, 3, host].into(),
            Part::Lan => [172, 18, 0, host].into(),
            Part::Service => [10, 96, 0, host].into(),
            Part::World => [198, 51, 100, host].into(),
            Part::LinkLocal => [169, 254, 0, host].into(),
        })
    }

    /// IPv6.
    #[must_use]
    pub fn v6() -> Self {
        Self::made(|part, host| {
            let host = u16::from(host);
            match part {
                Part::Here => [0xfd64, 0, 0, 0, 0, 0, 0, host].into(),
                Part::There => [0xfd64, 0, 0, 0, 0, 0, 0, 0x100 | host].into(),
                Part::Lost => [0xfd64, 0, 0, 0, 0, 0, 0, 0x200 | host].into(),
                Part::Beside => [0xfd64, 0, 0, 0, 0, 0, 0, 0x300 | host].into(),
                Part::Lan => [0xfd00, 0x18, 0, 0, 0, 0, 0, host].into(),
                Part::Service => [0xfd96, 0, 0, 0, 0, 0, 0, host].into(),
                Part::World => [0x2001, 0xdb8, 9, 0, 0, 0, 0, host].into(),
                Part::LinkLocal => [0xfe80, 0, 0, 0, 0, 0, 0, host].into(),
            }
        })
    }

    fn made(addr: impl Fn(Part, u8) -> IpAddr) -> Self {
        Self {
            client: addr(Part::Here, 1),
            plain: addr(Part::Here, 2),
            gateway: addr(Part::Here, 3),
            kernel_client: addr(Part::Here, 4),
            both: addr(Part::Here, 6),
            queued: addr(Part::Here, 7),
            service: addr(Part::Service, 20),
            cluster_ip: addr(Part::Service, 30),
            kernel_gateway: addr(Part::Here, 5),
            remote: addr(Part::There, 1),
            remote_client: addr(Part::There, 2),
            remote_gateway: addr(Part::There, 9),
            auto_gateway: addr(Part::There, 10),
            world: addr(Part::World, 1),
            world_auto: addr(Part::World, 2),
            world_local: addr(Part::World, 3),
            world_lost: addr(Part::World, 4),
            world_none: addr(Part::World, 5),
            world_affine: addr(Part::World, 6),
            world_originating: addr(Part::World, 7),
            world_kernel: addr(Part::World, 8),
            leaving_gateway: addr(Part::There, 11),
            remote_originating: addr(Part::There, 12),
            strange_gateway: addr(Part::There, 13),
            link_local: addr(Part::LinkLocal, 1),
            lost: addr(Part::Lost, 1),
            beside: addr(Part::Beside, 1),
            beside_client: addr(Part::Beside, 2),
            beside_gateway: addr(Part::Beside, 9),
            world_beside: addr(Part::World, 9),
            private: addr(Part::World, 129),
            router: addr(Part::Lan, 254),
            node: addr(Part::Lan, 2),
        }
    }

    /// True for IPv4.
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.client.is_ipv4()
    }

    /// Bytes of FOU encapsulation.
    #[must_use]
    pub const fn overhead(&self) -> u16 {
        if self.is_v4() { 28 } else { 48 }
    }
}

enum Part {
    Here,
    There,
    Lost,
    Beside,
    Lan,
    Service,
    World,
    LinkLocal,
}

/// Where the kernel sends a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a neighbour on the uplink.
    Via(IpAddr),
    /// To a neighbour on [`BESIDE`].
    Beside(IpAddr),
    /// Nowhere.
    Blackhole,
}

/// A network: address and prefix length.
pub type Prefix = (IpAddr, u8);

/// What a pod of this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nothing special.
    Plain,
    /// A client by the programs.
    Client,
    /// A client by its own kernel.
    KernelClient,
    /// A gateway by the programs alone.
    Gateway,
    /// A gateway with a kernel that does the rest, some of whose clients are being started.
    KernelGateway,
    /// A gateway, and a client by its own kernel.
    Both,
    /// A client by the programs with a queue on its link.
    Queued,
}

/// The most specific entry that holds the address.
pub(crate) fn longest<T: Copy>(table: &[(Prefix, T)], addr: IpAddr) -> Option<T> {
    let bits = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let holds = |(net, len): &Prefix| *len == 0 || (bits(*net) ^ bits(addr)) >> (128 - u32::from(*len)) == 0;
    table.iter().filter(|(prefix, _)| holds(prefix)).max_by_key(|((_, len), _)| *len).map(|(_, value)| *value)
}

/// What the node's tables and routes hold, of one family.
#[derive(Clone, Debug)]
pub struct World {
    /// AddressPools.
    pub pools: Vec<Prefix>,
    /// Address and veth of each pod, and what it is.
    pub pods: Vec<(IpAddr, u32, Role)>,
    /// Gateways of this node, and the clients that they know.
    pub clients: Vec<(IpAddr, IpAddr)>,
    /// The client's policy: destination and Egress, if any.
    pub policy: Vec<(Prefix, Option<u32>)>,
    /// Ranges of the cluster, and what each is of: numbers of [`cluster_range`].
    pub ranges: Vec<(Prefix, u32)>,
    /// Each Egress: id, gateways, hashed source ports.
    pub egresses: Vec<(u32, Vec<IpAddr>, bool)>,
    /// Gateways that take no new flows.
    pub leaving: Vec<IpAddr>,
    /// Gateways of Egresses that no policy names.
    pub strange: Vec<IpAddr>,
    /// The Service of Egress [`SERVED`].
    pub service: IpAddr,
    /// Routes; the longest prefix decides.
    pub routes: Vec<(Prefix, Route)>,
    /// The node's own address on the uplink.
    pub node: Prefix,
}

impl World {
    /// The world of the picture above.
    #[must_use]
    pub fn new(net: &Net) -> Self {
        let v4 = net.is_v4();
        let (whole, block, default) =
            if v4 { (32, 24, [0, 0, 0, 0].into()) } else { (128, 120, IpAddr::from([0u16; 8])) };
        let node = |host: u8| -> IpAddr {
            if v4 { [172, 18, 0, host].into() } else { [0xfd00, 0x18, 0, 0, 0, 0, 0, u16::from(host)].into() }
        };
        let pool = if v4 { ([10, 64, 0, 0].into(), 16) } else { ([0xfd64, 0, 0, 0, 0, 0, 0, 0].into(), 112) };
        let link_local =
            if v4 { ([169, 254, 0, 0].into(), 16) } else { ([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10) };
        let multicast =
            if v4 { ([224, 0, 0, 0].into(), 4) } else { ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8) };
        let (services, nodes) = if v4 {
            (([10, 96, 0, 0].into(), 16), ([172, 18, 0, 0].into(), 16))
        } else {
            (([0xfd96, 0, 0, 0, 0, 0, 0, 0].into(), 112), ([0xfd00, 0x18, 0, 0, 0, 0, 0, 0].into(), 64))
        };
        let private = if v4 {
            ([198, 51, 100, 128].into(), 25)
        } else {
            ([0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x80].into(), 121)
        };
        let there = |block: u8| {
            if v4 {
                [10, 64, block, 0].into()
            } else {
                [0xfd64, 0, 0, 0, 0, 0, 0, u16::from(block) << 8].into()
            }
        };
        let beside: IpAddr =
            if v4 { [172, 19, 0, 2].into() } else { [0xfd00, 0x19, 0, 0, 0, 0, 0, 2].into() };
        Self {
            pools: vec![pool],
            pods: vec![
                (net.client, CLIENT, Role::Client),
                (net.plain, PLAIN, Role::Plain),
                (net.gateway, GATEWAY, Role::Gateway),
                (net.kernel_client, KERNEL_CLIENT, Role::KernelClient),
                (net.kernel_gateway, KERNEL_GATEWAY, Role::KernelGateway),
                (net.both, BOTH, Role::Both),
                (net.queued, QUEUED, Role::Queued),
            ],
            clients: vec![
                (net.gateway, net.remote_client),
                (net.gateway, net.client),
                (net.gateway, net.queued),
                (net.gateway, net.beside_client),
                (net.kernel_gateway, net.remote_client),
                (net.both, net.remote_client),
            ],
            policy: vec![
                ((default, 0), Some(1)),
                ((net.world_auto, whole), Some(2)),
                ((net.world_local, whole), Some(3)),
                ((net.world_lost, whole), Some(3)),
                ((net.cluster_ip, whole), Some(3)),
                ((net.world_none, whole), Some(4)),
                ((net.world_beside, whole), Some(BESIDE_EGRESS)),
                ((net.world_kernel, whole), Some(KERNEL)),
                ((net.world_affine, whole), Some(AFFINE)),
                ((net.world_originating, whole), Some(ORIGINATING)),
                ((net.remote_originating, whole), Some(ORIGINATING)),
                ((net.both, whole), Some(ORIGINATING)),
                (pool, None),
                (link_local, None),
                (multicast, None),
            ],
            ranges: vec![
                (services, cluster_range::CLUSTER),
                (nodes, cluster_range::CLUSTER),
                (pool, cluster_range::CLUSTER),
                (private, cluster_range::PRIVATE),
            ],
            leaving: vec![net.leaving_gateway],
            strange: vec![net.strange_gateway],
            service: net.service,
            egresses: vec![
                (AFFINE, vec![net.remote_gateway, net.leaving_gateway], false),
                (ORIGINATING, vec![net.remote_gateway], false),
                (1, vec![net.remote_gateway, net.leaving_gateway], false),
                (2, vec![net.auto_gateway], true),
                (3, vec![net.gateway], false),
                (4, vec![], false),
                (BESIDE_EGRESS, vec![net.beside_gateway], false),
                (KERNEL, vec![net.kernel_gateway], false),
            ],
            routes: vec![
                ((default, 0), Route::Via(node(254))),
                ((there(1), block), Route::Via(node(2))),
                ((there(2), block), Route::Blackhole),
                ((there(3), block), Route::Beside(beside)),
                ((net.world_lost, whole), Route::Blackhole),
            ],
            node: (node(1), if v4 { 24 } else { 64 }),
        }
    }
}
