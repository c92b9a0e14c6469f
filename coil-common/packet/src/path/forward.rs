//! Pod to pod, without NAT.

use super::{peer, query};
use crate::{
    Addr, Deliver, Fib, Outcome, Plan, Reason, Tables,
    abi::{PodValue, config_flag},
    flow,
    wire::Packet,
};

/// A packet of a local pod that is not egress.
#[inline(never)]
pub(super) fn to_pod_or_node<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    tables: &mut T,
    outcome: &mut Outcome<A>,
) -> Reason {
    let local = tables.pod(&packet.dst);
    if local.is_none() && !tables.in_pools(&packet.dst) {
        return outcome.next(Reason::NotAPod);
    }
    // The source is a pod's own address, and yet need not be of a pool (chained mode).
    if let Err(reason) = eligible(packet, tables) {
        return outcome.next(reason);
    }
    let key = flow::key(packet);
    let fast = flow::is_fast(tables, &key, packet);
    if !fast && !may_become_fast(packet, tables) {
        return outcome.next(Reason::NotFastFlow);
    }
    let (deliver, reason) = match local {
        Some(pod) => (peer(&pod), Reason::ToPod),
        None => match tables.fib(&query(packet)) {
            Fib::Forward { ifindex, via } if tables.is_uplink(ifindex) => {
                (Deliver::Neighbour { ifindex, via }, Reason::ToNode)
            }
            Fib::TooBig { .. } => return outcome.next(Reason::ForwardTooBig),
            _ => return outcome.next(Reason::NotRouted),
        },
    };
    // Last, so that a flow whose first packet the kernel gets is the kernel's.
    if !fast && tables.put_flow(&key, &flow::fresh(tables)).is_err() {
        return outcome.next(Reason::FlowTableFull);
    }
    outcome.send(reason, Plan::forward(deliver))
}

/// A packet from the network for a pod of this node.
#[inline(never)]
pub(super) fn to_local<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    pod: &PodValue,
    tables: &mut T,
    outcome: &mut Outcome<A>,
) -> Reason {
    if let Err(reason) = eligible(packet, tables) {
        return outcome.next(reason);
    }
    let key = flow::key(packet);
    if !flow::is_fast(tables, &key, packet) {
        // A pod of this node does not send from the network.
        if !may_become_fast(packet, tables) || tables.pod(&packet.src).is_some() {
            return outcome.next(Reason::NotFastFlow);
        }
        if tables.put_flow(&key, &flow::fresh(tables)).is_err() {
            return outcome.next(Reason::FlowTableFull);
        }
    }
    outcome.send(Reason::ToPod, Plan::forward(peer(pod)))
}

/// True for the first packet of a flow between two pool addresses.
#[inline(always)]
fn may_become_fast<A: Addr, T: Tables<A>>(packet: &Packet<A>, tables: &T) -> bool {
    flow::begins(packet) && tables.in_pools(&packet.src) && tables.in_pools(&packet.dst)
}

/// What every fast packet must be.
#[inline(always)]
fn eligible<A: Addr, T: Tables<A>>(packet: &Packet<A>, tables: &T) -> Result<(), Reason> {
    if tables.config().flags & config_flag::FORWARD == 0 {
        Err(Reason::NotFastFlow)
    } else if !flow::may_be_fast(packet) {
        Err(Reason::NotFastKind)
    } else if packet.ttl <= 1 {
        Err(Reason::LastHop)
    } else {
        Ok(())
    }
}
