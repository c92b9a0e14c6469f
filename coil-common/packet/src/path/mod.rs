//! The decisions, one file per program, and what they share.
//!
//! The larger steps are functions of their own in the BPF program too: each has its own part of the
//! 512 bytes of stack. So they take few arguments (five registers) and write to the decision.

mod egress;
mod forward;
mod fou_error;
mod from_net;
mod from_pod;
mod gateway;
mod incoming;
mod mark;

pub use from_net::{decide_from_net, known_from_net};
pub use from_pod::{decide_from_pod, known_from_pod};
pub use mark::{to_net, to_pod};

use crate::{
    Addr, Decision, Deliver, Family, Fib, FibQuery, NextHop, Reason, Skb, Tables,
    abi::{PodValue, Way, way_kind},
    wire::{Header, Kind, Packet, parse_here, udp},
};

/// Reads the facts of a packet that came in on the link `ingress`; false for one that the kernel drops, which is then decided.
#[inline(always)]
fn look<A: Header, S: Skb>(skb: &S, ingress: u32, decision: &mut Decision<A>) -> bool {
    let Decision { packet, outcome, .. } = decision;
    packet.ingress = ingress;
    let good = parse_here(skb, packet);
    if !good {
        let _ = outcome.next(Reason::Malformed);
    }
    good
}

/// True for FOU that one of the programs takes off: for a client or a gateway. What a gateway that is another's client by its
/// own kernel gets from that one is its kernel's.
#[inline(always)]
fn is_fou<A: Addr, T: Tables<A>>(packet: &Packet<A>, pod: &PodValue, tables: &T) -> bool {
    is_to_fou_port(packet, tables)
        && (pod.is_client()
            || pod.is_gateway()
                && !(pod.is_kernel_client() && tables.gateway_of(pod.policy, &packet.src).is_some()))
}

/// Why a pod whose own kernel takes FOU off may not get the packet, if it may not: the kernel would take it from anybody.
#[inline(always)]
fn refused<A: Addr, T: Tables<A>>(packet: &Packet<A>, pod: &PodValue, tables: &T) -> Option<Reason> {
    if is_hidden_fou(packet, pod, tables) {
        return Some(Reason::FouHidden);
    }
    let strange = pod.is_kernel_client()
        // Whom a gateway takes it from is seen where it is taken off.
        && !pod.is_gateway()
        && is_to_fou_port(packet, tables)
        && tables.gateway_of(pod.policy, &packet.src).is_none();
    strange.then_some(Reason::FouNotGateway)
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

/// What the routing said, as one number, which fits a register: [`REFUSED`], [`ROUTED`], [`ELSEWHERE`], or an MTU that is
/// too small and [`TOO_BIG`].
type Routed = u32;
const REFUSED: Routed = 0;
const ROUTED: Routed = 1;
/// Out of a link that is no uplink, by which answers would pass the programs by: the kernel's way.
const ELSEWHERE: Routed = 2;
const TOO_BIG: Routed = 1 << 31;

/// Asks the routing for a way out of an uplink. A function of its own, as the answer is large.
#[inline(never)]
fn ask<A: Addr, T: Tables<A>>(question: &FibQuery<A>, tables: &T, way: &mut Way) -> Routed {
    way.egress = 0;
    match tables.fib(question) {
        Fib::Forward { ifindex, via, fits } if tables.is_uplink(ifindex) => {
            way.to_neighbour(ifindex, &via, fits);
            ROUTED
        }
        Fib::TooBig { mtu } => TOO_BIG | mtu,
        Fib::Forward { .. } => ELSEWHERE,
        Fib::Refused => REFUSED,
    }
}

/// Delivery to the neighbour that [`ask`] has found.
#[inline(always)]
const fn neighbour(way: &Way) -> Deliver {
    let family = if way.kind == way_kind::NEIGHBOUR4 { Family::V4 } else { Family::V6 };
    Deliver::Neighbour { ifindex: way.egress, via: NextHop { family, addr: way.next } }
}

/// Delivery out of the link that a remembered way leads to.
#[inline(always)]
const fn out_of_link(way: &Way) -> Deliver {
    Deliver::Link { ifindex: way.egress, macs: way.macs() }
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
        tos: packet.tos,
    }
}
