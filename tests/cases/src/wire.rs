//! Makes packets, the plain way: headers of the RFCs as lists of bytes, checksums over the bytes.

use std::net::IpAddr;

/// Flags of TCP.
pub mod tcp {
    #![expect(missing_docs, reason = "names of RFC 9293")]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// Fields of an IP header that cases vary.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
}

impl Ip {
    /// With a TTL of 64.
    #[must_use]
    pub const fn new(src: IpAddr, dst: IpAddr) -> Self {
        Self { src, dst, ttl: 64, tos: 0 }
    }

    /// With another TTL.
    #[must_use]
    pub const fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// With a TOS.
    #[must_use]
    pub const fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }
}

/// A frame.
#[must_use]
pub fn ethernet(dst: [u8; 6], src: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet.first().is_some_and(|b| b >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
    [&dst[..], &src, &ethertype, packet].concat()
}

/// An IP packet of any protocol. IPv4 carries DF and the identification 0x1234.
#[must_use]
pub fn ip(ip: Ip, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4([0x12, 0x34, 0x40, 0], &[], ip, protocol, (src.octets(), dst.octets()), payload)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let len = u16::try_from(payload.len()).expect("short packets").to_be_bytes();
            let head = [0x60 | ip.tos >> 4, ip.tos << 4, 0, 0, len[0], len[1], protocol, ip.ttl];
            [&head[..], &src.octets(), &dst.octets(), payload].concat()
        }
        _ => panic!("families differ"),
    }
}

/// An IPv4 packet with identification and flags as given, and options.
fn ipv4(
    id_and_flags: [u8; 4],
    options: &[u8],
    ip: Ip,
    protocol: u8,
    (src, dst): ([u8; 4], [u8; 4]),
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let len = u16::try_from(header + payload.len()).expect("short packets").to_be_bytes();
    let first = 0x40 | u8::try_from(header / 4).expect("short options");
    let [a, b, c, d] = id_and_flags;
    let mut head = vec![first, ip.tos, len[0], len[1], a, b, c, d, ip.ttl, protocol, 0, 0];
    head.extend([src, dst].concat());
    head.extend(options);
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum);
    head.extend(payload);
    head
}

/// A fragment: the first, with a UDP header; more follow.
#[must_use]
pub fn fragment(header: Ip, payload: &[u8]) -> Vec<u8> {
    match (header.src, header.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4([0x12, 0x34, 0x20, 0], &[], header, 17, (src.octets(), dst.octets()), payload)
        }
        _ => ip(header, 44, &[&[17, 0, 0, 1, 0, 0, 0x12, 0x34], payload].concat()),
    }
}

/// A packet in two fragments with the identification `id`: `first` bytes (a multiple of 8) of the payload, and
/// the rest.
#[must_use]
pub fn fragments(header: Ip, protocol: u8, id: u16, payload: &[u8], first: usize) -> [Vec<u8>; 2] {
    let (head, tail) = payload.split_at(first);
    [piece(header, protocol, id, 0, true, head), piece(header, protocol, id, first, false, tail)]
}

/// A packet in fragments of `each` bytes (a multiple of 8) of the payload.
#[must_use]
pub fn pieces(header: Ip, protocol: u8, id: u16, payload: &[u8], each: usize) -> Vec<Vec<u8>> {
    let cut = payload.chunks(each).enumerate();
    cut.map(|(n, part)| piece(header, protocol, id, n * each, (n + 1) * each < payload.len(), part)).collect()
}

/// A fragment that begins at an offset of the payload.
fn piece(header: Ip, protocol: u8, id: u16, at: usize, more: bool, part: &[u8]) -> Vec<u8> {
    let offset = u16::try_from(at / 8).expect("short packets");
    match (header.src, header.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let flags = offset | if more { 0x2000 } else { 0 };
            let [a, b] = id.to_be_bytes();
            let [c, d] = flags.to_be_bytes();
            ipv4([a, b, c, d], &[], header, protocol, (src.octets(), dst.octets()), part)
        }
        _ => {
            let flags = (offset << 3 | u16::from(more)).to_be_bytes();
            let id = u32::from(id).to_be_bytes();
            ip(header, 44, &[&[protocol, 0], &flags[..], &id, part].concat())
        }
    }
}

/// A packet with something between IP header and UDP: a record-route option, or hop-by-hop options.
#[must_use]
pub fn with_options(header: Ip, payload: &[u8]) -> Vec<u8> {
    match (header.src, header.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4([0x12, 0x34, 0x40, 0], &[7, 3, 4, 0], header, 17, (src.octets(), dst.octets()), payload)
        }
        _ => ip(header, 0, &[&[17, 0, 1, 4, 0, 0, 0, 0], payload].concat()),
    }
}

