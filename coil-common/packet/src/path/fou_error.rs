//! ICMP errors about FOU: a path between nodes that is narrower than their links.
//!
//! They come to the pod in whose name FOU was sent, whose kernel knows nothing of it. Who sent what was inside is told
//! instead: the client, or the remote whose reply was on its way to a client. What fits the path is remembered, too: not
//! every router quotes the packet inside, and what is too big is refused on its own node from then on.
//!
//! Other errors tell nobody anything: a way that is not there may be there in a second, and who is told gives up at once.

use super::{egress, peer};
use crate::{
    Addr, Decision, Deliver, End, Message, Reason, Relay, Skb, Tables,
    abi::{ClientKey, PathKey, PathValue, PodValue},
    icmp::{QUOTED, least_mtu},
    nat,
    wire::{ETHERNET, Header, Kind, Packet, UDP, quoted, quoted_inside},
};

/// An ICMP error for a pod of this node. None when it is not about FOU that the programs have sent.
#[inline(never)]
pub(super) fn relayed<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    pod: &PodValue,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Option<Reason> {
    let Decision { packet, outer, quoted: inner, client: end, .. } = decision;
    if !pod.is_client() && !pod.is_gateway() || !quoted(skb, packet, outer) {
        return None;
    }
    if outer.kind != Kind::Udp || outer.dport != tables.config().fou_port {
        return None;
    }
    let by_client = pod.is_client() && tables.gateway_of(pod.policy, &outer.dst).is_some();
    if !by_client && !tables.is_client(&ClientKey { gateway: outer.src, client: outer.dst }) {
        return None;
    }
    let mtu = A::too_big(&skb.load(packet.l4)?)?;
    let least = least_mtu::<A>();
    if mtu < least || mtu > 0xffff {
        return None;
    }
    let path = PathKey { from: outer.src, to: outer.dst };
    let is_whole =
        quoted_inside(skb, packet, outer, inner) && inner.l3 + A::HEADER + QUOTED <= packet.l3 + packet.len;
    if !is_whole {
        // Whoever knows the addresses can say that much: it counts for what every path has, and no pod is a router.
        if mtu < CREDIBLE || tables.in_pools(&packet.src) {
            return None;
        }
        note(&path, mtu, tables);
        return Some(decision.outcome.next(Reason::PathNoted));
    }
    let is_known =
        if by_client { has_sent(inner, outer, tables) } else { was_reply(inner, outer, tables, end) };
    if !is_known {
        return None;
    }
    note(&path, mtu, tables);
    // Who sent what was inside cannot be told less, whatever the path.
    #[expect(clippy::cast_possible_truncation, reason = "no more than what was said")]
    let fits = (mtu - A::HEADER - UDP).max(least) as u16;
    Some(if by_client { tell_client(decision, pod, fits) } else { tell_remote(decision, pod, fits) })
}

/// The least MTU that is believed of a router that does not quote the packet inside.
const CREDIBLE: u32 = 1280;

/// Remembers what fits a path. One that is narrower somewhere else has not become wider.
#[inline(never)]
fn note<A: Addr, T: Tables<A>>(path: &PathKey<A>, mtu: u32, tables: &mut T) {
    if mtu <= egress::path_mtu(path, tables) {
        tables.put_path(path, &PathValue { seen: tables.now(), mtu });
    }
}

/// True when a client has sent the packet to the gateway: not everybody who says so knows what flows there are.
#[inline(never)]
fn has_sent<A: Addr, T: Tables<A>>(inner: &Packet<A>, outer: &Packet<A>, tables: &mut T) -> bool {
    let key = egress::flow_key(inner);
    inner.src.same(outer.src) && tables.with_pin(&key, |pin| pin.gateway.same(outer.dst)) == Some(true)
}

/// True when the packet was a reply of the remote to the client. Fills in whom that knows of.
#[inline(never)]
fn was_reply<A: Addr, T: Tables<A>>(
    inner: &Packet<A>,
    outer: &Packet<A>,
    tables: &T,
    end: &mut End<A>,
) -> bool {
    let Ok(port) = u16::try_from(nat::outbound_error(tables, &outer.src, inner)) else { return false };
    end.addr = outer.src;
    end.port = port;
    inner.dst.same(outer.dst)
}

/// Tells the client what fits.
#[inline(never)]
fn tell_client<A: Addr>(decision: &mut Decision<A>, pod: &PodValue, mtu: u16) -> Reason {
    let Decision { packet, quoted: inner, client, outcome, .. } = decision;
    let deliver = peer(pod);
    let message = Message { from: packet.src, mtu };
    let strip = inner.l3 - ETHERNET;
    outcome.relay(Reason::FouError, Relay { strip, was_reply: false, destination: *client, message, deliver })
}

/// Tells the remote, by the host's stack. A router between nodes is nobody that it can know.
#[inline(never)]
fn tell_remote<A: Addr>(decision: &mut Decision<A>, pod: &PodValue, mtu: u16) -> Reason {
    let Decision { outer, quoted: inner, client, outcome, .. } = decision;
    let deliver = Deliver::Stack { ifindex: pod.ifindex, mac: pod.mac, host_mac: pod.host_mac };
    let message = Message { from: outer.src, mtu };
    let strip = inner.l3 - ETHERNET;
    outcome.relay(Reason::FouError, Relay { strip, was_reply: true, destination: *client, message, deliver })
}
