//! TC ingress of the host side of a pod's veth.

use super::{
    egress::{self, Remembered},
    forward, gateway, incoming,
};
use crate::{
    Addr, Decision, Outlet, Reason, Skb, Tables,
    abi::{NONE, PodValue},
    hops::Moment,
    wire::{ETHERNET, Header, Kind, Packet, quoted},
};

/// Looks at a packet that the pod behind the veth `ingress` sends, and decides about one that needs no more than what is
/// remembered; false for another, which is [`decide_from_pod`]'s.
#[inline(always)]
pub fn known_from_pod<A: Header, S: Skb, T: Tables<A>, O: Outlet<A>>(
    skb: &S,
    ingress: u32,
    tables: &mut T,
    decision: &mut Decision<A>,
    outlet: &mut O,
) -> bool {
    if !super::look(skb, ingress, decision) {
        let _ = unreadable(skb, ingress, tables, decision);
        return true;
    }
    if forward::known(decision, ingress, tables) {
        return true;
    }
    if A::L3_SUM {
        known_client(decision, ingress, tables, outlet)
    } else {
        known_client_called(decision, ingress, tables, outlet)
    }
}

/// Decides about a packet whose header says nothing that the programs understand. The kernel may: of IPv4 it takes a packet
/// without a length (`BIG TCP`, since Linux 6.3, commit b1a78b9b9886), of IPv6 it forwards one whose fragment header is cut
/// short. What an Egress would take of a client must not go out that way, past the gateway.
#[inline(never)]
fn unreadable<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    ingress: u32,
    tables: &T,
    decision: &mut Decision<A>,
) -> Reason {
    let Decision { packet, outcome, .. } = decision;
    let Some((src, dst)) = A::ends(skb, ETHERNET) else { return outcome.reason };
    // For who is told of the packet.
    *packet = Packet { src, dst, ingress, ..Packet::nothing() };
    match tables.pod(&src) {
        Some(pod)
            if pod.ifindex == ingress && pod.is_client() && tables.policy(pod.policy, &dst).is_some() =>
        {
            outcome.drop(Reason::EgressUnreadable)
        }
        _ => outcome.reason,
    }
}

/// A call for IPv6, whose addresses take much of the stack.
#[inline(never)]
fn known_client_called<A: Addr, T: Tables<A>, O: Outlet<A>>(
    decision: &mut Decision<A>,
    ingress: u32,
    tables: &mut T,
    outlet: &mut O,
) -> bool {
    known_client(decision, ingress, tables, outlet)
}

#[inline(always)]
fn known_client<A: Addr, T: Tables<A>, O: Outlet<A>>(
    decision: &mut Decision<A>,
    ingress: u32,
    tables: &mut T,
    outlet: &mut O,
) -> bool {
    match egress::known(decision, ingress, tables, outlet) {
        Remembered::Nothing => false,
        Remembered::Sent => true,
        Remembered::Here => gateway::known(decision, tables, outlet),
    }
}

/// Decides about a packet that [`known_from_pod`] has looked at.
#[inline(always)]
pub fn decide_from_pod<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    ingress: u32,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Reason {
    decision.moment = Moment::now(tables);
    let Decision { packet, quoted: told, outcome, .. } = decision;
    // The pod is known by its veth: an address of another pod is a forgery, and gets no shortcut.
    let Some(pod) = tables.pod(&packet.src).filter(|pod| pod.ifindex == ingress) else {
        // It would pass for what a client or a gateway sends.
        return if super::is_to_fou_port(packet, tables) {
            outcome.drop(Reason::FouForged)
        } else {
            outcome.next(Reason::NotOwnSource)
        };
    };
    if pod.is_client()
        && let Some(egress) = tables.policy(pod.policy, &packet.dst)
        && !(pod.is_originating_only() && incoming::came_in_fast(skb, packet, told, egress, tables))
    {
        return match egress::out(skb, &pod, egress, tables, decision) {
            Some(reason) => reason,
            None => gateway::out(decision, tables),
        };
    }
    if super::is_to_fou_port(packet, tables)
        && let Some(reason) = strange_fou(packet, &pod, tables)
    {
        return outcome.drop(reason);
    }
    if pod.is_by_kernel() {
        return outcome.next(Reason::KernelPod);
    }
    let Decision { packet, outer, .. } = decision;
    if packet.kind == Kind::Error && quoted(skb, packet, outer) {
        return forward::error(decision, tables);
    }
    forward::to_pod_or_node(decision, tables)
}

/// Why a pod of this node may not send what goes to the FOU port, if it may not. The programs send a client's FOU, not the
/// client. What a pod of this node with a kernel of its own takes out of FOU, no program looks at.
#[inline(never)]
fn strange_fou<A: Addr, T: Tables<A>>(packet: &Packet<A>, pod: &PodValue, tables: &T) -> Option<Reason> {
    let to = tables.pod(&packet.dst).filter(PodValue::is_kernel_client);
    if !pod.may_send_fou() && (to.is_some() || tables.gateway_of(NONE, &packet.dst).is_some()) {
        return Some(Reason::FouForged);
    }
    // UDP between pods may go a way that passes `to_pod` by.
    super::refused(packet, &to?, tables)
}