/// A TCP packet.
#[must_use]
pub fn tcp(header: Ip, sport: u16, dport: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    tcp_with_options(header, (sport, dport), flags, &[], data)
}

/// A TCP packet with options, a multiple of four bytes.
#[must_use]
pub fn tcp_with_options(header: Ip, ports: (u16, u16), flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    tcp_segment(header, ports, (0x0102_0304, 0x0506_0708), flags, options, data)
}

/// A TCP packet with these numbers: of its sequence, and of what it acknowledges.
#[must_use]
pub fn tcp_numbered(header: Ip, ports: (u16, u16), numbers: (u32, u32), flags: u8, data: &[u8]) -> Vec<u8> {
    tcp_segment(header, ports, numbers, flags, &[], data)
}

fn tcp_segment(
    header: Ip,
    (sport, dport): (u16, u16),
    (sequence, acknowledged): (u32, u32),
    flags: u8,
    options: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).expect("at most 40 bytes of options");
    let mut segment = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    segment.extend([sequence.to_be_bytes(), acknowledged.to_be_bytes()].concat());
    segment.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend([options, data].concat());
    let sum = transport_checksum(header, 6, &segment);
    segment[16..18].copy_from_slice(&sum);
    ip(header, 6, &segment)
}

/// A UDP datagram without its IP header.
#[must_use]
pub fn udp_datagram(header: Ip, sport: u16, dport: u16, summed: bool, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + data.len()).expect("short packets").to_be_bytes();
    let mut datagram = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &len, &[0, 0], data].concat();
    if summed {
        let sum = transport_checksum(header, 17, &datagram);
        // A sum of zero is sent as its other representation (RFC 768).
        let sum = if sum == [0, 0] { [0xff, 0xff] } else { sum };
        datagram[6..8].copy_from_slice(&sum);
    }
    datagram
}

/// A UDP packet.
#[must_use]
pub fn udp(header: Ip, sport: u16, dport: u16, data: &[u8]) -> Vec<u8> {
    ip(header, 17, &udp_datagram(header, sport, dport, true, data))
}

/// Two bytes of data with which the checksum of a UDP packet between these ends comes out as zero, which is sent as its
/// other representation.
#[must_use]
pub fn zeroing(header: Ip, sport: u16, dport: u16) -> [u8; 2] {
    transport_checksum(header, 17, &udp_datagram(header, sport, dport, false, &[0, 0]))
}

/// An IPv4 packet whose length is not in its header, as `BIG TCP` has it.
#[must_use]
pub fn big(mut packet: Vec<u8>) -> Vec<u8> {
    packet[2..4].fill(0);
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    packet
}

/// A UDP packet without a checksum.
#[must_use]
pub fn udp_unsummed(header: Ip, sport: u16, dport: u16, data: &[u8]) -> Vec<u8> {
    ip(header, 17, &udp_datagram(header, sport, dport, false, data))
}

/// An echo request, or its reply.
#[must_use]
pub fn echo(header: Ip, reply: bool, id: u16) -> Vec<u8> {
    echo_with(header, reply, id, b"sixteen bytes...")
}

/// The same with other data.
#[must_use]
pub fn echo_with(header: Ip, reply: bool, id: u16, data: &[u8]) -> Vec<u8> {
    let kind = match (header.src.is_ipv4(), reply) {
        (true, false) => 8,
        (true, true) => 0,
        (false, false) => 128,
        (false, true) => 129,
    };
    icmp(header, &[&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1], data].concat())
}

/// The source of a packet.
#[must_use]
pub fn source(packet: &[u8]) -> IpAddr {
    match packet {
        [first, _, _, _, _, _, _, _, _, _, _, _, a, b, c, d, ..] if first >> 4 == 4 => {
            [*a, *b, *c, *d].into()
        }
        _ => IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).expect("16 bytes")),
    }
}

/// An ICMP message; its checksum is filled in.
#[must_use]
pub fn icmp(header: Ip, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let v4 = header.src.is_ipv4();
    let sum = if v4 { checksum(&message) } else { transport_checksum(header, 58, &message) };
    message[2..4].copy_from_slice(&sum);
    ip(header, if v4 { 1 } else { 58 }, &message)
}

/// An ICMP error: type and code, the four bytes after the checksum, and what it quotes.
#[must_use]
pub fn error(header: Ip, [kind, code]: [u8; 2], rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    icmp(header, &[&[kind, code, 0, 0][..], &rest, quoted].concat())
}

