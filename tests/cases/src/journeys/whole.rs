//! Whole flows: begun, in use, in trouble, and ended. Nothing of the flow is in the tables before its first packet.

use coil_packet::{Reason, nat::lendable};

use super::{FAR, Hop, Journey, NEAR, Place, Way};
use crate::{
    Case, Given, Net,
    client_errors::{Kind, kinds},
    gateway::{SYN_OPTIONS, icmp, nat},
    wire::{self, Ip, tcp},
};

/// The remote's port, and the client's (or the identifier of its echo).
const REMOTE: u16 = 443;
const OWN: u16 = 40000;

/// A client's flow to a remote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    net: Net,
    way: Way,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Tcp,
    Udp,
    /// UDP that nobody sums: of IPv4 alone.
    Unsummed,
    Echo,
}

/// What one of the two says: of TCP all of it, of the others the data.
struct Said {
    name: &'static str,
    back: bool,
    flags: u8,
    options: &'static [u8],
    data: &'static [u8],
}

/// Timestamps, and with them what is missing of the stream: RFC 7323 and RFC 2018.
const TIMESTAMPS: &[u8] = &[1, 1, 8, 10, 1, 2, 3, 9, 0, 0, 0, 1];
const SACK: &[u8] = &[1, 1, 8, 10, 1, 2, 3, 9, 0, 0, 0, 1, 1, 1, 5, 10, 5, 6, 7, 8, 5, 6, 9, 9];

const fn there(name: &'static str, flags: u8, options: &'static [u8], data: &'static [u8]) -> Said {
    Said { name, back: false, flags, options, data }
}

const fn back(name: &'static str, flags: u8, options: &'static [u8], data: &'static [u8]) -> Said {
    Said { name, back: true, flags, options, data }
}

/// The last two of the beginning are what errors are about: one there, one back.
const TCP_BEGINS: &[Said] = &[
    there("SYN", tcp::SYN, SYN_OPTIONS, b""),
    back("SYN and ACK", tcp::SYN | tcp::ACK, SYN_OPTIONS, b""),
    there("a request", tcp::ACK, TIMESTAMPS, b"an odd request"),
    back("an answer", tcp::ACK, SACK, b"an answer of another length"),
];
const TCP_ENDS: &[Said] = &[
    there("the client's FIN", tcp::FIN | tcp::ACK, TIMESTAMPS, b""),
    back("its ACK", tcp::ACK, TIMESTAMPS, b"what was left to say"),
    back("the remote's FIN", tcp::FIN | tcp::ACK, TIMESTAMPS, b""),
    there("the last ACK", tcp::ACK, TIMESTAMPS, b""),
];
const QUESTION: &[Said] =
    &[there("a question", 0, &[], b"question"), back("an answer", 0, &[], b"an answer")];
const AGAIN: &[Said] = &[there("another question", 0, &[], b""), back("its answer", 0, &[], b"odd")];

pub(super) fn of_family(net: Net) -> Vec<Journey> {
    let mut journeys = vec![];
    for (name, what) in [
        ("TCP", What::Tcp),
        ("UDP", What::Udp),
        ("UDP without a checksum", What::Unsummed),
        ("an echo", What::Echo),
    ] {
        // In IPv6 a datagram has to have one (RFC 8200, section 8.1).
        if what == What::Unsummed && !net.is_v4() {
            continue;
        }
        for (through, way) in
            [("through a gateway of another node", FAR), ("through a gateway of its node", NEAR)]
        {
            let flow = Flow { net, way, what };
            let name = format!("{name}, from beginning to end, {through}");
            journeys.push(Journey {
                name: format!("{name}, with its own port"),
                net,
                given: vec![],
                steps: flow.steps(OWN),
                chosen: None,
            });
            journeys.push(Journey {
                name: format!("{name}, with another port"),
                net,
                given: vec![flow.other()],
                steps: flow.steps(OWN),
                chosen: Some(flow),
            });
        }
    }
    journeys
}

impl Flow {
    /// The steps, where the gateway lends a port.
    pub(super) fn steps(&self, lent: u16) -> Vec<Case> {
        let (begins, ends) = if self.what == What::Tcp { (TCP_BEGINS, TCP_ENDS) } else { (QUESTION, AGAIN) };
        let mut steps = vec![];
        let mut pass = |name: &str, back: bool, packet: &dyn Fn(Place) -> Vec<u8>| {
            for hop in self.way[usize::from(back)] {
                let name = format!("{name}, {hop:?}");
                steps.push(hop.case(name, self.net, hop.passes(), [OWN, lent], packet));
            }
        };
        for said in begins {
            pass(said.name, said.back, &|place| self.packet(said, place));
        }
        if let [.., sent, answer] = begins {
            for kind in &kinds(&self.net) {
                let of_world = format!("the world's {} about {}", kind.0, sent.name);
                pass(&of_world, true, &|place| self.world_error(*kind, sent, place));
                let of_client = format!("the client's {} about {}", kind.0, answer.name);
                pass(&of_client, false, &|place| self.client_error(*kind, answer, place));
            }
        }
        for said in ends {
            pass(said.name, said.back, &|place| self.packet(said, place));
        }
        if self.what == What::Udp {
            steps.extend(self.with_options(lent));
        }
        steps
    }

