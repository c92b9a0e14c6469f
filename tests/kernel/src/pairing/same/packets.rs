//! What is sent.

use std::net::IpAddr;

use coil_cases::wire::{self, Ip, tcp};

use super::{ETHERNET, Ends};

/// What the last packet says. The kernel translates it at any gateway: the programs' packets are there before it.
pub(super) const LAST: &[u8] = b"this was the last";
/// An experimental protocol (RFC 3692).
const EXPERIMENT: u8 = 253;
/// Where nobody listens.
const REMOTE_PORT: u16 = 9009;
/// The client's ports, and the identifier of its echo, in talks that go on.
const UDP: u16 = 39_001;
const TCP: u16 = 39_002;
const ECHO: u16 = 39_003;
/// What nobody has said.
const STRANGE: u16 = 39_999;
/// What the client says to a remote that answers.
const ASKED: &[u8] = b"does anybody hear?";
const ANSWER: &[u8] = b"somebody does";
/// First numbers of the connection, of the client and of the remote.
const CLIENT_NUMBER: u32 = 1000;
const REMOTE_NUMBER: u32 = 9000;
/// The ends of connections that are not known, and how many of them the client sends: no gateway lets them out.
const UNKNOWN_ENDS: [u8; 2] = [tcp::FIN | tcp::ACK, tcp::RST];
pub(super) const UNKNOWN: u64 = UNKNOWN_ENDS.len() as u64;
/// Payload of a fragment. IPv6 knows none of fewer than 1280 bytes but the last, when a kernel cuts them anew.
const EACH: usize = 1232;

/// The last packet.
pub(super) fn last(from: IpAddr, to: IpAddr) -> Vec<u8> {
    wire::ip(Ip::new(from, to), EXPERIMENT, LAST)
}

/// True for the question, from the port that the client asked it from.
pub(super) fn is_asked(frame: &[u8], v4: bool) -> bool {
    let at = ETHERNET + if v4 { 20 } else { 40 };
    frame.ends_with(ASKED) && frame.get(at..at + 2) == Some(&UDP.to_be_bytes())
}

/// From the client. Each packet begins a flow of its own.
pub(super) fn there(ends: &Ends) -> Vec<Vec<u8>> {
    let plain = Ip::new(ends.client, ends.remote);
    let headers = [plain, plain.tos(0xb9), plain.tos(2), plain.tos(3), plain.ttl(255), plain.ttl(9)];
    let mut packets = vec![
        wire::udp(plain, UDP, REMOTE_PORT, ASKED),
        wire::tcp_numbered(plain, (TCP, REMOTE_PORT), (CLIENT_NUMBER, 0), tcp::SYN, b""),
        wire::echo(plain, false, ECHO),
    ];
    let mut port = 40_000;
    let mut next = || {
        port += 1;
        port
    };
    for (n, header) in headers.into_iter().enumerate() {
        let data = numbers(n * 97);
        packets.push(wire::udp(header, next(), REMOTE_PORT, &data));
        packets.push(wire::tcp(header, next(), REMOTE_PORT, tcp::SYN, b""));
        packets.push(wire::tcp(header, next(), REMOTE_PORT, tcp::ACK, &data));
        packets.push(wire::echo(header, false, next()));
    }
    if ends.v4 {
        packets.push(wire::udp_unsummed(plain, next(), REMOTE_PORT, b"without a checksum"));
    }
    for end in UNKNOWN_ENDS {
        packets.push(wire::tcp(plain, next(), REMOTE_PORT, end, b""));
    }
    // What the programs leave to the gateway's kernel.
    packets.push(wire::ip(plain, EXPERIMENT, b"an experiment"));
    packets.push(wire::udp(plain, next(), REMOTE_PORT, &[7; 1300]));
    let data = numbers(3000);
    packets.extend(cut(plain, 17, 0x101, &wire::udp(plain, next(), REMOTE_PORT, &data)));
    packets.extend(cut(plain, icmp(ends), 0x102, &wire::echo_with(plain, false, next(), &data)));
    packets.extend(cut(plain, 6, 0x103, &wire::tcp(plain, next(), REMOTE_PORT, tcp::ACK, &data)));
    packets
}

