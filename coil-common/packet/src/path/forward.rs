//! Pod to pod, without NAT.

use super::query;
use crate::{
    Addr, Decision, Draft, Fib, FibQuery, Insert, Reason, Tables,
    abi::{Config, PodValue, Way, config_flag, way_kind},
    flow,
    wire::Packet,
};

/// [`Way::ingress`] of what comes in on any uplink.
pub(super) const NETWORK: u32 = 0;

/// A packet of a fast flow whose decision was made in this second: one lookup. `ingress`: the pod's link, or
/// [`NETWORK`]. False when it has to be decided.
#[inline(always)]
pub(super) fn known<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, ingress: u32, tables: &mut T) -> bool {
    eligible(&decision.packet, &tables.config()).is_ok() && known_flow(decision, ingress, tables)
}

#[inline(never)]
fn known_flow<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, ingress: u32, tables: &mut T) -> bool {
    let Decision { packet, flow: Draft { key, upward, .. }, way, outcome, .. } = decision;
    let config = tables.config();
    let now = tables.now();
    (*key, *upward) = flow::key(packet);
    let holds = tables.with_flow(key, |flow| {
        // Two copies of a known length each: one of either would be a call of memmove.
        if *upward {
            *way = flow.upward;
        } else {
            *way = flow.downward;
        }
        let holds = flow.state == flow::FAST && way.holds(&config, now, ingress, packet.segment);
        if holds {
            flow::note(flow, packet, now);
        }
        holds
    });
    if holds != Some(true) {
        return false;
    }
    let reason = if way.kind == way_kind::POD { Reason::ToPod } else { Reason::ToNode };
    let _ = outcome.forward(reason);
    true
}

/// A packet of a local pod that is not egress.
#[inline(never)]
pub(super) fn to_pod_or_node<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, tables: &mut T) -> Reason {
    let Decision { packet, way, outcome, .. } = decision;
    let local = tables.pod(&packet.dst);
    if local.is_none() && !tables.in_pools(&packet.dst) {
        return outcome.next(Reason::NotAPod);
    }
    // The source is a pod's own address, and yet need not be of a pool (chained mode).
    if let Err(reason) = eligible(packet, &tables.config()) {
        return outcome.next(reason);
    }
    if let Some(pod) = &local
        && comes_in(packet, pod, tables)
    {
        return outcome.next(Reason::Incoming);
    }
    let reason = way_out(packet, local.as_ref(), tables, way);
    if !matches!(reason, Reason::ToPod | Reason::ToNode) {
        return outcome.next(reason);
    }
    // Last, so that a flow whose first packet the kernel gets is the kernel's.
    let ingress = packet.ingress;
    draft(decision, ingress, tables);
    match enter(decision, false, tables) {
        Reason::ToPod => decision.outcome.forward(reason),
        refused => decision.outcome.next(refused),
    }
}

/// A packet from the network for a pod of this node.
#[inline(never)]
pub(super) fn to_local<A: Addr, T: Tables<A>>(
    decision: &mut Decision<A>,
    pod: &PodValue,
    tables: &mut T,
) -> Reason {
    let Decision { packet, way, outcome, .. } = decision;
    if let Err(reason) = eligible(packet, &tables.config()) {
        return outcome.next(reason);
    }
    if pod.is_by_kernel() {
        return outcome.next(Reason::KernelPod);
    }
    if packet.segment > pod.mtu {
        return outcome.next(Reason::ForwardTooBig);
    }
    if comes_in(packet, pod, tables) {
        return outcome.next(Reason::Incoming);
    }
    way.to_pod(pod);
    if flow::begins(packet, tables) && !answers_come_by(packet, pod, tables) {
        return outcome.next(Reason::NotRouted);
    }
    draft(decision, NETWORK, tables);
    match enter(decision, true, tables) {
        Reason::ToPod => decision.outcome.forward(Reason::ToPod),
        refused => decision.outcome.next(refused),
    }
}

/// An ICMP error of a local pod about a packet that it got, or from the network about one that a local pod
/// sent; the packet stands in `outer`. The kernel knows nothing of a fast flow, and would take the error for
/// invalid.
#[inline(never)]
pub(super) fn error<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, tables: &mut T) -> Reason {
    let Decision { packet, outer: quoted, flow: Draft { key, .. }, way, outcome, .. } = decision;
    if tables.config().flags & config_flag::FORWARD == 0 {
        return outcome.next(Reason::NotFastNode);
    }
    (*key, _) = flow::key(quoted);
    match tables.with_flow(key, |flow| flow.state).unwrap_or(0) {
        flow::FAST => {}
        flow::KERNEL => return outcome.next(Reason::KernelFlow),
        _ => return outcome.next(Reason::NotFastFlow),
    }
    if packet.ttl <= 1 {
        return outcome.next(Reason::LastHop);
    }
    let local = tables.pod(&packet.dst);
    match way_out(packet, local.as_ref(), tables, way) {
        reason @ (Reason::ToPod | Reason::ToNode) => outcome.forward(reason),
        reason => outcome.next(reason),
    }
}

