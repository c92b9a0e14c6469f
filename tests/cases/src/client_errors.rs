//! ICMP errors that clients send about what they got: on their way out the quoted packet is translated, too, so that
//! the remote finds its own.

use std::net::IpAddr;

use coil_packet::Reason;

use crate::{
    Case, Given, Net,
    gateway::{icmp, nat},
    wire::{self, Ip, tcp},
    world::CLIENT,
};

/// The remote's port, the client's, and the gateway's.
const REMOTE: u16 = 443;
const OWN: u16 = 40000;
const LENT: u16 = 50001;

/// What an error quotes.
struct Quoted {
    name: &'static str,
    protocol: u8,
    /// A packet of the remote to an address and its port.
    of: fn(Ip, u16) -> Vec<u8>,
    /// So many of its bytes; 0 for all.
    len: usize,
}

const TCP: fn(Ip, u16) -> Vec<u8> = |ip, port| wire::tcp(ip, REMOTE, port, tcp::ACK, b"answer");
const UDP: fn(Ip, u16) -> Vec<u8> = |ip, port| wire::udp(ip, REMOTE, port, b"answer");
const UNSUMMED: fn(Ip, u16) -> Vec<u8> = |ip, port| wire::udp_unsummed(ip, REMOTE, port, b"answer");
const ECHO: fn(Ip, u16) -> Vec<u8> = |ip, id| wire::echo(ip, true, id);

const FIRST: fn(Ip, u16) -> Vec<u8> = |ip, port| fragments(ip, port)[0].clone();

/// A datagram of 600 bytes.
fn fragments(ip: Ip, port: u16) -> [Vec<u8>; 2] {
    wire::fragments(ip, 17, 0x4321, &wire::udp_datagram(ip, REMOTE, port, true, &[7; 592]), 400)
}

/// What clients get.
const fn answers(net: &Net) -> [Quoted; 3] {
    [
        Quoted { name: "TCP", protocol: 6, of: TCP, len: 0 },
        Quoted { name: "UDP", protocol: 17, of: UDP, len: 0 },
        Quoted { name: "an echo reply", protocol: icmp(net), of: ECHO, len: 0 },
    ]
}

/// As little of it as an error has to quote, and more; UDP that nobody sums.
fn parts(net: &Net) -> Vec<Quoted> {
    let ip = if net.is_v4() { 20 } else { 40 };
    let mut parts = vec![
        Quoted { name: "eight bytes of TCP", protocol: 6, of: TCP, len: ip + 8 },
        Quoted { name: "as much of TCP as has its checksum", protocol: 6, of: TCP, len: ip + 18 },
        Quoted { name: "eight bytes of UDP", protocol: 17, of: UDP, len: ip + 8 },
        Quoted { name: "eight bytes of an echo reply", protocol: icmp(net), of: ECHO, len: ip + 8 },
    ];
    parts.push(Quoted { name: "a first fragment", protocol: 17, of: FIRST, len: 0 });
    if net.is_v4() {
        parts.push(Quoted { name: "UDP without a checksum", protocol: 17, of: UNSUMMED, len: 0 });
    }
    parts
}

impl Quoted {
    /// What the remote sent to an address and its port. Whatever routers have done to it is the same for both ends.
    fn to(&self, remote: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
        let mut packet = (self.of)(Ip::new(remote, to).ttl(50).tos(2), port);
        if self.len > 0 {
            packet.truncate(self.len);
        }
        packet
    }

    const fn remote_port(&self) -> u16 {
        if matches!(self.protocol, 1 | 58) { 0 } else { REMOTE }
    }

    fn lease(&self, net: &Net, client: IpAddr) -> Given {
        nat(net, self.protocol, LENT, (client, OWN), (net.world_local, self.remote_port()), 1)
    }
}

/// An error's name, type and code, and the four bytes behind the checksum.
pub(crate) type Kind = (&'static str, [u8; 2], [u8; 4]);

/// Each kind that concerns one flow; in the middle what says an MTU.
pub(crate) const fn kinds(net: &Net) -> [Kind; 9] {
    if net.is_v4() {
        [
            ("network unreachable", [3, 0], [0; 4]),
            ("host unreachable", [3, 1], [0; 4]),
            ("protocol unreachable", [3, 2], [0; 4]),
            ("port unreachable", [3, 3], [0; 4]),
            ("fragmentation needed", [3, 4], [0, 0, 5, 0]),
            ("administratively prohibited", [3, 13], [0; 4]),
            ("time exceeded in transit", [11, 0], [0; 4]),
            ("time exceeded in reassembly", [11, 1], [0; 4]),
            ("a problem with a parameter", [12, 0], [9, 0, 0, 0]),
        ]
    } else {
        [
            ("no route", [1, 0], [0; 4]),
            ("administratively prohibited", [1, 1], [0; 4]),
            ("address unreachable", [1, 3], [0; 4]),
            ("port unreachable", [1, 4], [0; 4]),
            ("packet too big", [2, 0], [0, 0, 5, 0]),
            ("time exceeded in transit", [3, 0], [0; 4]),
            ("time exceeded in reassembly", [3, 1], [0; 4]),
            ("an erroneous header field", [4, 0], [0, 0, 0, 6]),
            ("an unknown next header", [4, 1], [0, 0, 0, 40]),
        ]
    }
}

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = refused(net);
    let kinds = kinds(&net);
    for quoted in answers(&net) {
        for kind in &kinds {
            cases.extend(translated(net, *kind, &quoted));
            cases.push(to_gateway(net, *kind, &quoted));
        }
        cases.push(to_gateway_of_flow(net, kinds[4], &quoted));
    }
    for part in parts(&net) {
        cases.extend(translated(net, kinds[4], &part));
    }
    cases
}

