//! What the rest of the agent wants the datapath to be: plain data, no kernel in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

/// Stands for a set of Egresses; all pods with the same annotations share one. 0 means none.
pub type PolicyId = u32;

/// Stands for one Egress on this node. Never 0.
pub type EgressId = u32;

/// The whole wanted state of a node's datapath.
///
/// Made anew from the agent's index on each change; [`super::Datapath::apply`] finds the difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Subnets of all AddressPools.
    pub pools: BTreeSet<IpNet>,
    /// Pods of this node with a veth.
    pub pods: Vec<LocalPod>,
    /// (policy, destination) → the Egress that takes it; `None` for what never leaves through a gateway.
    /// The longest prefix decides; no match is the same as `None`.
    pub policies: BTreeMap<(PolicyId, IpNet), Option<EgressId>>,
    /// Ranges of the cluster; true for those of Services, pods and nodes: what a gateway sends there passes the host stack,
    /// where kube-proxy is. False for what is private and no more. The longest prefix decides.
    pub ranges: BTreeMap<IpNet, bool>,
    /// The Egresses that policies name.
    pub egresses: BTreeMap<EgressId, Egress>,
    /// Gateway pods of all Egresses, and the addresses of their Services: who else sends FOU to them is a forger.
    pub all_gateways: BTreeSet<IpAddr>,
    /// Gateways of this node and their clients, by address: FOU from others is forged.
    pub clients: BTreeSet<(IpAddr, IpAddr)>,
    /// True when new clients may have any address, because another plugin gives them.
    pub any_sender: bool,
    /// Ports that gateway pods of this node have for themselves, besides those that all have.
    pub own_ports: BTreeSet<u16>,
    /// Most ports that one client may have of this node's gateways, 0 for no limit.
    pub quota: u32,
    /// Interface indices of the links to other nodes and the world; `from_net` is attached to each.
    pub uplinks: BTreeSet<u32>,
    /// True when pod to pod packets may bypass the host stack.
    pub forward: bool,
    /// True when no packet at all may: what is encapsulated or translated goes on in the host stack.
    pub host_stack: bool,
    /// True when UDP may, too (`--fast-udp`).
    pub fast_udp: bool,
    /// UDP port of FOU (`--egress-port`).
    pub fou_port: u16,
    /// The bit of packets' marks that is the programs' own (`--mark`).
    pub mark: u32,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// `namespace/name`, for messages.
    pub name: String,
    /// All addresses of the pod, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Interface index of the veth's host side; `from_pod` is attached to it.
    pub ifindex: u32,
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
    /// MAC address of the host's side.
    pub host_mac: [u8; 6],
    /// MTU of the veth.
    pub mtu: u32,
    /// What of its traffic is egress, 0 for nothing.
    pub policy: PolicyId,
    /// True when eBPF does its egress. False for pods with `fou*` links of their own.
    pub client: bool,
    /// True for a client some of whose Egresses are originating only.
    pub originating_only: bool,
    /// True when the pod's own kernel does its egress (`fou*` links).
    pub kernel_client: bool,
    /// True for a gateway pod.
    pub gateway: bool,
    /// True for a gateway pod some of whose clients have no address yet, or are not known.
    pub new_clients: bool,
    /// True for a gateway pod whose own kernel translates what the programs do not.
    pub kernel_gateway: bool,
    /// True when its packets must pass the host stack: something on its link would miss them.
    pub by_kernel: bool,
    /// True when another CNI plugin wants the ingress qdisc of the link for itself.
    pub shaped: bool,
}

/// An Egress as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// `namespace/name`, for messages.
    pub name: String,
    /// Its gateway pods, of all families, from the EndpointSlices.
    pub gateways: Vec<Gateway>,
    /// Addresses of its Service. A client with tunnels dials them, and connection tracking gives them to the gateways'
    /// FOU that it gets.
    pub services: Vec<IpAddr>,
    /// `fouSourcePortAuto`.
    pub sport_auto: bool,
    /// Of `sessionAffinity: ClientIP`: the seconds that an idle client keeps its gateway.
    pub affinity: Option<u32>,
    /// True when connections that came in to a client are answered the way they came.
    pub originating_only: bool,
}

/// A gateway pod, on any node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    /// False while it is not ready or terminating: it may still answer its old clients,
    /// and gets no new flows.
    pub ready: bool,
}