/// From the world: replies to the client, and what routers say of what it sent.
pub(super) fn back(ends: &Ends) -> Vec<Vec<u8>> {
    let plain = Ip::new(ends.remote, ends.gateway).ttl(50);
    let mut packets = vec![];
    for (n, header) in
        [plain, plain.tos(0xb9), plain.tos(2), plain.tos(3), plain.ttl(255)].into_iter().enumerate()
    {
        packets.push(wire::udp(header, REMOTE_PORT, UDP, &numbers(n * 301)));
        packets.push(wire::echo_with(header, true, ECHO, &numbers(n * 301)));
    }
    if ends.v4 {
        packets.push(wire::udp_unsummed(plain, REMOTE_PORT, UDP, b"without a checksum"));
    }
    packets.push(syn_ack(plain, TCP));
    let data = numbers(3000);
    packets.extend(cut(plain, 17, 0x201, &wire::udp(plain, REMOTE_PORT, UDP, &data)));
    packets.extend(cut(plain, icmp(ends), 0x202, &wire::echo_with(plain, true, ECHO, &data)));
    // What nobody has asked for.
    packets.push(wire::udp(plain, REMOTE_PORT, STRANGE, ANSWER));
    packets.push(wire::tcp(plain, REMOTE_PORT, STRANGE, tcp::ACK, ANSWER));
    packets.push(wire::echo(plain, true, STRANGE));

    let sent = Ip::new(ends.gateway, ends.remote).ttl(60);
    let asked = |port| wire::udp(sent, port, REMOTE_PORT, ASKED);
    let syn = wire::tcp_numbered(sent, (TCP, REMOTE_PORT), (CLIENT_NUMBER, 0), tcp::SYN, b"");
    let few = if ends.v4 { 28 } else { 48 };
    let mut quoted = vec![asked(UDP), asked(UDP)[..few].to_vec(), syn.clone(), syn[..few].to_vec()];
    quoted.extend(cut(sent, 17, 0x203, &wire::udp(sent, UDP, REMOTE_PORT, &data)).into_iter().take(1));
    for quoted in quoted.into_iter().chain([wire::echo(sent, false, ECHO), asked(STRANGE)]) {
        for (kind, rest) in kinds(ends) {
            packets.push(wire::error(Ip::new(ends.router, ends.gateway).ttl(40), kind, rest, &quoted));
        }
    }
    packets
}

/// From the client again: what it says of what it got.
pub(super) fn about(ends: &Ends) -> Vec<Vec<u8>> {
    let plain = Ip::new(ends.client, ends.remote);
    let numbers = (CLIENT_NUMBER + 1, REMOTE_NUMBER + 1);
    let mut packets = vec![wire::tcp_numbered(plain, (TCP, REMOTE_PORT), numbers, tcp::ACK, b"connected")];
    let got = Ip::new(ends.remote, ends.client).ttl(45);
    let answer = |port| wire::udp(got, REMOTE_PORT, port, ANSWER);
    let few = if ends.v4 { 28 } else { 48 };
    let whole = wire::udp(got, REMOTE_PORT, UDP, &self::numbers(3000));
    let mut quoted =
        vec![answer(UDP), answer(UDP)[..few].to_vec(), syn_ack(got, TCP), wire::echo(got, true, ECHO)];
    quoted.extend(cut(got, 17, 0x301, &whole).into_iter().take(1));
    for quoted in quoted.into_iter().chain([answer(STRANGE), wire::echo(got, true, STRANGE)]) {
        for (kind, rest) in kinds(ends) {
            packets.push(wire::error(plain, kind, rest, &quoted));
        }
    }
    packets
}

fn syn_ack(header: Ip, port: u16) -> Vec<u8> {
    let numbers = (REMOTE_NUMBER, CLIENT_NUMBER + 1);
    wire::tcp_numbered(header, (REMOTE_PORT, port), numbers, tcp::SYN | tcp::ACK, b"")
}

/// Type and code of errors, and what is behind their checksum.
fn kinds(ends: &Ends) -> Vec<([u8; 2], [u8; 4])> {
    if ends.v4 {
        let unreachable = [0, 1, 2, 3, 13].map(|code| ([3, code], [0; 4]));
        let others = [([3, 4], [0, 0, 5, 0]), ([11, 0], [0; 4]), ([11, 1], [0; 4]), ([12, 0], [9, 0, 0, 0])];
        [&unreachable[..], &others].concat()
    } else {
        let unreachable = [0, 1, 3, 4].map(|code| ([1, code], [0; 4]));
        let others = [([2, 0], [0, 0, 5, 0]), ([3, 0], [0; 4]), ([3, 1], [0; 4]), ([4, 1], [0, 0, 0, 40])];
        [&unreachable[..], &others].concat()
    }
}

const fn icmp(ends: &Ends) -> u8 {
    if ends.v4 { 1 } else { 58 }
}

/// A packet in fragments, in order.
fn cut(header: Ip, protocol: u8, id: u16, whole: &[u8]) -> Vec<Vec<u8>> {
    let payload = &whole[if header.src.is_ipv4() { 20 } else { 40 }..];
    wire::pieces(header, protocol, id, payload, EACH)
}

fn numbers(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n / 7 + n).to_le_bytes()[0]).collect()
}