fn error(net: Net, from: IpAddr, to: IpAddr, kind: Kind, quoted: &[u8]) -> Vec<u8> {
    // A client's own, and what the gateway makes of it.
    let ttl = if from == net.gateway { 63 } else { 64 };
    wire::error(Ip::new(from, to).ttl(ttl).tos(0xc0), kind.1, kind.2, quoted)
}

/// Through a gateway of this node: a client's of this node, and one out of the tunnel of another node's client.
fn translated(net: Net, kind: Kind, quoted: &Quoted) -> [Case; 2] {
    let sent = |client| error(net, client, net.world_local, kind, &quoted.to(net.world_local, client, OWN));
    let out = error(net, net.gateway, net.world_local, kind, &quoted.to(net.world_local, net.gateway, LENT));
    let name = |place| format!("a client's {} about {}, {place}", kind.0, quoted.name);
    let tunnelled = wire::fou((net.remote_client, net.gateway), 0, 5555, &sent(net.remote_client));
    [
        Case::from_pod(name("through a gateway of this node"), net, CLIENT, sent(net.client), Reason::Out)
            .given(quoted.lease(&net, net.client))
            .sends(&out),
        Case::from_net(name("out of the tunnel"), net, tunnelled, Reason::Out)
            .given(quoted.lease(&net, net.remote_client))
            .sends(&out),
    ]
}

/// To a gateway of another node, which translates it.
fn to_gateway(net: Net, kind: Kind, quoted: &Quoted) -> Case {
    let sent = error(net, net.client, net.world, kind, &quoted.to(net.world, net.client, OWN));
    let name = format!("a client's {} about {}, to a gateway", kind.0, quoted.name);
    Case::from_pod(name, net, CLIENT, &sent, Reason::ToGateway).sends(&wire::fou(
        (net.client, net.remote_gateway),
        0,
        5555,
        &sent,
    ))
}

/// New flows go to another gateway: an error follows the flow that it is about.
fn to_gateway_of_flow(net: Net, kind: Kind, quoted: &Quoted) -> Case {
    let sent = error(net, net.client, net.world, kind, &quoted.to(net.world, net.client, OWN));
    let name = format!("a client's {} about {}, to its flow's gateway", kind.0, quoted.name);
    let pin = Given::Pin {
        protocol: quoted.protocol,
        client: (net.client, OWN),
        remote: (net.world, quoted.remote_port()),
        egress: 1,
        gateway: net.leaving_gateway,
    };
    Case::from_pod(name, net, CLIENT, &sent, Reason::ToGateway).given(pin).sends(&wire::fou(
        (net.client, net.leaving_gateway),
        0,
        5555,
        &sent,
    ))
}

/// About what no gateway can tell whose it is.
fn refused(net: Net) -> Vec<Case> {
    let kind = kinds(&net)[3];
    let error = |from, quoted: &[u8]| error(net, from, net.world_local, kind, quoted);
    let answer = |to: IpAddr, port| wire::udp(Ip::new(net.world_local, to).ttl(50), REMOTE, port, b"answer");
    let case = |name, packet: &[u8], reason| Case::from_pod(name, net, CLIENT, packet, reason);
    let tunnelled = |name, packet: &[u8], reason| {
        Case::from_net(name, net, wire::fou((net.remote_client, net.gateway), 0, 5555, packet), reason)
    };
    let (own, of_remote) = (answer(net.client, OWN), answer(net.remote_client, OWN));
    let another = answer(net.plain, OWN);
    let lease = |client, idle| nat(&net, 17, LENT, (client, OWN), (net.world_local, REMOTE), idle);
    let short = if net.is_v4() { 27 } else { 47 };
    let [_, later] = fragments(Ip::new(net.world_local, net.client).ttl(50), OWN);
    vec![
        case(
            "a client's error about what the gateway does not know",
            &error(net.client, &own),
            Reason::NatUnknown,
        ),
        // An echo's lease runs out first, after a minute.
        case(
            "a client's error about a lease that has run out",
            &error(net.client, &ECHO(Ip::new(net.world_local, net.client).ttl(50), OWN)),
            Reason::NatUnknown,
        )
        .given(nat(&net, icmp(&net), LENT, (net.client, OWN), (net.world_local, 0), 61)),
        case("a client's error about another client's lease", &error(net.client, &own), Reason::NatUnknown)
            .given(lease(net.remote_client, 1)),
        case("a client's error about another's packet", &error(net.client, &another), Reason::EgressKind),
        case(
            "a client's error that quotes too little",
            &error(net.client, &own[..short]),
            Reason::EgressKind,
        )
        .given(lease(net.client, 1)),
        case(
            "a client's error about a later fragment, which names no flow",
            &error(net.client, &later),
            Reason::EgressKind,
        )
        .given(lease(net.client, 1)),
        tunnelled(
            "an error out of the tunnel about what the gateway does not know",
            &error(net.remote_client, &of_remote),
            Reason::NatUnknown,
        ),
        tunnelled(
            "an error out of the tunnel about another's packet",
            &error(net.remote_client, &another),
            Reason::EgressKind,
        ),
        tunnelled(
            "an error out of the tunnel that quotes too little",
            &error(net.remote_client, &of_remote[..short]),
            Reason::EgressKind,
        )
        .given(lease(net.remote_client, 1)),
    ]
}
