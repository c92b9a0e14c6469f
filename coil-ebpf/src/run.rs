//! What all programs do: look at the frame, decide, count, apply, send.

use coil_packet::{
    Addr, Decision, Deliver, Family, Outcome, Outlet, Path, Plan, Reason, Verdict,
    abi::{Event, way_kind},
    answer, apply, forward, relay,
    wire::Packet,
};

use crate::{
    maps::{self, scratch},
    skb::{AF_INET, AF_INET6, Buffer},
    tables::{Kernel, Side},
};

/// `TC_ACT_UNSPEC` and `TCX_NEXT`.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT` and `TCX_DROP`.
const DROP: i32 = 2;
/// No action of the kernel: the packet could not be changed as planned.
const FAULT: i32 = i32::MIN;
/// No action of the kernel: the decision is made, and not carried out.
const DECIDED: i32 = i32::MIN + 1;
/// No action of the kernel: there is no decision.
const UNKNOWN: i32 = i32::MIN + 2;

/// A program.
pub(crate) trait Hook {
    /// Its counters.
    const PATH: Path;
    /// True for a program on the way in.
    const FORWARDS: bool = matches!(Self::PATH, Path::FromPod | Path::FromNet);
    /// False for a packet that it leaves alone at the first look: one with a tag, or one that another of the programs
    /// sends, which has a mark that is for us alone.
    #[inline(always)]
    fn concerns(skb: &Buffer) -> bool {
        !skb.take_mark(maps::config().mark) && !skb.is_tagged()
    }
    /// Its look at a packet, and the decision about one that needs no more than what is remembered; else false.
    #[inline(always)]
    fn knows<A: Side>(_: &Buffer, _: &mut Kernel, _: &mut Decision<A>, _: &mut impl Outlet<A>) -> bool {
        false
    }
    /// Its decision about another.
    fn decide<A: Side>(skb: &Buffer, tables: &mut Kernel, decision: &mut Decision<A>) -> Reason;
}

/// Runs a program on a packet of either family; what is neither is the kernel's.
#[inline(always)]
pub(crate) fn by_family<H: Hook>(skb: &Buffer) -> i32 {
    if H::FORWARDS && !skb.take_priority_tags() {
        let family = if skb.family() == Some(Family::V6) { Family::V6 } else { Family::V4 };
        maps::count(H::PATH, family, Reason::Rewrite, skb.len());
        return DROP;
    }
    if !H::concerns(skb) {
        return NEXT;
    }
    match skb.family() {
        Some(Family::V4) => run::<H, [u8; 4]>(skb),
        Some(Family::V6) => run::<H, [u8; 16]>(skb),
        None => NEXT,
    }
}

/// A look, the decision and rewriting are functions of their own, one after the other, so that each has most of the
/// 512 bytes of BPF stack; the decision waits in per-CPU memory.
#[inline(always)]
fn run<H: Hook, A: Side>(skb: &Buffer) -> i32 {
    let Some(decision) = scratch::<A>() else { return NEXT };
    let len = skb.len();
    let mut action = if H::FORWARDS { knows::<H, A>(skb, decision) } else { UNKNOWN };
    let mut reason = if action == UNKNOWN { decide::<H, A>(skb, decision) } else { decision.outcome.reason };
    if action == UNKNOWN || action == DECIDED {
        action = match decision.outcome.verdict {
            Verdict::Next => NEXT,
            Verdict::Drop => DROP,
            Verdict::Forward if H::FORWARDS => pass_on(skb, decision),
            // No program on the way out forwards: without the code that would, the kernel need not make packets
            // writable.
            Verdict::Forward => NEXT,
            Verdict::Send(_) => carry_out::<H, A>(skb, decision),
            Verdict::Answer(_) => tell::<H, A>(skb, decision),
            Verdict::Relay(_) if matches!(H::PATH, Path::FromNet | Path::ToPod) => {
                pass_error_on::<H, A>(skb, decision)
            }
            // No error about FOU comes from a pod, and none is sent to the network.
            Verdict::Relay(_) => FAULT,
        };
    }
    if action == FAULT {
        (reason, action) = (Reason::Rewrite, DROP);
    }
    maps::count(H::PATH, <A as Addr>::FAMILY, reason, len);
    #[cfg(feature = "log")]
    if crate::log::tells_of(H::PATH) {
        crate::log::packet(skb, H::PATH, decision, reason);
    }
    if action == DROP {
        report::<H, A>(skb, decision, reason, len);
    }
    action
}

/// The action of a packet that was sent at once, or [`DECIDED`], or [`UNKNOWN`].
#[inline(never)]
fn knows<H: Hook, A: Side>(skb: &Buffer, decision: &mut Decision<A>) -> i32 {
    let mut now = Now { skb: skb.writer(), action: DECIDED };
    if H::knows::<A>(skb, &mut Kernel::new(skb), decision, &mut now) { now.action } else { UNKNOWN }
}

/// Sends what it can at once. The plan is in sight where this is compiled, and its code has no more than it asks for;
/// IPv6 has too little stack for that.
struct Now {
    skb: Buffer,
    action: i32,
}

