//! What the kernel sends: its flows are marked, so that none of them ever becomes fast.

use super::{fou_error, gateway, incoming, is_fou, refused};
use crate::{
    Addr, Decision, Draft, Insert, Reason, Skb, Tables,
    abi::{FlowValue, config_flag},
    flow::{self, Phase},
    hops::Moment,
    nat,
    wire::{Header, Kind, Packet, parse},
};

/// Looks at a packet that the kernel delivers to the pod behind the veth `egress`.
#[inline(always)]
pub fn to_pod<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    egress: u32,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Reason {
    decision.moment = Moment::now(tables);
    let Decision { packet, outcome, .. } = decision;
    packet.ingress = egress;
    if !parse(skb, packet) {
        return outcome.next(Reason::Malformed);
    }
    let Some(pod) = tables.pod(&packet.dst).filter(|pod| pod.ifindex == egress) else {
        return outcome.next(Reason::NotMarked);
    };
    // Of this node's own pods and of links that are no uplinks, and what a Service's rules turned to the pod.
    if let Some(reason) = refused(packet, &pod, tables) {
        return outcome.drop(reason);
    }
    // What did not come from an uplink, or whose outer header the host stack had to see.
    if is_fou(packet, &pod, tables) {
        return gateway::from_tunnel(skb, &pod, tables, decision);
    }
    if packet.kind == Kind::Error
        && let Some(reason) = fou_error::relayed(skb, &pod, tables, decision)
    {
        return reason;
    }
    if pod.is_gateway()
        && let Some(reason) = gateway::back(skb, false, decision, tables)
    {
        return reason;
    }
    let Decision { packet, outcome, .. } = decision;
    // A client may have to answer it the way it came, wherever that is: an Egress may lead to pools, too.
    let comes_in =
        pod.is_originating_only() && flow::begins_in(packet) && !incoming::has_begun(packet, tables);
    if !tables.in_pools(&packet.src) {
        // From a service or the world: no such flow can be fast.
        return if comes_in {
            let _ = mark(decision, true, tables);
            decision.outcome.next(Reason::Incoming)
        } else {
            outcome.next(Reason::NotMarked)
        };
    }
    if comes_in {
        return mark(decision, true, tables);
    }
    if tables.config().flags & config_flag::MARK == 0 {
        return outcome.next(Reason::NotFastNode);
    }
    mark(decision, false, tables)
}

/// Looks at a packet that the kernel sends out of an uplink.
#[inline(always)]
pub fn to_net<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Reason {
    let Decision { packet, outcome, .. } = decision;
    if tables.config().flags & config_flag::MARK == 0 {
        return outcome.next(Reason::NotFastNode);
    }
    if !parse(skb, packet) {
        return outcome.next(Reason::Malformed);
    }
    // Not from a pod, or masqueraded, or to the world: no such flow can be fast. Nor can what a gateway has sent in a client's
    // name: whatever comes back is asked for its lease first.
    let may_be_fast = match tables.pod(&packet.src) {
        Some(pod) => {
            tables.in_pools(&packet.dst) && !(pod.is_gateway() && nat::may_lend(tables, packet.sport))
        }
        None => false,
    };
    if !may_be_fast {
        return outcome.next(Reason::NotMarked);
    }
    mark(decision, false, tables)
}

/// What the kernel did with a flow that was there.
const MARKED: u8 = 0;
const CLASH: u8 = 1;

/// Makes the packet's flow the kernel's. `all`: UDP and fragments, too, whatever the configuration says.
#[inline(never)]
fn mark<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, all: bool, tables: &mut T) -> Reason {
    let Decision { packet, flow: Draft { key, value, .. }, outcome, .. } = decision;
    if !all && !flow::may_be_fast(packet, tables.config().flags & config_flag::MARK_UDP != 0) {
        return outcome.next(Reason::NotFastKind);
    }
    let now = tables.now();
    (*key, _) = flow::key(packet);
    let mut there = tables.with_flow(key, |flow| take(flow, packet, now));
    if there.is_none() {
        flow::begin(value, flow::KERNEL, packet, now);
        match tables.add_flow(key, value) {
            Ok(()) => there = Some(MARKED),
            Err(Insert::Exists) => there = tables.with_flow(key, |flow| take(flow, packet, now)),
            Err(Insert::Full) => {}
        }
    }
    match there {
        Some(CLASH) => outcome.drop(Reason::FlowClash),
        Some(_) => outcome.next(Reason::Marked),
        None => {
            tables.lose_mark();
            outcome.next(Reason::MarkLost)
        }
    }
}

/// Takes a flow for the kernel: it has the last word, but for a new connection which it translated to the
/// addresses and ports of a live fast one, because it does not know that one.
#[inline(always)]
fn take<A: Addr>(flow: &mut FlowValue, packet: &Packet<A>, now: u32) -> u8 {
    if flow.state == flow::FAST {
        if flow::is_syn(packet) && flow.phase != Phase::Closing as u8 {
            flow.clash = 1;
            return CLASH;
        }
        flow.state = flow::KERNEL;
        flow.phase = Phase::New as u8;
    }
    flow::note(flow, packet, now);
    MARKED
}
