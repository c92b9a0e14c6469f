//! The decisions, one file per program, and what they share.
//!
//! The larger steps are functions of their own in the BPF program too: each has its own part of the
//! 512 bytes of stack. So they take few arguments (five registers) and write to the decision.

mod egress;
mod forward;
mod from_net;
mod from_pod;
mod gateway;
mod mark;

pub use from_net::from_net;
pub use from_pod::from_pod;
pub use mark::{to_net, to_pod};

use crate::{
    Addr, Deliver, FibQuery, Tables,
    abi::PodValue,
    wire::{Kind, Packet, udp},
};

/// True for FOU that one of the programs takes off: for a client or a gateway.
#[inline(always)]
fn is_fou<A: Addr, T: Tables<A>>(packet: &Packet<A>, pod: &PodValue, tables: &T) -> bool {
    is_to_fou_port(packet, tables) && (pod.is_client() || pod.is_gateway())
}

/// True for UDP to the FOU port in one piece.
#[inline(always)]
fn is_to_fou_port<A: Addr, T: Tables<A>>(packet: &Packet<A>, tables: &T) -> bool {
    matches!(packet.kind, Kind::Udp | Kind::UdpBehindOptions) && packet.dport == tables.config().fou_port
}

/// IPv6 headers that another one follows: hop-by-hop options, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];

/// True for what may be FOU that no program sees, in fragments or behind options, and whose pod has a kernel that does.
/// No tunnel sends such.
#[inline(always)]
fn is_hidden_fou<A: Addr, T: Tables<A>>(packet: &Packet<A>, pod: &PodValue, tables: &T) -> bool {
    if !pod.is_kernel_gateway() && !pod.is_kernel_client() {
        return false;
    }
    match packet.under {
        Kind::Udp | Kind::UdpBehindOptions => {
            packet.kind == Kind::Fragment && packet.dport == tables.config().fou_port
        }
        Kind::Other if A::L3_SUM => packet.protocol == udp::PROTOCOL,
        Kind::Other => {
            let [hops, routing, destination] = EXTENSIONS;
            packet.protocol == hops || packet.protocol == routing || packet.protocol == destination
        }
        _ => false,
    }
}

/// Delivery into a pod of this node.
#[inline(always)]
const fn peer(pod: &PodValue) -> Deliver {
    Deliver::Peer { ifindex: pod.ifindex, mac: pod.mac, host_mac: pod.host_mac }
}

/// The routing question for a packet as it is.
#[inline(always)]
const fn query<A: Addr>(packet: &Packet<A>) -> FibQuery<A> {
    FibQuery {
        ifindex: packet.ingress,
        src: packet.src,
        dst: packet.dst,
        protocol: packet.protocol,
        sport: packet.sport,
        dport: packet.dport,
        len: packet.segment,
    }
}