impl<A: Side> Outlet<A> for Now {
    #[inline(always)]
    fn send(&mut self, packet: &Packet<A>, outcome: &mut Outcome<A>, reason: Reason, plan: Plan<A>) {
        if !A::L3_SUM {
            outcome.plan(reason, plan);
            return;
        }
        outcome.reason = reason;
        self.action = match apply(&mut self.skb.front(), packet, &plan) {
            Ok(()) => out_of(&self.skb, &plan.deliver),
            Err(_) => FAULT,
        };
    }
}

/// Sends a packet out of the link that it is for.
#[inline(always)]
fn out_of(skb: &Buffer, deliver: &Deliver) -> i32 {
    match deliver {
        Deliver::Link { ifindex, .. } => {
            skb.add_mark(maps::config().mark);
            skb.send_out(*ifindex)
        }
        _ => FAULT,
    }
}

#[inline(never)]
fn decide<H: Hook, A: Side>(skb: &Buffer, decision: &mut Decision<A>) -> Reason {
    H::decide::<A>(skb, &mut Kernel::new(skb), decision)
}

/// Tells of a packet that was dropped.
#[inline(never)]
fn report<H: Hook, A: Side>(skb: &Buffer, decision: &Decision<A>, reason: Reason, len: u32) {
    let packet = &decision.packet;
    let (src, dst) = (packet.src.words(), packet.dst.words());
    maps::tell(&Event {
        src: [src.0, src.1],
        dst: [dst.0, dst.1],
        ifindex: skb.ifindex(),
        len,
        sport: packet.sport,
        dport: packet.dport,
        protocol: packet.protocol,
        path: H::PATH as u8,
        family: <A as Addr>::FAMILY as u8,
        reason: reason as u8,
    });
}

#[inline(always)]
fn pass_on<A: Side>(skb: &Buffer, decision: &Decision<A>) -> i32 {
    let way = &decision.way;
    if forward(&mut skb.front(), &decision.packet, way).is_err() {
        return FAULT;
    }
    if way.kind == way_kind::POD {
        return skb.send_to_peer(way.egress);
    }
    skb.add_mark(maps::config().mark);
    if way.kind == way_kind::LINK { skb.send_out(way.egress) } else { search(skb, decision) }
}

/// Lets the kernel search for the neighbour. Not inlined: a part of the stack of its own.
#[inline(never)]
fn search<A: Side>(skb: &Buffer, decision: &Decision<A>) -> i32 {
    let way = &decision.way;
    let family = if way.kind == way_kind::NEIGHBOUR4 { AF_INET } else { AF_INET6 };
    skb.send_to_neighbour(way.egress, family, &way.next)
}

#[inline(never)]
fn carry_out<H: Hook, A: Side>(skb: &Buffer, decision: &Decision<A>) -> i32 {
    let Verdict::Send(plan) = &decision.outcome.verdict else { return FAULT };
    let packet = &decision.packet;
    // A program on the way out rarely changes a packet: written in place, each would have to be made its own first.
    let done = if H::FORWARDS {
        apply(&mut skb.front(), packet, plan)
    } else {
        apply(&mut skb.writer(), packet, plan)
    };
    match done {
        Ok(()) => send::<H>(skb, &plan.deliver),
        Err(_) => FAULT,
    }
}

#[inline(never)]
fn tell<H: Hook, A: Side>(skb: &Buffer, decision: &Decision<A>) -> i32 {
    let Verdict::Answer(message) = &decision.outcome.verdict else { return FAULT };
    match answer(&mut skb.writer(), &decision.packet, message) {
        // Back to where it came from: from a pod's link into the stack, as if the pod had sent it.
        Ok(()) if matches!(H::PATH, Path::ToPod) => {
            skb.add_mark(maps::config().mark);
            skb.send_in(skb.ifindex())
        }
        Ok(()) => skb.send_back(),
        Err(_) => FAULT,
    }
}

#[inline(never)]
fn pass_error_on<H: Hook, A: Side>(skb: &Buffer, decision: &Decision<A>) -> i32 {
    let Verdict::Relay(error) = &decision.outcome.verdict else { return FAULT };
    match relay(&mut skb.writer(), &decision.quoted, error) {
        // It is on its way into the pod.
        Ok(()) if matches!(H::PATH, Path::ToPod) && matches!(error.deliver, Deliver::Peer { .. }) => NEXT,
        Ok(()) => send::<H>(skb, &error.deliver),
        Err(_) => FAULT,
    }
}

#[inline(always)]
fn send<H: Hook>(skb: &Buffer, deliver: &Deliver) -> i32 {
    match deliver {
        Deliver::Here => NEXT,
        // The kernel hands over to peers at ingress only. What goes out of the other link passes `to_pod` there.
        Deliver::Peer { ifindex, .. } if matches!(H::PATH, Path::ToPod | Path::ToNet) => {
            skb.add_mark(maps::config().mark);
            skb.send_out(*ifindex)
        }
        Deliver::Peer { ifindex, .. } => skb.send_to_peer(*ifindex),
        Deliver::Stack { ifindex, .. } => {
            skb.add_mark(maps::config().mark);
            skb.send_in(*ifindex)
        }
        Deliver::Link { .. } => out_of(skb, deliver),
        Deliver::Neighbour { ifindex, via } => {
            skb.add_mark(maps::config().mark);
            let family = if matches!(via.family, Family::V4) { AF_INET } else { AF_INET6 };
            skb.send_to_neighbour(*ifindex, family, &via.addr)
        }
    }
}
