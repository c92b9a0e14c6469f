//! Facts of a packet.

use super::{ETHERNET, FOU_OPTIONS, Kind, UDP, fold, sum, tcp, udp};
use crate::{Addr, Skb};

/// Facts of a packet. Made by [`parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// Source.
    pub src: A,
    /// Destination.
    pub dst: A,
    /// The link on which it came in.
    pub ingress: u32,
    /// Payload bytes of each segment when it is a GSO packet, else 0.
    pub gso: u32,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// Length by the IP header, which is a GSO packet's whole length.
    pub len: u32,
    /// Length of the largest L3 packet that it becomes on the wire.
    pub segment: u32,
    /// Source port, or the identifier of an echo request.
    pub sport: u16,
    /// Destination port, or the identifier of an echo reply.
    pub dport: u16,
    /// What it is.
    pub kind: Kind,
    /// What the transport header says, also in a first fragment, whose `kind` is [`Kind::Fragment`]. Of a later
    /// fragment, which has none, it is [`Kind::Fragment`].
    pub under: Kind,
    /// Identification of a fragment, which all fragments of a packet share.
    pub id: u32,
    /// Of an ICMP error: the protocol of the packet that it quotes. Filled in by those who ask.
    pub quoted: u8,
    /// IP protocol of the transport header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Flags of TCP.
    pub tcp_flags: u8,
}

/// What the two families' headers have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L3<A> {
    src: A,
    dst: A,
    len: u32,
    /// Length of the header with options.
    header: u32,
    protocol: u8,
    ttl: u8,
    tos: u8,
    plain: bool,
    fragment: bool,
    /// A fragment that is not the first.
    later: bool,
    id: u32,
    fou_options: bool,
}

/// The part of parsing that depends on the family.
pub trait Header: Addr {
    /// Reads the IP header at `at`; `None` when the kernel would refuse it. `FRONT`: at a place as of [`Skb::peek`].
    /// `summed`: with a look at the header's own checksum, which routers that quote a packet may have left wrong.
    fn header<S: Skb, const FRONT: bool>(skb: &S, at: u32, summed: bool) -> Option<L3<Self>>;
    /// The source in an IP header at a place as of [`Skb::peek`].
    fn source<S: Skb>(skb: &S, at: u32) -> Option<Self>;
    /// Source and destination in the IP header at `at`, whatever else is in it.
    fn ends<S: Skb>(skb: &S, at: u32) -> Option<(Self, Self)>;
    /// True for type and code (one number) of an ICMP error that concerns one flow.
    fn is_error(kind: u16) -> bool;
    /// The MTU in the ICMP header of an error that says "too big"; none in another.
    fn too_big(header: &[u8; 8]) -> Option<u32>;
}

impl Header for [u8; 4] {
    #[inline(always)]
    fn header<S: Skb, const FRONT: bool>(skb: &S, at: u32, summed: bool) -> Option<L3<Self>> {
        let b: [u8; 20] = look::<S, 20, FRONT>(skb, at)?;
        if b[0] >> 4 != 4 || b[0] & 15 < 5 {
            return None;
        }
        let len = u32::from(u16::from_be_bytes([b[2], b[3]]));
        let plain = b[0] == 0x45;
        if summed && plain && fold(sum(&b)) != 0xffff {
            return None;
        }
        Some(L3 {
            src: [b[12], b[13], b[14], b[15]],
            dst: [b[16], b[17], b[18], b[19]],
            len,
            header: 20,
            protocol: b[9],
            ttl: b[8],
            tos: b[1],
            plain,
            // More fragments, or an offset.
            fragment: u16::from_be_bytes([b[6], b[7]]) & 0x3fff != 0,
            later: u16::from_be_bytes([b[6], b[7]]) & 0x1fff != 0,
            id: u32::from(u16::from_be_bytes([b[4], b[5]])),
            fou_options: false,
        })
    }

    #[inline(always)]
    fn source<S: Skb>(skb: &S, at: u32) -> Option<Self> {
        skb.peek(at + 12)
    }

    #[inline(always)]
    fn ends<S: Skb>(skb: &S, at: u32) -> Option<(Self, Self)> {
        Some((skb.load(at + 12)?, skb.load(at + 16)?))
    }

