//! TC ingress of an uplink.

use super::{egress, forward, peer};
use crate::{
    Addr, Decision, Deliver, End, Fib, Outcome, Outer, Plan, Reason, Skb, Tables,
    abi::PodValue,
    nat,
    wire::{ETHERNET, Header, Kind, Packet, UDP, parse, quoted},
};

/// Decides about a packet that came in on the uplink `ingress`.
#[inline(always)]
pub fn from_net<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    ingress: u32,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Reason {
    let Decision { packet, outcome, .. } = decision;
    packet.ingress = ingress;
    if !parse(skb, ETHERNET, packet) {
        return outcome.next(Reason::Malformed);
    }
    if forward::known(decision, forward::NETWORK, tables) {
        return decision.outcome.reason;
    }
    let Decision { packet, outer, outcome, .. } = decision;
    let Some(pod) = tables.pod(&packet.dst) else { return outcome.next(Reason::NotAPod) };
    let fou = matches!(packet.kind, Kind::Udp | Kind::UdpBehindOptions)
        && packet.dport == tables.config().fou_port
        && (pod.is_client() || pod.is_gateway());
    if fou {
        return from_tunnel(skb, &pod, tables, decision);
    }
    if pod.is_gateway() {
        if let Some((client, port)) = nat::inbound(tables, packet) {
            return reply(packet, &End { addr: client, port }, tables, outcome);
        }
        // The pod's kernel would answer with a reset, to a connection that it never had.
        if matches!(packet.kind, Kind::Tcp | Kind::Udp) && nat::lendable(packet.dport) {
            return outcome.drop(Reason::NatUnknown);
        }
    }
    if packet.kind == Kind::Error && quoted(skb, packet, outer) {
        return forward::error(decision, tables);
    }
    forward::to_local(decision, &pod, tables)
}

/// FOU for a client or a gateway of this node.
#[inline(never)]
fn from_tunnel<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    pod: &PodValue,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Reason {
    let Decision { packet: inner, outer, outcome, .. } = decision;
    *outer = *inner;
    if !parse(skb, outer.l4 + UDP, inner) {
        return outcome.drop(Reason::FouInner);
    }
    let decap = inner.l3 - outer.l3;
    if inner.len + decap != outer.len {
        return outcome.drop(Reason::FouInner);
    }
    let Some(tos) = congestion(outer.tos, inner.tos) else {
        return outcome.drop(Reason::FouCongestion);
    };
    if pod.is_client() && tables.is_gateway_of(pod.policy, &outer.src) {
        if !inner.dst.same(outer.dst) {
            return outcome.drop(Reason::FouInner);
        }
        // The tunnel ends in the pod: no hop.
        let plan = Plan { decap, tos, hop: false, ..Plan::forward(peer(pod)) };
        return outcome.send(Reason::Decapsulated, plan);
    }
    if !pod.is_gateway() {
        return outcome.drop(Reason::FouNotGateway);
    }
    if !inner.src.same(outer.src) {
        return outcome.drop(Reason::FouInner);
    }
    if !tables.in_pools(&outer.src) {
        return outcome.drop(Reason::FouSender);
    }
    if let Err(reason) = egress::translatable(inner) {
        return outcome.drop(reason);
    }
    let way = egress::Way { gateway: outer.dst, link: pod.ifindex, decap, tos, tell: false, sport: 0 };
    egress::translate(inner, &way, tables, outcome)
}

/// A reply to a gateway, for one of its clients.
#[inline(never)]
fn reply<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    to: &End<A>,
    tables: &mut T,
    outcome: &mut Outcome<A>,
) -> Reason {
    if packet.ttl <= 1 {
        return outcome.drop(Reason::EgressLastHop);
    }
    if let Some(pod) = tables.pod(&to.addr) {
        let plan = Plan { destination: Some(*to), ..Plan::forward(peer(&pod)) };
        return outcome.send(Reason::ReplyToPod, plan);
    }
    let fou_port = tables.config().fou_port;
    let outer =
        Outer { src: packet.dst, dst: to.addr, sport: fou_port, dport: fou_port, inner_len: 0, tos: 0 };
    let Some(encap) = egress::fill(packet, &outer) else { return outcome.drop(Reason::EgressTooBig) };
    match tables.fib(&egress::outer_query(packet, &outer)) {
        Fib::Forward { ifindex, via, .. } if tables.is_uplink(ifindex) => {
            let deliver = Deliver::Neighbour { ifindex, via };
            let plan = Plan { destination: Some(*to), encap: Some(encap), ..Plan::forward(deliver) };
            outcome.send(Reason::ReplyToNode, plan)
        }
        // The remote learns what fits: its reply of full size would vanish again and again.
        Fib::TooBig { mtu } => egress::too_big(packet.dst, mtu.saturating_sub(A::HEADER + UDP), outcome),
        _ => outcome.drop(Reason::EgressNotRouted),
    }
}

/// ECN bits of TOS and traffic class.
const ECN: u8 = 3;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;

/// The inner TOS after decapsulation (RFC 6040, figure 4): `None` when the packet must be dropped,
/// `Some(None)` when it stays.
#[inline(always)]
#[expect(clippy::option_option, reason = "refused, unchanged or changed")]
const fn congestion(outer: u8, inner: u8) -> Option<Option<u8>> {
    match (outer & ECN, inner & ECN) {
        (CE, 0) => None,
        (CE, ECT0 | ECT1) => Some(Some(inner | CE)),
        (ECT1, ECT0) => Some(Some(inner & !ECN | ECT1)),
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::congestion;

    #[test]
    fn congestion_marks_survive_the_tunnel() {
        assert_eq!(congestion(0xfc, 0), Some(None));
        assert_eq!(congestion(0x03, 0), None);
        assert_eq!(congestion(0x03, 0xb9), Some(Some(0xbb)));
        assert_eq!(congestion(0x01, 0x02), Some(Some(0x01)));
        assert_eq!(congestion(0x02, 0x01), Some(None));
        assert_eq!(congestion(0x00, 0x03), Some(None));
    }
}