/// Finds how a packet gets to its destination: [`Reason::ToPod`] or [`Reason::ToNode`], or why the kernel has to
/// take it.
#[inline(always)]
fn way_out<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    local: Option<&PodValue>,
    tables: &T,
    way: &mut Way,
) -> Reason {
    match local {
        Some(pod) if pod.is_by_kernel() => Reason::KernelPod,
        Some(pod) if packet.segment > pod.mtu => Reason::ForwardTooBig,
        Some(pod) => {
            way.to_pod(pod);
            Reason::ToPod
        }
        None => match tables.fib(&query(packet)) {
            Fib::Forward { ifindex, via, fits } if tables.is_uplink(ifindex) => {
                way.to_neighbour(ifindex, &via, fits);
                Reason::ToNode
            }
            Fib::TooBig { .. } => Reason::ForwardTooBig,
            _ => Reason::NotRouted,
        },
    }
}

/// Writes the entry that the packet's flow would begin with, if it is fast. The packet itself goes to a neighbour by
/// the kernel's search, which keeps the kernel's knowledge of it fresh; those that follow in this second need none.
#[inline(always)]
fn draft<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, ingress: u32, tables: &T) {
    let Decision { moment, packet, flow: Draft { key, value, upward }, way, .. } = decision;
    (*key, *upward) = flow::key(packet);
    let now = tables.now();
    flow::begin(value, flow::FAST, packet, now);
    let (next, other) = if *upward {
        (&mut value.upward, &mut value.downward)
    } else {
        (&mut value.downward, &mut value.upward)
    };
    other.epoch = 0;
    *next = *way;
    if way.kind != way_kind::POD
        && let Some(macs) = tables.macs()
    {
        next.to_link(macs);
    }
    next.seal(moment, ingress);
}

/// Finds or makes the packet's fast flow, and stores the drafted decision in it. [`Reason::ToPod`] says that it
/// is fast, another reason why not.
#[inline(never)]
fn enter<A: Addr, T: Tables<A>>(decision: &Decision<A>, network: bool, tables: &mut T) -> Reason {
    let Decision { packet, flow: draft, .. } = decision;
    let mut state = look(packet, draft, tables);
    if state == 0 {
        if !begins_fast(packet, tables, network) {
            return Reason::NotFastFlow;
        }
        match tables.add_flow(&draft.key, &draft.value) {
            Ok(()) => return Reason::ToPod,
            Err(Insert::Full) => return Reason::FlowTableFull,
            // Another CPU was faster; it may be the kernel's by now.
            Err(Insert::Exists) => state = look(packet, draft, tables),
        }
    }
    match state {
        flow::FAST => Reason::ToPod,
        flow::KERNEL => Reason::KernelFlow,
        _ => Reason::NotFastFlow,
    }
}

/// True for what may begin a connection to a client from where an Egress that is originating only leads: `to_pod` notes it for
/// its answers, some of which may be in fragments (the client's route there has an MTU of its own).
#[inline(never)]
fn comes_in<A: Addr, T: Tables<A>>(packet: &Packet<A>, pod: &PodValue, tables: &T) -> bool {
    pod.is_originating_only()
        && flow::begins(packet, tables)
        && tables.policy(pod.policy, &packet.src).is_some()
}

/// True when what the pod answers to a packet from the network leaves by an uplink: elsewhere it would be the kernel's, which
/// has not seen what it answers.
#[inline(never)]
fn answers_come_by<A: Addr, T: Tables<A>>(packet: &Packet<A>, pod: &PodValue, tables: &T) -> bool {
    let back = FibQuery {
        ifindex: pod.ifindex,
        src: packet.dst,
        dst: packet.src,
        sport: packet.dport,
        dport: packet.sport,
        len: 0,
        ..query(packet)
    };
    matches!(tables.fib(&back), Fib::Forward { ifindex, .. } if tables.is_uplink(ifindex))
}

/// The state of the packet's flow, 0 without one. Keeps it alive, and stores the decision in a fast one.
#[inline(always)]
fn look<A: Addr, T: Tables<A>>(packet: &Packet<A>, draft: &Draft<A>, tables: &mut T) -> u8 {
    let Draft { key, value, upward } = draft;
    let state = tables.with_flow(key, |flow| {
        flow::note(flow, packet, value.seen);
        if flow.state == flow::FAST {
            if *upward {
                flow.upward = value.upward;
            } else {
                flow.downward = value.downward;
            }
        }
        flow.state
    });
    state.unwrap_or(0)
}

/// True for the first packet of a flow between two pool addresses.
#[inline(always)]
fn begins_fast<A: Addr, T: Tables<A>>(packet: &Packet<A>, tables: &T, network: bool) -> bool {
    // A pod of this node does not send from the network.
    flow::begins(packet, tables)
        && tables.in_pools(&packet.src)
        && tables.in_pools(&packet.dst)
        && !(network && tables.pod(&packet.src).is_some())
}

/// What every fast packet must be.
#[inline(always)]
fn eligible<A: Addr>(packet: &Packet<A>, config: &Config) -> Result<(), Reason> {
    if config.flags & config_flag::FORWARD == 0 {
        Err(Reason::NotFastNode)
    } else if !flow::may_be_fast(packet, config.flags & config_flag::FAST_UDP != 0) {
        Err(Reason::NotFastKind)
    } else if packet.ttl <= 1 {
        Err(Reason::LastHop)
    } else {
        Ok(())
    }
}