    #[inline(always)]
    fn is_error(kind: u16) -> bool {
        // Destination unreachable, time exceeded, parameter problem.
        matches!(kind >> 8, 3 | 11 | 12)
    }

    #[inline(always)]
    fn too_big(&[kind, code, _, _, _, _, m, n]: &[u8; 8]) -> Option<u32> {
        ([kind, code] == Self::TOO_BIG).then_some(u32::from(u16::from_be_bytes([m, n])))
    }
}

/// Next header numbers of IPv6.
pub(crate) const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Length of a fragment header, and of the options that a default `ip6tnl` sends.
pub(crate) const EXTENSION: u32 = 8;
const _: () = assert!(EXTENSION == FOU_OPTIONS);

impl Header for [u8; 16] {
    #[inline(always)]
    fn header<S: Skb, const FRONT: bool>(skb: &S, at: u32, _summed: bool) -> Option<L3<Self>> {
        let first: [u8; 8] = look::<S, 8, FRONT>(skb, at)?;
        if first[0] >> 4 != 6 {
            return None;
        }
        let src: Self = look::<S, 16, FRONT>(skb, at + 8)?;
        let dst: Self = look::<S, 16, FRONT>(skb, at + 24)?;
        let next = first[6];
        let fou_options =
            next == DESTINATION_OPTIONS && matches!(skb.load::<2>(at + 40), Some([udp::PROTOCOL, 0]));
        let fragment = next == FRAGMENT;
        // Next header, reserved, offset and flags, identification.
        let f: [u8; 8] = if fragment { skb.load(at + 40)? } else { [0; 8] };
        let extension = fragment || fou_options;
        Some(L3 {
            src,
            dst,
            len: 40 + u32::from(u16::from_be_bytes([first[4], first[5]])),
            header: if extension { 40 + EXTENSION } else { 40 },
            protocol: if fragment {
                f[0]
            } else if fou_options {
                udp::PROTOCOL
            } else {
                next
            },
            ttl: first[7],
            tos: first[0] << 4 | first[1] >> 4,
            plain: true,
            fragment,
            later: u16::from_be_bytes([f[2], f[3]]) & 0xfff8 != 0,
            id: u32::from_be_bytes([f[4], f[5], f[6], f[7]]),
            fou_options,
        })
    }

    #[inline(always)]
    fn source<S: Skb>(skb: &S, at: u32) -> Option<Self> {
        skb.peek(at + 8)
    }

    #[inline(always)]
    fn ends<S: Skb>(skb: &S, at: u32) -> Option<(Self, Self)> {
        Some((skb.load(at + 8)?, skb.load(at + 24)?))
    }

    #[inline(always)]
    fn is_error(kind: u16) -> bool {
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        matches!(kind >> 8, 1..=4)
    }

    #[inline(always)]
    fn too_big(&[kind, code, _, _, k, l, m, n]: &[u8; 8]) -> Option<u32> {
        ([kind, code] == Self::TOO_BIG).then_some(u32::from_be_bytes([k, l, m, n]))
    }
}

impl<A: Addr> Packet<A> {
    /// Facts of nothing, to be filled in by [`parse`].
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            src: A::zeroed(),
            dst: A::zeroed(),
            ingress: 0,
            gso: 0,
            l3: 0,
            l4: 0,
            len: 0,
            segment: 0,
            sport: 0,
            dport: 0,
            kind: Kind::Short,
            under: Kind::Short,
            id: 0,
            quoted: 0,
            protocol: 0,
            ttl: 0,
            tos: 0,
            tcp_flags: 0,
        }
    }
}

/// Bytes of a header.
#[inline(always)]
fn look<S: Skb, const N: usize, const FRONT: bool>(skb: &S, at: u32) -> Option<[u8; N]> {
    if FRONT { skb.peek(at) } else { skb.load(at) }
}

/// Reads the facts of the IP packet behind the Ethernet header; false when its header is such that the kernel drops
/// it.
#[inline(never)]
pub fn parse<A: Header, S: Skb>(skb: &S, packet: &mut Packet<A>) -> bool {
    read::<A, S, true>(skb, ETHERNET, packet)
}