/// A neighbour solicitation.
#[must_use]
pub fn solicitation(from: IpAddr, target: IpAddr) -> Vec<u8> {
    let IpAddr::V6(of) = target else { panic!("{target} is not IPv6") };
    icmp(Ip::new(from, target).ttl(255), &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &of.octets()].concat())
}

/// A packet in FOU as we send it: IPv4 with DF and identification 0, TTL 225, no UDP checksum.
#[must_use]
pub fn fou(outer: (IpAddr, IpAddr), ecn: u8, sport: u16, inner: &[u8]) -> Vec<u8> {
    let header = Ip { src: outer.0, dst: outer.1, ttl: 225, tos: ecn };
    let datagram = udp_datagram(header, sport, 5555, false, inner);
    match outer {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4([0, 0, 0x40, 0], &[], header, 17, (src.octets(), dst.octets()), &datagram)
        }
        _ => ip(header, 17, &datagram),
    }
}

/// A packet in FOU as a default `ip6tnl` sends it: tunnel encapsulation limit and UDP checksum.
#[must_use]
pub fn fou_with_limit(outer: (IpAddr, IpAddr), inner: &[u8]) -> Vec<u8> {
    let header = Ip { src: outer.0, dst: outer.1, ttl: 225, tos: 0 };
    let datagram = udp_datagram(header, 5555, 5555, true, inner);
    ip(header, 60, &[&[17, 0, 4, 1, 4, 1, 1, 0], &datagram[..]].concat())
}

/// The ICMP error for a packet that is too big, with its header and 20 more bytes.
#[must_use]
pub fn too_big(from: IpAddr, to: IpAddr, mtu: u16, packet: &[u8]) -> Vec<u8> {
    let [t, c] = if from.is_ipv4() { [3, 4] } else { [2, 0] };
    let m = mtu.to_be_bytes();
    let header = Ip::new(from, to);
    match (from, to) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut message = [&[t, c, 0, 0, 0, 0, m[0], m[1]], &packet[..40]].concat();
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum);
            ipv4([0, 0, 0x40, 0], &[], header.tos(0xc0), 1, (src.octets(), dst.octets()), &message)
        }
        _ => icmp(header, &[&[t, c, 0, 0, 0, 0, m[0], m[1]], &packet[..60]].concat()),
    }
}

/// Ones' complement sum, complemented.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|c| u64::from(c[0]) << 8 | u64::from(c.get(1).copied().unwrap_or(0)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(0xffff - sum).expect("folded").to_be_bytes()
}

fn transport_checksum(header: Ip, protocol: u8, segment: &[u8]) -> [u8; 2] {
    let len = u32::try_from(segment.len()).expect("short packets").to_be_bytes();
    let pseudo = match (header.src, header.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            [&src.octets()[..], &dst.octets(), &[0, protocol], &len[2..]].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            [&src.octets()[..], &dst.octets(), &len, &[0, 0, 0, protocol]].concat()
        }
        _ => panic!("families differ"),
    };
    checksum(&[&pseudo[..], segment].concat())
}

/// True when the checksum of a frame's IPv4 header, which has no options, is right.
#[must_use]
pub fn header_is_summed(frame: &[u8]) -> bool {
    frame.get(14..34).is_some_and(|header| checksum(header) == [0, 0])
}

/// Checks the checksums of an IP packet, and of a packet inside FOU: says which is wrong.
#[must_use]
pub fn bad_checksum(frame: &[u8]) -> Option<String> {
    check_packet(&frame[14..])
}

fn check_packet(packet: &[u8]) -> Option<String> {
    let (header, protocol, l4) = if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 15) * 4;
        if checksum(&packet[..header]) != [0, 0] {
            return Some("the IPv4 header checksum is wrong".into());
        }
        let addr = |at: usize| IpAddr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        (Ip::new(addr(12), addr(16)), packet[9], &packet[header..])
    } else {
        let addr = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes"));
        (Ip::new(addr(8), addr(24)), packet[6], &packet[40..])
    };
    // The checksum is over all fragments.
    if packet[0] >> 4 == 4 && [packet[6] & 0x3f, packet[7]] != [0, 0] {
        return None;
    }
    if protocol == 17 && l4[2..4] == 5555u16.to_be_bytes() && l4[6..8] == [0, 0] {
        return check_packet(&l4[8..]);
    }
    let good = match protocol {
        17 if header.src.is_ipv4() && l4[6..8] == [0, 0] => true,
        6 | 17 | 58 => transport_checksum(header, protocol, l4) == [0, 0],
        1 => checksum(l4) == [0, 0],
        _ => true,
    };
    (!good).then(|| format!("the checksum of protocol {protocol} is wrong"))
}
