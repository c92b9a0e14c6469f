//! From a client to its gateway, and from the gateway out. It leaves through a gateway or not at all.

use super::query;
use crate::{
    Addr, Deliver, End, Fib, FibQuery, Outcome, Outer, Plan, Reason, Tables, TooBig,
    abi::egress_flag,
    hash, nat,
    wire::{Kind, Packet, UDP, udp},
};

/// First port and number of ports of hashed FOU source ports.
const AUTO_FIRST: u16 = 32768;
const AUTO_COUNT: u32 = 28232;

/// Smallest MTU that an IPv6 link may have (RFC 8200), and a bound for IPv4 that path MTU discovery accepts.
const MIN_MTU: u32 = 1280;
const MIN_MTU_V4: u32 = 552;

/// The way of a client's packet to and through its gateway.
#[derive(Clone, Copy)]
pub(super) struct Way<A> {
    /// The gateway pod's address.
    pub(super) gateway: A,
    /// The host side of its veth when it is on this node, else 0.
    pub(super) link: u32,
    /// Bytes of outer headers to remove.
    pub(super) decap: u32,
    /// The TOS to write, when it changes.
    pub(super) tos: Option<u8>,
    /// True when the client is on this node and can be told an MTU.
    pub(super) tell: bool,
    /// UDP source port of the encapsulation.
    pub(super) sport: u16,
}

/// A client's packet that the Egress `egress` takes.
#[inline(always)]
pub(super) fn out<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    egress: u32,
    tables: &mut T,
    outcome: &mut Outcome<A>,
) -> Reason {
    if let Err(reason) = translatable(packet) {
        return outcome.drop(reason);
    }
    let mut way = Way { gateway: packet.dst, link: 0, decap: 0, tos: None, tell: true, sport: 0 };
    if !choose(packet, egress, tables, &mut way) {
        return outcome.drop(Reason::NoGateway);
    }
    if way.link == 0 {
        encapsulate(packet, &way, tables, outcome)
    } else {
        translate(packet, &way, tables, outcome)
    }
}

/// Picks the gateway; false when there is none.
#[inline(never)]
fn choose<A: Addr, T: Tables<A>>(packet: &Packet<A>, egress: u32, tables: &T, way: &mut Way<A>) -> bool {
    let Some(flags) = tables.egress_flags(egress) else { return false };
    let of_flow = hash::flow(packet);
    let of_choice =
        if flags & egress_flag::CLIENT_AFFINITY != 0 { hash::address(packet.src) } else { of_flow };
    let Some(gateway) = tables.gateway(egress, hash::high(of_choice)) else { return false };
    way.gateway = gateway;
    way.sport =
        if flags & egress_flag::SPORT_AUTO != 0 { auto_port(of_flow) } else { tables.config().fou_port };
    if let Some(pod) = tables.pod(&way.gateway)
        && pod.is_gateway()
    {
        way.link = pod.ifindex;
    }
    true
}

/// What SNAT can translate.
#[inline(always)]
pub(super) fn translatable<A: Addr>(packet: &Packet<A>) -> Result<(), Reason> {
    match packet.kind {
        Kind::Tcp => Ok(()),
        // UDP segmentation does not survive decapsulation.
        Kind::Udp | Kind::EchoRequest if packet.gso != 0 => Err(Reason::EgressGso),
        Kind::Udp | Kind::EchoRequest => Ok(()),
        Kind::Fragment => Err(Reason::EgressFragment),
        _ => Err(Reason::EgressKind),
    }
}

/// Puts a client's packet into FOU, towards its gateway.
#[inline(never)]
fn encapsulate<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    way: &Way<A>,
    tables: &T,
    outcome: &mut Outcome<A>,
) -> Reason {
    let dport = tables.config().fou_port;
    let outer = Outer { src: packet.src, dst: way.gateway, sport: way.sport, dport, inner_len: 0, tos: 0 };
    let (ifindex, via) = match tables.fib(&outer_query(packet, &outer)) {
        Fib::Forward { ifindex, via, .. } if tables.is_uplink(ifindex) => (ifindex, via),
        Fib::TooBig { mtu } => return too_big(way.gateway, mtu.saturating_sub(A::HEADER + UDP), outcome),
        _ => return outcome.drop(Reason::EgressNotRouted),
    };
    let Some(encap) = fill(packet, &outer) else { return outcome.drop(Reason::EgressTooBig) };
    // A link of the pod itself would do this: no hop yet.
    let plan = Plan { hop: false, encap: Some(encap), ..Plan::forward(Deliver::Neighbour { ifindex, via }) };
    outcome.send(Reason::ToGateway, plan)
}

/// The routing question for a packet in FOU.
#[inline(always)]
pub(super) const fn outer_query<A: Addr>(packet: &Packet<A>, outer: &Outer<A>) -> FibQuery<A> {
    FibQuery {
        ifindex: packet.ingress,
        src: outer.src,
        dst: outer.dst,
        protocol: udp::PROTOCOL,
        sport: outer.sport,
        dport: outer.dport,
        len: packet.segment + A::HEADER + UDP,
    }
}

/// Adds length and ECN of the inner packet to an outer header, or `None` when the lengths do not fit 16 bits.
#[inline(always)]
pub(super) fn fill<A: Addr>(packet: &Packet<A>, outer: &Outer<A>) -> Option<Outer<A>> {
    if packet.len + A::HEADER + UDP > 0xffff {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let inner_len = packet.len as u16;
    Some(Outer { inner_len, tos: packet.tos & 3, ..*outer })
}

/// Translates a client's packet in the name of a gateway pod of this node, and sends it out.
#[inline(never)]
pub(super) fn translate<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    way: &Way<A>,
    tables: &mut T,
    outcome: &mut Outcome<A>,
) -> Reason {
    if packet.ttl <= 1 {
        return outcome.drop(Reason::EgressLastHop);
    }
    let port = match nat::outbound(tables, &way.gateway, packet) {
        Ok(port) => port,
        Err(reason) => return outcome.drop(reason),
    };
    let sport = if packet.kind == Kind::EchoRequest { 0 } else { port };
    let question = FibQuery { ifindex: way.link, src: way.gateway, sport, ..query(packet) };
    match tables.fib(&question) {
        Fib::Forward { ifindex, via, .. } if tables.is_uplink(ifindex) => {
            let source = Some(End { addr: way.gateway, port });
            let forward = Plan::forward(Deliver::Neighbour { ifindex, via });
            let plan = Plan { decap: way.decap, tos: way.tos, source, ..forward };
            outcome.send(Reason::Out, plan)
        }
        Fib::TooBig { mtu } if way.tell => too_big(way.gateway, mtu, outcome),
        Fib::TooBig { .. } => outcome.drop(Reason::EgressTooBig),
        _ => outcome.drop(Reason::EgressNotRouted),
    }
}

/// Tells the sender what fits.
#[inline(always)]
pub(super) fn too_big<A: Addr>(from: A, mtu: u32, outcome: &mut Outcome<A>) -> Reason {
    let least = if A::L3_SUM { MIN_MTU_V4 } else { MIN_MTU };
    // A kernel before 5.12 does not say the route's MTU.
    if mtu < least || mtu > 0xffff {
        return outcome.drop(Reason::EgressTooBig);
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let mtu = mtu as u16;
    outcome.answer(Reason::TooBig, TooBig { from, mtu })
}

#[inline(always)]
const fn auto_port(flow: u64) -> u16 {
    AUTO_FIRST + (hash::high(flow) % AUTO_COUNT) as u16
}
