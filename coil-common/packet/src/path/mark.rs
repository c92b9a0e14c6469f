//! What the kernel sends: its flows are marked, so that none of them ever becomes fast.

use crate::{
    Addr, Decision, Draft, Insert, Reason, Skb, Tables,
    abi::{FlowValue, config_flag},
    flow::{self, Phase},
    wire::{ETHERNET, Header, Packet, parse},
};

/// Looks at a packet that the kernel delivers to the pod behind the veth `egress`.
#[inline(always)]
pub fn to_pod<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    egress: u32,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Reason {
    let Decision { packet, outcome, .. } = decision;
    if tables.config().flags & config_flag::MARK == 0 {
        return outcome.next(Reason::NotFastNode);
    }
    if !parse(skb, ETHERNET, packet) {
        return outcome.next(Reason::Malformed);
    }
    // From a service or the world: no such flow can be fast.
    let ours =
        tables.pod(&packet.dst).is_some_and(|pod| pod.ifindex == egress) && tables.in_pools(&packet.src);
    if !ours {
        return outcome.next(Reason::NotMarked);
    }
    mark(decision, tables)
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
    if !parse(skb, ETHERNET, packet) {
        return outcome.next(Reason::Malformed);
    }
    // Not from a pod, or masqueraded, or to the world: no such flow can be fast.
    if tables.pod(&packet.src).is_none() || !tables.in_pools(&packet.dst) {
        return outcome.next(Reason::NotMarked);
    }
    mark(decision, tables)
}

/// What the kernel did with a flow that was there.
const MARKED: u8 = 0;
const CLASH: u8 = 1;

/// Makes the packet's flow the kernel's.
#[inline(never)]
fn mark<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, tables: &mut T) -> Reason {
    let Decision { packet, flow: Draft { key, value, .. }, outcome, .. } = decision;
    if !flow::may_be_fast(packet, tables.config().flags & config_flag::MARK_UDP != 0) {
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
