//! Tables that the agent writes and the programs read.

use bytemuck::{Pod, Zeroable};

use super::{MAGLEV_SLOTS, plain};

/// "Nothing": the policy id of a pod that is no client, and the egress id of a destination
/// that never leaves through a gateway.
pub const NONE: u32 = 0;

/// Under the policy id [`NONE`], which is no client's, `coil_policy4` and `coil_policy6` hold ranges of the cluster. These
/// are their values.
pub mod cluster_range {
    /// Of Services, as far as anybody knows, of pools and of nodes: what goes there from a gateway has to pass the node's
    /// stack. There kube-proxy turns a Service's packets to a pod or a node, and connection tracking keeps them apart from
    /// what goes to the same pod or node directly.
    pub const CLUSTER: u32 = 1;
    /// Other private ranges: whoever is there may answer for a Service.
    pub const PRIVATE: u32 = 2;
}

/// Bits of [`PodValue::flags`].
pub mod pod_flag {
    /// The pod's egress is done by the programs (an eBPF client).
    pub const CLIENT: u32 = 1;
    /// The pod is a gateway: the programs translate in its name.
    pub const GATEWAY: u32 = 2;
    /// The pod's packets to and from other pods are the kernel's.
    pub const BY_KERNEL: u32 = 4;
    /// Some Egress of the client takes only what the client itself begins: what comes in is noted.
    pub const ORIGINATING_ONLY: u32 = 8;
    /// The gateway's own kernel translates what the programs do not: other protocols, in FOU.
    pub const KERNEL_GATEWAY: u32 = 16;
    /// The pod's egress is done by its own kernel (`fou*` links).
    pub const KERNEL_CLIENT: u32 = 32;
    /// A gateway some of whose clients are not known by address yet: they are being started.
    pub const NEW_CLIENTS: u32 = 64;
}

/// Bits of [`Maglev::flags`].
pub mod egress_flag {
    /// The FOU source port is a hash of the flow, not the FOU port.
    pub const SPORT_AUTO: u32 = 1;
    /// The gateway is chosen by the client's address alone, not by the flow.
    pub const CLIENT_AFFINITY: u32 = 2;
    /// Connections that came in to the client are answered the way they came.
    pub const ORIGINATING_ONLY: u32 = 4;
    /// Above it: idle seconds after which a client may get another gateway.
    const SECONDS: u32 = 8;
    /// Those of a Service whose `sessionAffinityConfig` says nothing.
    pub const DEFAULT_AFFINITY: u32 = 10_800;

    /// [`CLIENT_AFFINITY`] of so many seconds, of which a Service may have 86,400.
    #[must_use]
    pub const fn affinity(seconds: u32) -> u32 {
        CLIENT_AFFINITY | seconds << SECONDS
    }

    /// The seconds; the default's where nobody says.
    #[inline(always)]
    #[must_use]
    pub const fn affinity_seconds(flags: u32) -> u32 {
        match flags >> SECONDS {
            0 => DEFAULT_AFFINITY,
            seconds => seconds,
        }
    }
}

/// Bits of [`GatewayValue::flags`].
pub mod gateway_flag {
    /// It takes no new flows: it is not ready, or terminating.
    pub const NO_NEW: u32 = 1;
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// Pod to pod packets may take the fast path.
    pub const FORWARD: u32 = 1;
    /// UDP too.
    pub const FAST_UDP: u32 = 2;
    /// The kernel's flows are marked. Stands before [`FORWARD`] does.
    pub const MARK: u32 = 4;
    /// Those of UDP too. Stands before [`FAST_UDP`] does.
    pub const MARK_UDP: u32 = 8;
    /// A new client may have any address: the pools are not known (addresses are another plugin's).
    pub const ANY_SENDER: u32 = 16;
    /// Nothing passes the host's stack by: what the programs encapsulate or translate goes on in it.
    pub const HOST_STACK: u32 = 32;
}

/// Value of `coil_config`, one for the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// Bits of [`config_flag`].
    pub flags: u32,
    /// UDP port of FOU (`--egress-port`).
    pub fou_port: u16,
    /// Zero.
    pub pad: u16,
    /// The bit of a packet's mark that says "sent by a program": `to_net` takes it off (`--mark`).
    pub mark: u32,
    /// Goes up with every change that may change a decision. Never 0 once the agent has written it.
    pub epoch: u32,
    /// Most ports that one client may have of the gateways of this node; 0 for no limit.
    pub quota: u32,
}

impl Config {
    /// True when every packet passes the host's stack.
    #[inline(always)]
    #[must_use]
    pub const fn is_by_host_stack(&self) -> bool {
        self.flags & config_flag::HOST_STACK != 0
    }
}

