//! TC ingress of an uplink.

use super::{forward, gateway};
use crate::{
    Decision, Reason, Skb, Tables,
    wire::{Header, Kind, parse, quoted},
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
    if !parse(skb, packet) {
        return outcome.next(Reason::Malformed);
    }
    if forward::known(decision, forward::NETWORK, tables) {
        return decision.outcome.reason;
    }
    let Decision { packet, outcome, .. } = decision;
    let Some(pod) = tables.pod(&packet.dst) else { return outcome.next(Reason::NotAPod) };
    // `to_pod` does what is to be done, behind the host's stack.
    if tables.config().is_by_host_stack() {
        return outcome.next(Reason::HostStack);
    }
    if super::is_fou(packet, &pod, tables) {
        return gateway::from_tunnel(skb, &pod, tables, decision);
    }
    if pod.is_gateway()
        && let Some(reason) = gateway::back(skb, true, decision, tables)
    {
        return reason;
    }
    let Decision { packet, outer, .. } = decision;
    if packet.kind == Kind::Error && quoted(skb, packet, outer) {
        return forward::error(decision, tables);
    }
    forward::to_local(decision, &pod, tables)
}
