//! TC ingress of the host side of a pod's veth.

use super::{
    egress::{self, Remembered},
    forward, gateway,
};
use crate::{
    Decision, Reason, Skb, Tables,
    abi::NONE,
    wire::{Header, Kind, parse, quoted},
};

/// Decides about a packet that the pod behind the veth `ingress` sends.
#[inline(always)]
pub fn from_pod<A: Header, S: Skb, T: Tables<A>>(
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
    if forward::known(decision, ingress, tables) {
        return decision.outcome.reason;
    }
    match egress::known(decision, ingress, tables) {
        Remembered::Nothing => {}
        Remembered::Sent => return decision.outcome.reason,
        Remembered::Here => return gateway::out(decision, tables),
    }
    let Decision { packet, outcome, .. } = decision;
    // The pod is known by its veth: an address of another pod is a forgery, and gets no shortcut.
    let Some(pod) = tables.pod(&packet.src).filter(|pod| pod.ifindex == ingress) else {
        return match packet.kind {
            // It would pass for what a client or a gateway sends.
            Kind::Udp if packet.dport == tables.config().fou_port => outcome.drop(Reason::FouForged),
            _ => outcome.next(Reason::NotOwnSource),
        };
    };
    if pod.is_client()
        && let Some(egress) = tables.policy(pod.policy, &packet.dst)
    {
        return match egress::out(skb, &pod, egress, tables, decision) {
            Some(reason) => reason,
            None => gateway::out(decision, tables),
        };
    }
    if packet.kind == Kind::Udp
        && packet.dport == tables.config().fou_port
        && !pod.may_send_fou()
        && tables.gateway_of(NONE, &packet.dst).is_some()
    {
        return outcome.drop(Reason::FouForged);
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
