//! ICMP errors to a sender: what leaves room for the encapsulation.

use crate::{
    Addr, Deliver, End, Fault, Rewrite, Room, Skb,
    apply::{address_frame, translate},
    wire::{ETHERNET, Packet, fold, sum},
};

/// TTL and hop limit of the errors that we send.
const TTL: u8 = 64;

/// Bytes of the transport header that are quoted: TCP's checksum must stay inside, or the kernel refuses
/// to cut a packet whose checksum it has yet to fill in.
pub(crate) const QUOTED: u32 = 20;

/// Smallest MTU that an IPv6 link may have (RFC 8200), and a bound for IPv4 that path MTU discovery accepts.
const MIN_MTU: u32 = 1280;
const MIN_MTU_V4: u32 = 552;

/// The smallest MTU that a sender is told.
#[inline(always)]
pub(crate) const fn least_mtu<A: Addr>() -> u32 {
    if A::L3_SUM { MIN_MTU_V4 } else { MIN_MTU }
}
/// An ICMP error to a sender whose packet is too big.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<A> {
    /// Who says so.
    pub from: A,
    /// The MTU that fits, in bytes.
    pub mtu: u16,
}

/// An ICMP error about FOU, as one about the packet inside, to who sent that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay<A> {
    /// Bytes in front of the packet that was inside.
    pub strip: u32,
    /// True for a reply that a gateway translated: its sender knows it with `destination`.
    pub was_reply: bool,
    /// Of no meaning for another.
    pub destination: End<A>,
    /// What its sender is told.
    pub message: Message<A>,
    /// How that leaves.
    pub deliver: Deliver,
}

/// Turns the packet into an ICMP error for its sender. The frame goes back where it came from.
#[inline(always)]
pub fn answer<A: Error, S: Skb>(skb: &mut S, packet: &Packet<A>, answer: &Message<A>) -> Result<(), Fault> {
    let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12] = skb.load(0).ok_or(Fault)?;
    skb.truncate(ETHERNET + A::HEADER + QUOTED)?;
    A::prepend(skb, packet.src, answer)?;
    skb.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f])
}

/// Turns an ICMP error about FOU into one about the packet inside, whose beginning it quotes.
#[inline(always)]
pub fn relay<A: Error, S: Skb>(skb: &mut S, inside: &Packet<A>, relay: &Relay<A>) -> Result<(), Fault> {
    // Cut first: a kernel may know where the error's own headers lie, and refuse to cut a packet without them.
    skb.truncate(ETHERNET + relay.strip + A::HEADER + QUOTED)?;
    skb.shrink(relay.strip)?;
    if relay.was_reply {
        translate::<A, S, false>(skb, inside, &relay.destination)?;
    }
    A::prepend(skb, inside.src, &relay.message)?;
    address_frame(skb, &relay.deliver)
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
pub trait Error: Rewrite {
    /// Puts IP and ICMP header in front of the quoted packet.
    fn prepend<S: Skb>(skb: &mut S, to: Self, message: &Message<Self>) -> Result<(), Fault>;
}

impl Error for [u8; 4] {
    #[inline(always)]
    fn prepend<S: Skb>(skb: &mut S, to: Self, message: &Message<Self>) -> Result<(), Fault> {
        let ([t, c], [m, n]) = (Self::TOO_BIG, message.mtu.to_be_bytes());
        let icmp = (!fold(quoted(skb, 40)? + sum(&[t, c, 0, 0, 0, 0, m, n]))).to_ne_bytes();
        let head = [0x45, 0xc0, 0, 28 + 40, 0, 0, 0x40, 0, TTL, <[u8; 4]>::ICMP];
        let check = (!fold(sum(&head) + message.from.sum() + to.sum())).to_ne_bytes();
        skb.grow(Room::Plain(28))?;
        skb.store_summed(ETHERNET, &head)?;
        skb.store_summed(ETHERNET + 10, &check)?;
        skb.store_summed(ETHERNET + 12, &message.from)?;
        skb.store_summed(ETHERNET + 16, &to)?;
        skb.store_summed(ETHERNET + 20, &[t, c, icmp[0], icmp[1], 0, 0, m, n])
    }
}

impl Error for [u8; 16] {
    #[inline(always)]
    fn prepend<S: Skb>(skb: &mut S, to: Self, message: &Message<Self>) -> Result<(), Fault> {
        let ([t, c], [m, n]) = (Self::TOO_BIG, message.mtu.to_be_bytes());
        let len = 8 + 60;
        let pseudo = message.from.sum() + to.sum() + sum(&[0, len, 0, <[u8; 16]>::ICMP]);
        let icmp = (!fold(quoted(skb, 60)? + pseudo + sum(&[t, c, 0, 0, 0, 0, m, n]))).to_ne_bytes();
        skb.grow(Room::Plain(48))?;
        skb.store_summed(ETHERNET, &[0x60, 0, 0, 0, 0, len, <[u8; 16]>::ICMP, TTL])?;
        skb.store_summed(ETHERNET + 8, &message.from)?;
        skb.store_summed(ETHERNET + 24, &to)?;
        skb.store_summed(ETHERNET + 40, &[t, c, icmp[0], icmp[1], 0, 0, m, n])
    }
}
