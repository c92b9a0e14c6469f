//! TC ingress of an uplink.

use super::{forward, fou_error, gateway};
use crate::{
    Decision, Outlet, Reason, Skb, Tables,
    hops::Moment,
    wire::{Header, Kind, quoted},
};

/// Looks at a packet that came in on the uplink `ingress`, and decides about one that needs no more than what is
/// remembered; false for another, which is [`decide_from_net`]'s.
#[inline(always)]
pub fn known_from_net<A: Header, S: Skb, T: Tables<A>, O: Outlet<A>>(
    skb: &S,
    ingress: u32,
    tables: &mut T,
    decision: &mut Decision<A>,
    outlet: &mut O,
) -> bool {
    if !super::look(skb, ingress, decision) {
        return true;
    }
    let packet = &decision.packet;
    if packet.kind == Kind::Udp && packet.dport == tables.config().fou_port {
        return gateway::known_inside(skb, decision, tables, outlet);
    }
    forward::known(decision, forward::NETWORK, tables)
}

/// Decides about a packet that [`known_from_net`] has looked at.
#[inline(always)]
pub fn decide_from_net<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Reason {
    decision.moment = Moment::now(tables);
    let Decision { packet, outcome, .. } = decision;
    let Some(pod) = tables.pod(&packet.dst) else { return outcome.next(Reason::NotAPod) };
    // Here it has the source that it was sent with, and is in fragments if it was sent so.
    if let Some(reason) = super::refused(packet, &pod, tables) {
        return outcome.drop(reason);
    }
    // `to_pod` does what is to be done, behind the host's stack.
    if tables.config().is_by_host_stack() {
        return outcome.next(Reason::HostStack);
    }
    if super::is_fou(packet, &pod, tables) {
        return gateway::from_tunnel(skb, &pod, tables, decision);
    }
    if packet.kind == Kind::Error
        && let Some(reason) = fou_error::relayed(skb, &pod, tables, decision)
    {
        return reason;
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
