//! Carries out a plan on a packet.

use crate::{
    Deliver, End, Fault, Outer, Plan, Room, Skb,
    abi::{Way, way_kind},
    wire::{
        ETHERNET, EXTENSION, FRAGMENT, Header, Kind, Packet, difference, fold, fou_header_v4, fou_header_v6,
        tcp, udp,
    },
};

/// The part of rewriting that depends on the family.
pub trait Rewrite: Header {
    /// Lowers TTL or hop limit of the first IP header by one.
    fn hop<S: Skb>(skb: &mut S, packet: &Packet<Self>) -> Result<(), Fault>;
    /// Writes its TOS or traffic class.
    fn tos<S: Skb>(skb: &mut S, packet: &Packet<Self>, tos: u8) -> Result<(), Fault>;
    /// Puts the outer header in front.
    fn encap<S: Skb>(skb: &mut S, outer: &Outer<Self>) -> Result<(), Fault>;
    /// Writes an address whose change a checksum of the packet makes up for.
    fn store_quoted<S: Skb>(skb: &mut S, at: u32, addr: Self) -> Result<(), Fault>;
    /// Writes one of its addresses, after the transport checksum was fixed for it.
    fn store_addr<S: Skb>(skb: &mut S, at: u32, addr: Self) -> Result<(), Fault>;
}

/// Changes the packet as planned. How it leaves is up to the caller; after a fault it must be dropped.
#[inline(always)]
pub fn apply<A: Rewrite, S: Skb>(skb: &mut S, packet: &Packet<A>, plan: &Plan<A>) -> Result<(), Fault> {
    if plan.decap != 0 {
        skb.shrink(plan.decap)?;
    }
    // The IP header follows the Ethernet header now, whatever was in front.
    if let Some(tos) = plan.tos {
        A::tos(skb, packet, tos)?;
    }
    if plan.hop {
        A::hop(skb, packet)?;
    }
    if let Some(end) = &plan.source {
        translate::<A, S, true>(skb, packet, end)?;
    }
    if let Some(end) = &plan.destination {
        translate::<A, S, false>(skb, packet, end)?;
    }
    if let Some(outer) = &plan.encap {
        A::encap(skb, outer)?;
    }
    address_frame(skb, &plan.deliver)
}

/// Writes the MAC addresses of a frame that is sent; those of one for a neighbour the kernel writes.
#[inline(always)]
pub(crate) fn address_frame<S: Skb>(skb: &mut S, deliver: &Deliver) -> Result<(), Fault> {
    match deliver {
        Deliver::Peer { mac, host_mac, .. } => {
            skb.put(0, mac)?;
            skb.put(6, host_mac)
        }
        Deliver::Stack { mac, host_mac, .. } => {
            skb.put(0, host_mac)?;
            skb.put(6, mac)
        }
        Deliver::Link { macs, .. } => skb.put(0, macs),
        Deliver::Neighbour { .. } | Deliver::Here => Ok(()),
    }
}

/// Changes the packet, which has no headers around it, as a router does. The kernel writes the MAC addresses of one for a neighbour.
#[inline(always)]
pub fn forward<A: Rewrite, S: Skb>(skb: &mut S, packet: &Packet<A>, way: &Way) -> Result<(), Fault> {
    A::hop(skb, packet)?;
    if matches!(way.kind, way_kind::POD | way_kind::LINK) {
        let Some(macs) = way.next.first_chunk::<12>() else { return Err(Fault) };
        skb.put(0, macs)?;
    }
    Ok(())
}

/// Where the transport header begins. An IPv4 header is 20 bytes long, or else nobody comes here for more than its address.
#[inline(always)]
const fn l4_of<A: Rewrite>(packet: &Packet<A>) -> u32 {
    if A::L3_SUM { ETHERNET + A::HEADER } else { ETHERNET + (packet.l4 - packet.l3) }
}