/// The same of the IP packet at `l3`, inside the FOU of another.
#[inline(always)]
pub fn parse_inner<A: Header, S: Skb>(skb: &S, l3: u32, packet: &mut Packet<A>) -> bool {
    if l3 == INSIDE + A::HEADER { parse_inside_called(skb, packet) } else { parse_at(skb, l3, packet) }
}

/// [`parse`] where IPv4, which takes little stack, is no call.
#[inline(always)]
pub fn parse_here<A: Header, S: Skb>(skb: &S, packet: &mut Packet<A>) -> bool {
    if A::L3_SUM { read::<A, S, true>(skb, ETHERNET, packet) } else { parse(skb, packet) }
}

/// Where an inner packet nearly always begins, but for the outer IP header's length.
const INSIDE: u32 = ETHERNET + UDP;

/// The same of the IP packet inside FOU whose outer header is the usual one.
#[inline(always)]
pub fn parse_inside<A: Header, S: Skb>(skb: &S, packet: &mut Packet<A>) -> bool {
    if A::L3_SUM {
        read::<A, S, true>(skb, INSIDE + A::HEADER, packet)
    } else {
        parse_inside_called(skb, packet)
    }
}

#[inline(never)]
fn parse_inside_called<A: Header, S: Skb>(skb: &S, packet: &mut Packet<A>) -> bool {
    read::<A, S, true>(skb, INSIDE + A::HEADER, packet)
}

/// True when what stands in the place of an inner source, behind the usual outer headers, is the outer one.
#[inline(always)]
pub fn from_client<A: Header, S: Skb>(skb: &S, outer: &Packet<A>) -> bool {
    if outer.l4 != ETHERNET + A::HEADER {
        return false;
    }
    A::source(skb, INSIDE + A::HEADER).is_some_and(|source| source.same(outer.src))
}

#[inline(never)]
fn parse_at<A: Header, S: Skb>(skb: &S, l3: u32, packet: &mut Packet<A>) -> bool {
    read::<A, S, false>(skb, l3, packet)
}

#[inline(always)]
fn read<A: Header, S: Skb, const FRONT: bool>(skb: &S, l3: u32, packet: &mut Packet<A>) -> bool {
    let Some(ip) = A::header::<S, FRONT>(skb, l3, true) else { return false };
    let frame = skb.frame_len();
    if ip.len < ip.header || l3 > frame || ip.len > frame - l3 {
        return false;
    }
    packet.src = ip.src;
    packet.dst = ip.dst;
    packet.gso = skb.gso_size();
    packet.l3 = l3;
    packet.l4 = l3 + ip.header;
    packet.len = ip.len;
    packet.segment = ip.len;
    (packet.sport, packet.dport) = (0, 0);
    packet.kind = Kind::Other;
    packet.under = Kind::Other;
    packet.id = ip.id;
    packet.quoted = 0;
    packet.protocol = ip.protocol;
    packet.ttl = ip.ttl;
    packet.tos = ip.tos;
    packet.tcp_flags = 0;
    if ip.later {
        packet.under = Kind::Fragment;
    } else if ip.plain {
        transport::<A, S, FRONT>(skb, l3, &ip, packet);
        packet.under = packet.kind;
    }
    if ip.fragment {
        packet.kind = Kind::Fragment;
    }
    true
}

/// Reads the beginning of the packet that the ICMP error `error` quotes: both ends, and whose flow it is. False
/// when it names no flow or is a fragment, or when the error is not for the packet's sender.
#[inline(always)]
pub fn quoted<A: Header, S: Skb>(skb: &S, error: &Packet<A>, packet: &mut Packet<A>) -> bool {
    quoted_or_first(skb, error, packet) && packet.kind != Kind::Fragment
}

/// The same, and true also of a first fragment, whose `kind` is [`Kind::Fragment`].
#[inline(always)]
pub fn quoted_or_first<A: Header, S: Skb>(skb: &S, error: &Packet<A>, packet: &mut Packet<A>) -> bool {
    beginning(skb, error.l4 + ICMP, error.l3 + error.len, packet) && packet.src.same(error.dst)
}

