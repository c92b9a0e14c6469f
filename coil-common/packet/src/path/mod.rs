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
    wire::{Kind, Packet},
};

/// True for FOU that one of the programs takes off: for a client or a gateway.
#[inline(always)]
fn is_fou<A: Addr, T: Tables<A>>(packet: &Packet<A>, pod: &PodValue, tables: &T) -> bool {
    matches!(packet.kind, Kind::Udp | Kind::UdpBehindOptions)
        && packet.dport == tables.config().fou_port
        && (pod.is_client() || pod.is_gateway())
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
