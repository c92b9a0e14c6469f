//! From a client to its gateway, and from the gateway out. It leaves through a gateway or not at all.

use super::query;
use crate::{
    Addr, Deliver, Fib, FibQuery, Nat, Outcome, Outer, Plan, Reason, Side, Tables, TooBig,
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

/// A client's packet that the Egress `egress` takes.
#[inline(never)]
pub(super) fn out<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    egress: u32,
    tables: &mut T,
    outcome: &mut Outcome<A>,
) {
    if let Err(reason) = translatable(packet) {
        return outcome.drop(reason);
    }
    let Some(flags) = tables.egress_flags(egress) else { return outcome.drop(Reason::NoGateway) };
    let of_flow = hash::flow(packet);
    let of_choice =
        if flags & egress_flag::CLIENT_AFFINITY != 0 { hash::address(packet.src) } else { of_flow };
    let Some(gateway) = tables.gateway(egress, hash::high(of_choice)) else {
        return outcome.drop(Reason::NoGateway);
    };
    if let Some(pod) = tables.pod(&gateway)
        && pod.is_gateway()
    {
        let way = Way { gateway, link: pod.ifindex, decap: 0, tos: None, tell: true };
        return translate(packet, &way, tables, outcome);
    }
    let dport = tables.config().fou_port;
    let sport = if flags & egress_flag::SPORT_AUTO != 0 { auto_port(of_flow) } else { dport };
    encapsulate(
        packet,
        &Outer { src: packet.src, dst: gateway, sport, dport, inner_len: 0, tos: 0 },
        tables,
        outcome,
    );
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
#[inline(always)]
fn encapsulate<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    outer: &Outer<A>,
    tables: &T,
    outcome: &mut Outcome<A>,
) {
    let (ifindex, via) = match tables.fib(&outer_query(packet, outer)) {
        Fib::Forward { ifindex, via } if tables.is_uplink(ifindex) => (ifindex, via),
        Fib::TooBig { mtu } => return too_big(outer.dst, mtu.saturating_sub(A::HEADER + UDP), outcome),
        _ => return outcome.drop(Reason::EgressNotRouted),
    };
    let Some(encap) = fill(packet, outer) else { return outcome.drop(Reason::EgressTooBig) };
    let deliver = Deliver::Neighbour { ifindex, via };
    // A link of the pod itself would do this: no hop yet.
    let plan = Plan { decap: 0, tos: None, nat: None, hop: false, encap: Some(encap), deliver };
    outcome.send(Reason::ToGateway, plan);
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

/// The way of a packet through a gateway of this node.
pub(super) struct Way<A> {
    /// The gateway pod's address.
    pub(super) gateway: A,
    /// The host side of its veth.
    pub(super) link: u32,
    /// Bytes of outer headers to remove.
    pub(super) decap: u32,
    /// The TOS to write, when it changes.
    pub(super) tos: Option<u8>,
    /// True when the client is on this node and can be told an MTU.
    pub(super) tell: bool,
}

/// Translates a client's packet in the name of a gateway pod of this node, and sends it out.
#[inline(never)]
pub(super) fn translate<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    way: &Way<A>,
    tables: &mut T,
    outcome: &mut Outcome<A>,
) {
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
        Fib::Forward { ifindex, via } if tables.is_uplink(ifindex) => {
            let nat = Some(Nat { side: Side::Source, addr: way.gateway, port });
            let deliver = Deliver::Neighbour { ifindex, via };
            let plan = Plan { decap: way.decap, tos: way.tos, nat, hop: true, encap: None, deliver };
            outcome.send(Reason::Out, plan);
        }
        Fib::TooBig { mtu } if way.tell => too_big(way.gateway, mtu, outcome),
        Fib::TooBig { .. } => outcome.drop(Reason::EgressTooBig),
        _ => outcome.drop(Reason::EgressNotRouted),
    }
}

#[inline(always)]
fn too_big<A: Addr>(from: A, mtu: u32, outcome: &mut Outcome<A>) {
    let least = if A::L3_SUM { MIN_MTU_V4 } else { MIN_MTU };
    // A kernel before 5.12 does not say the route's MTU.
    if mtu < least || mtu > 0xffff {
        return outcome.drop(Reason::EgressTooBig);
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let mtu = mtu as u16;
    outcome.answer(Reason::TooBig, TooBig { from, mtu });
}

#[inline(always)]
const fn auto_port(flow: u64) -> u16 {
    AUTO_FIRST + (hash::high(flow) % AUTO_COUNT) as u16
}