/// Replaces one end's address and port. What is no TCP, UDP or echo has no port: a later fragment; of an error it
/// is the port of the packet that is quoted.
#[inline(always)]
pub(crate) fn translate<A: Rewrite, S: Skb, const SOURCE: bool>(
    skb: &mut S,
    packet: &Packet<A>,
    new: &End<A>,
) -> Result<(), Fault> {
    let l4 = l4_of(packet);
    if packet.under == Kind::Fragment {
        return address::<A, S, SOURCE>(skb, packet, new.addr);
    }
    if packet.under == Kind::Error {
        return error::<A, S, SOURCE>(skb, packet, new);
    }
    let echo = matches!(packet.under, Kind::EchoRequest | Kind::EchoReply);
    let (old_addr, old_port) = if SOURCE { (packet.src, packet.sport) } else { (packet.dst, packet.dport) };
    let sum_at = l4
        + match packet.under {
            Kind::Tcp => 16,
            Kind::Udp | Kind::UdpBehindOptions => 6,
            _ => 2,
        };
    let port_at = l4
        + match (echo, SOURCE) {
            (true, _) => 4,
            (false, true) => 0,
            (false, false) => 2,
        };
    let optional = packet.protocol == udp::PROTOCOL;

    let diff = difference(old_addr.sum(), new.addr.sum());
    // ICMP has a pseudo header in IPv6 only.
    if !(echo && A::L3_SUM) {
        skb.fix_l4_sum(sum_at, diff, true, optional)?;
    }
    address::<A, S, SOURCE>(skb, packet, new.addr)?;
    if new.port != old_port {
        let (old, new) = (old_port.to_be_bytes(), new.port.to_be_bytes());
        let diff = difference(u32::from(u16::from_ne_bytes(old)), u32::from(u16::from_ne_bytes(new)));
        skb.fix_l4_sum(sum_at, diff, false, optional)?;
        skb.store(port_at, &new)?;
    }
    Ok(())
}

/// Replaces one end's address, after the transport checksum was fixed for it.
#[inline(always)]
fn address<A: Rewrite, S: Skb, const SOURCE: bool>(
    skb: &mut S,
    packet: &Packet<A>,
    new: A,
) -> Result<(), Fault> {
    if A::L3_SUM {
        let old = if SOURCE { packet.src } else { packet.dst };
        skb.fix_l3_sum(ETHERNET + 10, difference(old.sum(), new.sum()))?;
    }
    A::store_addr(skb, ETHERNET + addr_offset::<A>(SOURCE), new)
}

/// Translates an ICMP error and the beginning of the packet that it quotes, whose other end is meant: what the
/// error's source is on the outside, the quoted destination is.
#[inline(always)]
fn error<A: Rewrite, S: Skb, const SOURCE: bool>(
    skb: &mut S,
    packet: &Packet<A>,
    new: &End<A>,
) -> Result<(), Fault> {
    let sum_at = l4_of(packet) + 2;
    let at = sum_at + 6;
    let end = ETHERNET + packet.len;
    let old = if SOURCE { packet.src } else { packet.dst };
    let moved = difference(old.sum(), new.addr.sum());
    // All that changes, for the one checksum over it.
    let mut changed = moved;
    if A::L3_SUM {
        changed = difference_of(changed, fix_word(skb, at + 10, moved, false)?);
    }
    A::store_quoted(skb, at + addr_offset::<A>(!SOURCE), new.addr)?;
    // Of IPv6 a first fragment has another header in between.
    let next: [u8; 1] = if A::L3_SUM { [0] } else { skb.load(at + 6).ok_or(Fault)? };
    let l4 = at + A::HEADER + if next == [FRAGMENT] { EXTENSION } else { 0 };
    let (port_at, inner_sum_at, optional) = match packet.quoted {
        tcp::PROTOCOL => (l4 + if SOURCE { 2 } else { 0 }, l4 + 16, false),
        udp::PROTOCOL => (l4 + if SOURCE { 2 } else { 0 }, l4 + 6, true),
        _ => (l4 + 4, l4 + 2, false),
    };
    let before: [u8; 2] = skb.load(port_at).ok_or(Fault)?;
    let after = new.port.to_be_bytes();
    let port = difference(u32::from(u16::from_ne_bytes(before)), u32::from(u16::from_ne_bytes(after)));
    skb.store(port_at, &after)?;
    changed = difference_of(changed, port);
    // An error need not quote as much as TCP's checksum.
    if inner_sum_at + 2 <= end {
        let pseudo = packet.quoted == tcp::PROTOCOL || packet.quoted == udp::PROTOCOL || !A::L3_SUM;
        let diff = if pseudo { difference_of(moved, port) } else { port };
        changed = difference_of(changed, fix_word(skb, inner_sum_at, diff, optional)?);
    }
    skb.fix_l4_sum(sum_at, changed, false, false)?;
    if !A::L3_SUM {
        skb.fix_l4_sum(sum_at, moved, true, false)?;
    }
    address::<A, S, SOURCE>(skb, packet, new.addr)
}