/// The same of the packet inside FOU, of which `outer` is the header that the error quotes.
#[inline(always)]
pub fn quoted_inside<A: Header, S: Skb>(
    skb: &S,
    error: &Packet<A>,
    outer: &Packet<A>,
    packet: &mut Packet<A>,
) -> bool {
    beginning(skb, outer.l4 + UDP, error.l3 + error.len, packet) && packet.kind != Kind::Fragment
}

/// Reads the beginning of a packet at `l3`, of which there is no more than up to `end`.
#[inline(never)]
fn beginning<A: Header, S: Skb>(skb: &S, l3: u32, end: u32, packet: &mut Packet<A>) -> bool {
    let Some(ip) = A::header::<S, false>(skb, l3, false) else { return false };
    if !ip.plain || ip.later || ip.fou_options || l3 + ip.header + 8 > end {
        return false;
    }
    let Some(b) = skb.load::<8>(l3 + ip.header) else { return false };
    let (first, second) = (u16::from_be_bytes([b[0], b[1]]), u16::from_be_bytes([b[2], b[3]]));
    packet.src = ip.src;
    packet.dst = ip.dst;
    packet.l3 = l3;
    packet.l4 = l3 + ip.header;
    packet.protocol = ip.protocol;
    packet.quoted = 0;
    let names_flow = match ip.protocol {
        tcp::PROTOCOL | udp::PROTOCOL => {
            packet.kind = if ip.protocol == tcp::PROTOCOL { Kind::Tcp } else { Kind::Udp };
            (packet.sport, packet.dport) = (first, second);
            true
        }
        icmp if icmp == A::ICMP => echo(packet, first, u16::from_be_bytes([b[4], b[5]])),
        _ => false,
    };
    packet.under = packet.kind;
    if ip.fragment {
        packet.kind = Kind::Fragment;
    }
    names_flow
}

/// Fills in what an echo has in place of ports; false for another message. `first`: type and code.
#[inline(always)]
fn echo<A: Addr>(packet: &mut Packet<A>, first: u16, id: u16) -> bool {
    // Echo request and reply: 8 and 0 in ICMP, 128 and 129 in ICMPv6.
    let (request, reply) = if A::L3_SUM { (0x0800, 0x0000) } else { (0x8000, 0x8100) };
    (packet.sport, packet.dport) = (0, 0);
    if first == request {
        packet.kind = Kind::EchoRequest;
        packet.sport = id;
    } else if first == reply {
        packet.kind = Kind::EchoReply;
        packet.dport = id;
    } else {
        return false;
    }
    true
}

/// Length of an ICMP header.
const ICMP: u32 = 8;

/// Adds the facts of the transport header.
#[inline(always)]
fn transport<A: Header, S: Skb, const FRONT: bool>(skb: &S, l3: u32, ip: &L3<A>, packet: &mut Packet<A>) {
    let known = matches!(ip.protocol, tcp::PROTOCOL | udp::PROTOCOL) || ip.protocol == A::ICMP;
    if !known {
        return;
    }
    packet.kind = Kind::Short;
    let room = ip.len - ip.header;
    let l4 = l3 + ip.header;
    let Some(b) = look::<S, 8, FRONT>(skb, l4) else { return };
    if room < 8 {
        return;
    }
    let (first, second) = (u16::from_be_bytes([b[0], b[1]]), u16::from_be_bytes([b[2], b[3]]));
    let mut header = 8;
    match ip.protocol {
        tcp::PROTOCOL => {
            let Some([offset, flags]) = look::<S, 2, FRONT>(skb, l4 + 12) else { return };
            header = u32::from(offset >> 4) * 4;
            if header < 20 || header > room {
                return;
            }
            packet.kind = Kind::Tcp;
            packet.tcp_flags = flags;
            (packet.sport, packet.dport) = (first, second);
        }
        udp::PROTOCOL => {
            packet.kind = if ip.fou_options { Kind::UdpBehindOptions } else { Kind::Udp };
            (packet.sport, packet.dport) = (first, second);
        }
        _ => {
            packet.kind = if A::is_error(first) { Kind::Error } else { Kind::Other };
            // An echo is neither.
            let _ = echo(packet, first, u16::from_be_bytes([b[4], b[5]]));
        }
    }
    if packet.gso != 0 {
        packet.segment = (ip.header + header + packet.gso).min(ip.len);
    }
}