/// Value of `coil_pods4` and `coil_pods6`, keyed by address: a pod of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PodValue {
    /// The host side of the pod's veth.
    pub ifindex: u32,
    /// What of the pod's traffic is egress; [`NONE`] for a pod that is no client.
    pub policy: u32,
    /// Bits of [`pod_flag`].
    pub flags: u32,
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
    /// MAC address of the host's side.
    pub host_mac: [u8; 6],
    /// MTU of the veth, in bytes.
    pub mtu: u32,
}
const _: () = assert!(size_of::<PodValue>() == 28);

impl PodValue {
    /// True for a client whose egress the programs do.
    #[inline(always)]
    #[must_use]
    pub const fn is_client(&self) -> bool {
        self.flags & pod_flag::CLIENT != 0
    }

    /// True for a pod whose packets to and from other pods are the kernel's.
    #[inline(always)]
    #[must_use]
    pub const fn is_by_kernel(&self) -> bool {
        self.flags & pod_flag::BY_KERNEL != 0
    }

    /// True for a client whose incoming connections are noted.
    #[inline(always)]
    #[must_use]
    pub const fn is_originating_only(&self) -> bool {
        self.flags & pod_flag::ORIGINATING_ONLY != 0
    }

    /// True for a gateway whose kernel translates other protocols.
    #[inline(always)]
    #[must_use]
    pub const fn is_kernel_gateway(&self) -> bool {
        self.flags & pod_flag::KERNEL_GATEWAY != 0
    }

    /// True for a pod whose own kernel sends FOU, or may.
    #[inline(always)]
    #[must_use]
    pub const fn may_send_fou(&self) -> bool {
        self.flags & (pod_flag::GATEWAY | pod_flag::KERNEL_CLIENT) != 0
    }

    /// True for a client of some Egress.
    #[inline(always)]
    #[must_use]
    pub const fn is_any_client(&self) -> bool {
        self.flags & (pod_flag::CLIENT | pod_flag::KERNEL_CLIENT) != 0
    }

    /// True for a client whose own kernel does its egress.
    #[inline(always)]
    #[must_use]
    pub const fn is_kernel_client(&self) -> bool {
        self.flags & pod_flag::KERNEL_CLIENT != 0
    }

    /// True for a gateway some of whose clients are not known by address yet.
    #[inline(always)]
    #[must_use]
    pub const fn has_new_clients(&self) -> bool {
        self.flags & pod_flag::NEW_CLIENTS != 0
    }

    /// True for a gateway pod.
    #[inline(always)]
    #[must_use]
    pub const fn is_gateway(&self) -> bool {
        self.flags & pod_flag::GATEWAY != 0
    }
}

/// Value of `coil_pools4` and `coil_pools6`, a longest prefix match on the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PoolValue {
    /// Zero; presence is the information.
    pub reserved: u32,
}

/// Value of `coil_uplinks`, keyed by ifindex: a link with `from_net` attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct UplinkValue {
    /// Zero; presence is the information.
    pub reserved: u32,
}

/// Key data of `coil_policy4` and `coil_policy6`: a longest prefix match behind an exact policy id.
/// The prefix length counts the 32 bits of the id. The value is an egress id, or [`NONE`]; under the policy id [`NONE`] one
/// of [`cluster_range`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyKey<A> {
    /// The policy of the pod that sends.
    pub policy: u32,
    /// The destination.
    pub destination: A,
}

/// Key of `coil_gateways4` and `coil_gateways6`: who may send FOU to the clients of a policy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayKey<A> {
    /// The policy of the client.
    pub policy: u32,
    /// The gateway's address.
    pub gateway: A,
}

/// Key of `coil_clients4` and `coil_clients6`: who may send FOU to a gateway of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKey<A> {
    /// The gateway's address.
    pub gateway: A,
    /// The client's address.
    pub client: A,
}

/// Value of `coil_clients4` and `coil_clients6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ClientValue {
    /// Zero; presence is the information.
    pub reserved: u32,
}

/// Value of `coil_gateways4` and `coil_gateways6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GatewayValue {
    /// The Egress of the gateway.
    pub egress: u32,
    /// Bits of [`gateway_flag`].
    pub flags: u32,
}

/// Value of `coil_maglev4` and `coil_maglev6`, keyed by egress id: which gateway takes which hash.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maglev<A> {
    /// Bits of [`egress_flag`], and from bit 8 on the seconds of client affinity.
    pub flags: u32,
    /// Gateways in the table; 0 means that the Egress has none and its packets are dropped.
    pub gateways: u32,
    /// Gateway address by [`crate::hash::slot`].
    pub slots: [A; MAGLEV_SLOTS],
}

plain! {
    PolicyKey { u32, A }
    GatewayKey { u32, A }
    ClientKey { A, A }
    Maglev { u32, u32, [A; MAGLEV_SLOTS] }
}

/// Value of `coil_counters`, per CPU, indexed by [`crate::counter_index`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counter {
    /// Packets, a GSO packet counted once.
    pub packets: u64,
    /// Bytes with the Ethernet header, as received.
    pub bytes: u64,
}