    /// What has options in its IP header is not for the programs to translate, whatever they know of its flow: the
    /// gateway's kernel may.
    fn with_options(&self, lent: u16) -> Vec<Case> {
        let packet = |header: Ip, [from, to]: [u16; 2]| {
            wire::with_options(header, &wire::udp_datagram(header, from, to, true, b"on the way"))
        };
        let there = |place: Place| packet(place.out(), [place.port, REMOTE]);
        let back = |place: Place| packet(place.home(), [REMOTE, place.port]);
        let case = |hop: Hop, reason| {
            let name = format!("options of the IP header, {hop:?}");
            let packet: &dyn Fn(Place) -> Vec<u8> = if hop.is_back() { &back } else { &there };
            hop.case(name, self.net, reason, [OWN, lent], packet)
        };
        if self.way == FAR {
            vec![
                case(Hop::Tunnel, Reason::ToGateway),
                case(Hop::Out, Reason::EgressKind),
                case(Hop::Back, Reason::NotFastKind),
                case(Hop::Home, Reason::Decapsulated),
            ]
        } else {
            vec![case(Hop::LocalOut, Reason::EgressKind), case(Hop::LocalBack, Reason::NotFastKind)]
        }
    }

    /// Another client's lease, of the port that this one would have kept.
    fn other(&self) -> Given {
        let (protocol, port) = match self.what {
            What::Tcp => (6, REMOTE),
            What::Udp | What::Unsummed => (17, REMOTE),
            What::Echo => (icmp(&self.net), 0),
        };
        let client = if self.way == NEAR { self.net.remote_client } else { self.net.client };
        nat(&self.net, protocol, OWN, (client, OWN), (self.net.world_local, port), 1)
    }

    /// The port that the gateway has chosen, in a frame that left it.
    pub(super) fn port_of(&self, frame: &[u8]) -> Result<u16, String> {
        let at = 14
            + if self.net.is_v4() { 20 } else { 40 }
            + if self.what == What::Echo { ECHO_IDENTIFIER } else { 0 };
        match frame.get(at..at + 2) {
            Some(&[a, b]) if lendable(u16::from_be_bytes([a, b])) => Ok(u16::from_be_bytes([a, b])),
            other => Err(format!("leaves the gateway with the port {other:?}")),
        }
    }

    fn packet(&self, said: &Said, place: Place) -> Vec<u8> {
        let header = if said.back { place.home() } else { place.out() };
        self.said(said, header, place.port)
    }

    fn said(&self, said: &Said, header: Ip, port: u16) -> Vec<u8> {
        let (from, to) = if said.back { (REMOTE, port) } else { (port, REMOTE) };
        match self.what {
            What::Tcp => wire::tcp_with_options(header, (from, to), said.flags, said.options, said.data),
            What::Udp => wire::udp(header, from, to, said.data),
            What::Unsummed => wire::udp_unsummed(header, from, to, said.data),
            What::Echo => wire::echo_with(header, said.back, port, said.data),
        }
    }

    /// A router's error about what came to it from the gateway.
    fn world_error(&self, (_, kind, rest): Kind, sent: &Said, place: Place) -> Vec<u8> {
        let quoted = self.said(sent, place.out().ttl(QUOTED_TTL), place.port);
        wire::error(Ip::new(self.net.router, place.here).ttl(place.ttl).tos(ERROR_TOS), kind, rest, &quoted)
    }

    /// The client's error about what came home.
    fn client_error(&self, (_, kind, rest): Kind, answer: &Said, place: Place) -> Vec<u8> {
        let quoted = self.said(answer, place.home().ttl(QUOTED_TTL), place.port);
        wire::error(place.out().tos(ERROR_TOS), kind, rest, &quoted)
    }
}

/// Where an echo has its identifier, from the ICMP header on.
const ECHO_IDENTIFIER: usize = 4;
/// What is left of the TTL of a packet that an error quotes: nobody on the error's way changes it.
const QUOTED_TTL: u8 = 50;
/// Internetwork control, which Linux gives to errors.
const ERROR_TOS: u8 = 0xc0;
