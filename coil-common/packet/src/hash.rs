//! Hashes of flows, for gateway choice, ports and source ports. Not for tables of the kernel.

use crate::{Addr, abi::MAGLEV_BITS, wire::Packet};

/// Mixes one word into a hash (the multiplier is 2^64 divided by the golden ratio).
#[inline(always)]
#[must_use]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let x = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

/// Hash of an address: what `sessionAffinity: ClientIP` looks at.
#[inline(always)]
pub fn address<A: Addr>(addr: A) -> u64 {
    let (high, low) = addr.words();
    mix(mix(0, high), low)
}

/// The protocol of a packet's flow: of an ICMP error that of the packet which it quotes.
#[inline(always)]
pub fn protocol<A: Addr>(packet: &Packet<A>) -> u8 {
    if packet.quoted == 0 { packet.protocol } else { packet.quoted }
}

/// Hash of a flow.
#[inline(always)]
pub fn flow<A: Addr>(packet: &Packet<A>) -> u64 {
    let (high, low) = packet.dst.words();
    let ports = u64::from(protocol(packet)) << 32 | u64::from(packet.sport) << 16 | u64::from(packet.dport);
    mix(mix(mix(address(packet.src), high), low), ports)
}

/// The upper half, which is mixed best.
#[inline(always)]
#[must_use]
pub const fn high(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The slot of a Maglev table for a hash: its upper bits, whose bound the verifier sees.
#[inline(always)]
#[must_use]
pub const fn slot(hash: u32) -> usize {
    (hash >> (32 - MAGLEV_BITS)) as usize
}
