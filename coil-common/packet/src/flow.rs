//! Flows between pods that are provably free of NAT.
//!
//! A connection is fast in both directions on a node, or in neither, for all its life: replies of a
//! Service connection must pass the kernel's connection tracking, and a connection that it saw by
//! half dies. So a flow becomes fast only at its first packet, seen before any translation, between
//! two pool addresses; without an entry the kernel handles it.

use crate::{
    Addr, Tables,
    abi::{FlowKey, FlowValue},
    wire::{Kind, Packet, tcp},
};

/// [`FlowValue::state`] of a flow that bypasses the host stack.
pub const FAST: u16 = 1;

/// Seconds after which an idle TCP flow is forgotten: no shorter than connection tracking's
/// `nf_conntrack_tcp_timeout_established`, so that the kernel never takes over in mid-connection.
pub const IDLE_TCP: u32 = 432_000;
/// Seconds after which a TCP flow that saw FIN or RST is forgotten.
pub const IDLE_CLOSING: u32 = 120;
/// Seconds after which an ICMP echo flow is forgotten.
pub const IDLE_ECHO: u32 = 30;

/// The key that both directions share.
#[inline(always)]
pub fn key<A: Addr>(packet: &Packet<A>) -> FlowKey<A> {
    let (src, dst) = (packet.src.words(), packet.dst.words());
    let forward = (src.0, src.1, packet.sport) < (dst.0, dst.1, packet.dport);
    let (low, low_port, high, high_port) = if forward {
        (packet.src, packet.sport, packet.dst, packet.dport)
    } else {
        (packet.dst, packet.dport, packet.src, packet.sport)
    };
    FlowKey { low, high, low_port, high_port, protocol: u32::from(packet.protocol) }
}

/// True for kinds of packets that a flow entry can cover.
#[inline(always)]
pub fn may_be_fast<A: Addr>(packet: &Packet<A>) -> bool {
    matches!(packet.kind, Kind::Tcp | Kind::EchoRequest | Kind::EchoReply)
}

/// True for a packet that begins a flow.
#[inline(always)]
pub fn begins<A: Addr>(packet: &Packet<A>) -> bool {
    match packet.kind {
        Kind::Tcp => packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN,
        Kind::EchoRequest => true,
        _ => false,
    }
}

/// True when the flow is forgotten.
#[must_use]
pub fn expired(protocol: u8, value: &FlowValue, now: u32) -> bool {
    let limit = match (protocol, value.closing) {
        (tcp::PROTOCOL, 0) => IDLE_TCP,
        (tcp::PROTOCOL, _) => IDLE_CLOSING,
        _ => IDLE_ECHO,
    };
    now.saturating_sub(value.seen) > limit
}

/// True when the flow of `packet` has a fast entry. Keeps the entry alive.
#[inline(always)]
pub fn is_fast<A: Addr, T: Tables<A>>(tables: &mut T, key: &FlowKey<A>, packet: &Packet<A>) -> bool {
    let Some(value) = tables.flow(key) else { return false };
    if value.state != FAST {
        return false;
    }
    let new = FlowValue { seen: tables.now(), closing: closing(packet, value.closing), ..value };
    if new != value {
        tables.touch_flow(key, &new);
    }
    true
}

/// The entry of a flow that begins.
#[inline(always)]
pub fn fresh<A: Addr, T: Tables<A>>(tables: &T) -> FlowValue {
    FlowValue { seen: tables.now(), state: FAST, closing: 0 }
}

/// A new SYN re-opens a closed flow; FIN and RST close it.
#[inline(always)]
fn closing<A: Addr>(packet: &Packet<A>, before: u16) -> u16 {
    if packet.kind != Kind::Tcp {
        0
    } else if packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        1
    } else if packet.tcp_flags & tcp::SYN != 0 {
        0
    } else {
        before
    }
}