/// Adds two differences.
#[inline(always)]
const fn difference_of(one: u32, other: u32) -> u32 {
    fold(one) as u32 + fold(other) as u32
}

/// Fixes a checksum that is itself data, and answers how it changed.
#[inline(always)]
fn fix_word<S: Skb>(skb: &mut S, at: u32, diff: u32, optional: bool) -> Result<u32, Fault> {
    let before: [u8; 2] = skb.load(at).ok_or(Fault)?;
    let old = u16::from_ne_bytes(before);
    if optional && old == 0 {
        return Ok(0);
    }
    let mut new = !fold(u32::from(!old) + u32::from(fold(diff)));
    if optional && new == 0 {
        new = 0xffff;
    }
    skb.store(at, &new.to_ne_bytes())?;
    Ok(difference(u32::from(old), u32::from(new)))
}

#[inline(always)]
const fn addr_offset<A: Header>(source: bool) -> u32 {
    match (A::L3_SUM, source) {
        (true, true) => 12,
        (true, false) => 16,
        (false, true) => 8,
        (false, false) => 24,
    }
}

impl Rewrite for [u8; 4] {
    #[inline(always)]
    fn hop<S: Skb>(skb: &mut S, packet: &Packet<Self>) -> Result<(), Fault> {
        let word = |ttl| u32::from(u16::from_ne_bytes([ttl, packet.protocol]));
        let ttl = packet.ttl.wrapping_sub(1);
        skb.fix_l3_sum(ETHERNET + 10, difference(word(packet.ttl), word(ttl)))?;
        skb.put(ETHERNET + 8, &[ttl])
    }

    #[inline(always)]
    fn tos<S: Skb>(skb: &mut S, packet: &Packet<Self>, tos: u8) -> Result<(), Fault> {
        let word = |tos| u32::from(u16::from_ne_bytes([0x45, tos]));
        skb.fix_l3_sum(ETHERNET + 10, difference(word(packet.tos), word(tos)))?;
        skb.store(ETHERNET + 1, &[tos])
    }

    #[inline(always)]
    fn encap<S: Skb>(skb: &mut S, outer: &Outer<Self>) -> Result<(), Fault> {
        skb.grow(Room::FouV4)?;
        skb.store_summed(ETHERNET, &fou_header_v4(outer))
    }

    #[inline(always)]
    fn store_quoted<S: Skb>(skb: &mut S, at: u32, addr: Self) -> Result<(), Fault> {
        skb.store(at, &addr)
    }

    #[inline(always)]
    fn store_addr<S: Skb>(skb: &mut S, at: u32, addr: Self) -> Result<(), Fault> {
        skb.put(at, &addr)
    }
}

impl Rewrite for [u8; 16] {
    #[inline(always)]
    fn hop<S: Skb>(skb: &mut S, packet: &Packet<Self>) -> Result<(), Fault> {
        skb.store_summed(ETHERNET + 7, &[packet.ttl.wrapping_sub(1)])
    }

    #[inline(always)]
    fn tos<S: Skb>(skb: &mut S, _packet: &Packet<Self>, tos: u8) -> Result<(), Fault> {
        let [_, flow]: [u8; 2] = skb.load(ETHERNET).ok_or(Fault)?;
        skb.store_summed(ETHERNET, &[0x60 | tos >> 4, tos << 4 | flow & 0x0f])
    }

    #[inline(always)]
    fn encap<S: Skb>(skb: &mut S, outer: &Outer<Self>) -> Result<(), Fault> {
        let (ip, udp) = fou_header_v6(outer);
        skb.grow(Room::FouV6)?;
        skb.store_summed(ETHERNET, &ip)?;
        skb.store_summed(ETHERNET + 8, &outer.src)?;
        skb.store_summed(ETHERNET + 24, &outer.dst)?;
        skb.store_summed(ETHERNET + 40, &udp)
    }

    #[inline(always)]
    fn store_quoted<S: Skb>(skb: &mut S, at: u32, addr: Self) -> Result<(), Fault> {
        skb.store(at, &addr)
    }

    #[inline(always)]
    fn store_addr<S: Skb>(skb: &mut S, at: u32, addr: Self) -> Result<(), Fault> {
        // Fixing the transport checksum told the kernel that the sum of the whole packet changed by the
        // pseudo header. That is right only where an L3 checksum makes up for the address itself; the summed
        // store takes it back. (Linux 6.16 has BPF_F_IPV6 for this; older kernels have no other way.)
        skb.store_summed(at, &addr)
    }
}
