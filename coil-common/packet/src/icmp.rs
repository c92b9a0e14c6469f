//! The ICMP error that tells a sender the MTU which leaves room for the encapsulation.

use crate::{
    Addr, Fault, Room, Skb, TooBig,
    wire::{ETHERNET, Packet, fold, sum},
};

/// TTL and hop limit of the errors that we send.
const TTL: u8 = 64;

/// Bytes of the transport header that are quoted: TCP's checksum must stay inside, or the kernel refuses
/// to cut a packet whose checksum it has yet to fill in.
const QUOTED: u32 = 20;

/// Turns the packet into an ICMP error for its sender. The frame goes back where it came from.
#[inline(always)]
pub fn answer<A: Error, S: Skb>(skb: &mut S, packet: &Packet<A>, answer: &TooBig<A>) -> Result<(), Fault> {
    let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12] = skb.load(0).ok_or(Fault)?;
    skb.truncate(ETHERNET + A::HEADER + QUOTED)?;
    A::prepend(skb, packet.src, answer)?;
    skb.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f])
}

/// Sum of the `len` bytes that are quoted, in small pieces for the small stack of a BPF program.
#[inline(always)]
fn quoted<S: Skb>(skb: &S, len: u32) -> Result<u32, Fault> {
    let mut total = 0;
    let mut at = 0;
    while at < len {
        total += skb.load::<4>(ETHERNET + at).ok_or(Fault)?.sum();
        at += 4;
    }
    Ok(total)
}

/// The part that depends on the family.
pub trait Error: Addr {
    /// Puts IP and ICMP header in front of the quoted packet.
    fn prepend<S: Skb>(skb: &mut S, to: Self, answer: &TooBig<Self>) -> Result<(), Fault>;
}

impl Error for [u8; 4] {
    #[inline(always)]
    fn prepend<S: Skb>(skb: &mut S, to: Self, answer: &TooBig<Self>) -> Result<(), Fault> {
        let [m, n] = answer.mtu.to_be_bytes();
        // Destination unreachable, fragmentation needed and DF set (RFC 1191).
        let icmp = (!fold(quoted(skb, 40)? + sum(&[3, 4, 0, 0, 0, 0, m, n]))).to_ne_bytes();
        let head = [0x45, 0xc0, 0, 28 + 40, 0, 0, 0x40, 0, TTL, <[u8; 4]>::ICMP];
        let check = (!fold(sum(&head) + answer.from.sum() + to.sum())).to_ne_bytes();
        skb.grow(Room::Plain(28))?;
        skb.store_summed(ETHERNET, &head)?;
        skb.store_summed(ETHERNET + 10, &check)?;
        skb.store_summed(ETHERNET + 12, &answer.from)?;
        skb.store_summed(ETHERNET + 16, &to)?;
        skb.store_summed(ETHERNET + 20, &[3, 4, icmp[0], icmp[1], 0, 0, m, n])
    }
}

impl Error for [u8; 16] {
    #[inline(always)]
    fn prepend<S: Skb>(skb: &mut S, to: Self, answer: &TooBig<Self>) -> Result<(), Fault> {
        let [m, n] = answer.mtu.to_be_bytes();
        let len = 8 + 60;
        let pseudo = answer.from.sum() + to.sum() + sum(&[0, len, 0, <[u8; 16]>::ICMP]);
        // Packet too big (RFC 4443).
        let icmp = (!fold(quoted(skb, 60)? + pseudo + sum(&[2, 0, 0, 0, 0, 0, m, n]))).to_ne_bytes();
        skb.grow(Room::Plain(48))?;
        skb.store_summed(ETHERNET, &[0x60, 0, 0, 0, 0, len, <[u8; 16]>::ICMP, TTL])?;
        skb.store_summed(ETHERNET + 8, &answer.from)?;
        skb.store_summed(ETHERNET + 24, &to)?;
        skb.store_summed(ETHERNET + 40, &[2, 0, icmp[0], icmp[1], 0, 0, m, n])
    }
}
