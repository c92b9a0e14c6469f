//! Packets in fragments, in every order, from a client to the world and back: one after the other on tables that stay.
//!
//! ```text
//! out:   client ── from_pod ── FOU ── from_net ── world         (or from_pod alone, where the gateway is on the node)
//! back:  world ── from_net ── FOU ── from_net ── client
//! ```
//!
//! The one node of all cases is the client's node at first, then the gateway's: what left it as the client's comes to it
//! as that of the other node's client. A fragment that is lost on a node does not come to the next.

use std::net::IpAddr;

use coil_packet::Reason;

use crate::{
    Case, Given, Net,
    gateway::{icmp, nat},
    wire::{self, Ip, tcp},
    world::CLIENT,
};

/// What happens one after the other.
#[derive(Clone, Debug)]
pub struct Journey {
    /// What it shows.
    pub name: String,
    /// Its family's addresses.
    pub net: Net,
    /// What the tables hold at first.
    pub given: Vec<Given>,
    /// Each packet, and what becomes of it.
    pub steps: Vec<Case>,
}

/// One node's part of the way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hop {
    /// From the client to a gateway of another node.
    Tunnel,
    /// The same where clients keep their gateway: any fragment finds it.
    AffineTunnel,
    /// Out of the tunnel, into the world.
    Out,
    /// From a client to a gateway of its node, into the world.
    LocalOut,
    /// From the world to another node's client.
    Back,
    /// From the world to a client of this node.
    LocalBack,
    /// Out of the tunnel, to the client.
    Home,
}

/// Packets of one client, one there and one back.
#[derive(Clone, Copy)]
struct Talk {
    hops: [&'static [Hop]; 2],
    protocol: u8,
    /// The client's port (or identifier of an echo), and the gateway's.
    own: u16,
    lent: u16,
    /// Identification of the packet there, and back.
    id: [u16; 2],
}

const FAR: [&[Hop]; 2] = [&[Hop::Tunnel, Hop::Out], &[Hop::Back, Hop::Home]];
const AFFINE: [&[Hop]; 2] = [&[Hop::AffineTunnel, Hop::Out], &[Hop::Back, Hop::Home]];
const NEAR: [&[Hop]; 2] = [&[Hop::LocalOut], &[Hop::LocalBack]];

/// Talks and fragments, by number.
type Order = &'static [(usize, usize)];

/// Orders of the fragments of one packet. What was lost is sent again at the end.
const ONE: [(&str, Order); 4] = [
    ("in order", &[(0, 0), (0, 1), (0, 2)]),
    ("reversed", &[(0, 2), (0, 1), (0, 0), (0, 2), (0, 1)]),
    ("the middle first", &[(0, 1), (0, 0), (0, 2), (0, 1)]),
    ("the end in the middle", &[(0, 0), (0, 2), (0, 1)]),
];

/// Of two packets.
const TWO: [(&str, Order); 3] = [
    ("in turns", &[(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (0, 2)]),
    ("in turns, one reversed", &[(0, 0), (1, 2), (0, 1), (1, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
    ("in turns, both reversed", &[(0, 2), (1, 2), (0, 1), (1, 0), (1, 1), (0, 0), (1, 2), (0, 2), (0, 1)]),
];

/// All of both families.
#[must_use]
pub fn all() -> Vec<Journey> {
    [Net::v4(), Net::v6()].into_iter().flat_map(of_family).collect()
}

fn of_family(net: Net) -> Vec<Journey> {
    let mut journeys = vec![];
    for (what, protocol) in [("UDP", 17), ("TCP", 6), ("an echo", icmp(&net))] {
        // Every order for one protocol, and those that say most for the others.
        let (one, two) = if protocol == 17 { (&ONE[..], &TWO[..]) } else { (&ONE[1..2], &TWO[1..2]) };
        let talk = Talk { hops: FAR, protocol, own: 40000, lent: 40000, id: [0x4321, 0x5432] };
        let ways = [
            ("through a gateway of another node", FAR),
            ("through the gateway that the client keeps", AFFINE),
            ("through a gateway of its node", NEAR),
        ];
        for (way, hops) in ways {
            let first = Talk { hops, ..talk };
            for (how, order) in one {
                journeys.push(journey(net, format!("{what} {way}, {how}"), &[first], order));
            }
            // Of one flow, or of two.
            let own = if hops == AFFINE { first.own } else { first.own + 1 };
            let other = Talk { own, lent: own, id: [0x4322, 0x5433], ..first };
            for (how, order) in two {
                journeys.push(journey(net, format!("{what} {way}, twice, {how}"), &[first, other], order));
            }
        }
        // What two clients send is the same but for their addresses; what comes back for them is told apart by its
        // identification.
        let far = Talk { hops: AFFINE, lent: 50001, ..talk };
        let near = Talk { hops: NEAR, lent: 50002, id: [0x4321, 0x5433], ..talk };
        for (how, order) in two {
            journeys.push(journey(net, format!("{what} of two clients, {how}"), &[far, near], order));
        }
    }
    journeys
}

fn journey(net: Net, name: String, talks: &[Talk], order: Order) -> Journey {
    let lent = talks.iter().filter(|talk| talk.lent != talk.own);
    let given = lent.map(|talk| talk.lease(&net)).collect();
    let mut steps = vec![];
    for back in [false, true] {
        let mut sent = order.to_vec();
        let longest = talks.iter().map(|talk| talk.hops(back).len()).max().unwrap_or_default();
        for place in 0..longest {
            let mut begun = vec![false; talks.len()];
            sent.retain(|&(number, fragment)| {
                let talk = &talks[number];
                let Some(hop) = talk.hops(back).get(place) else { return true };
                begun[number] |= fragment == 0;
                let passes = begun[number] || hop.takes_any();
                steps.push(talk.step(net, *hop, (number, fragment), passes));
                passes
            });
        }
    }
    Journey { name, net, given, steps }
}

impl Hop {
    /// True where a fragment needs no port.
    const fn takes_any(self) -> bool {
        matches!(self, Self::AffineTunnel | Self::Home)
    }

    /// The reason of what passes, and of a fragment that comes too early.
    const fn reasons(self) -> [Reason; 2] {
        match self {
            Self::Tunnel | Self::AffineTunnel => [Reason::ToGateway, Reason::EgressFragment],
            Self::Out | Self::LocalOut => [Reason::Out, Reason::EgressFragment],
            Self::Back => [Reason::ReplyToNode, Reason::FragmentEarly],
            Self::LocalBack => [Reason::ReplyToPod, Reason::FragmentEarly],
            Self::Home => [Reason::Decapsulated, Reason::FragmentEarly],
        }
    }
}

impl Talk {
    const fn hops(&self, back: bool) -> &'static [Hop] {
        if back { self.hops[1] } else { self.hops[0] }
    }

    fn lease(&self, net: &Net) -> Given {
        let client = if self.hops[0].contains(&Hop::LocalOut) { net.client } else { net.remote_client };
        let port = if self.protocol == icmp(net) { 0 } else { 53 };
        nat(net, self.protocol, self.lent, (client, self.own), (net.world_local, port), 1)
    }

    /// One of the fragments, from a client or a gateway with a port.
    fn there(&self, ends: (IpAddr, IpAddr), ttl: u8, port: u16, fragment: usize) -> Vec<u8> {
        let header = Ip::new(ends.0, ends.1).ttl(ttl);
        let whole = match self.protocol {
            6 => wire::tcp(header, port, 53, tcp::ACK, &DATA),
            17 => wire::udp(header, port, 53, &DATA),
            _ => wire::echo_with(header, false, port, &DATA),
        };
        self.cut(header, self.id[0], &whole, fragment)
    }

    /// One of the fragments, from the world to a gateway or a client with a port.
    fn back(&self, ends: (IpAddr, IpAddr), ttl: u8, port: u16, fragment: usize) -> Vec<u8> {
        let header = Ip::new(ends.0, ends.1).ttl(ttl);
        let whole = match self.protocol {
            6 => wire::tcp(header, 53, port, tcp::ACK, &DATA),
            17 => wire::udp(header, 53, port, &DATA),
            _ => wire::echo_with(header, true, port, &DATA),
        };
        self.cut(header, self.id[1], &whole, fragment)
    }

    fn cut(&self, header: Ip, id: u16, whole: &[u8], fragment: usize) -> Vec<u8> {
        let payload = &whole[if header.src.is_ipv4() { 20 } else { 40 }..];
        wire::pieces(header, self.protocol, id, payload, 400).swap_remove(fragment)
    }

    fn step(&self, net: Net, hop: Hop, (number, fragment): (usize, usize), passes: bool) -> Case {
        let name = format!("fragment {fragment} of packet {number}");
        let [sent, early] = hop.reasons();
        let reason = if passes { sent } else { early };
        let world = if hop == Hop::AffineTunnel { net.world_affine } else { net.world };
        let local = net.world_local;
        let fou = |from, to, inner: &[u8]| wire::fou((from, to), 0, 5555, inner);
        let there = |from, to, ttl, port| self.there((from, to), ttl, port, fragment);
        let back = |from, to, ttl, port| self.back((from, to), ttl, port, fragment);
        let from_pod = |packet: &[u8]| Case::from_pod(name.clone(), net, CLIENT, packet, reason);
        let from_net = |packet: &[u8]| Case::from_net(name.clone(), net, packet, reason);
        let (case, output) = match hop {
            Hop::Tunnel | Hop::AffineTunnel => {
                let packet = there(net.client, world, 64, self.own);
                (from_pod(&packet), fou(net.client, net.remote_gateway, &packet))
            }
            Hop::LocalOut => {
                (from_pod(&there(net.client, local, 64, self.own)), there(net.gateway, local, 63, self.lent))
            }
            Hop::Out => {
                let inner = there(net.remote_client, local, 64, self.own);
                let packet = fou(net.remote_client, net.gateway, &inner);
                (from_net(&packet), there(net.gateway, local, 63, self.lent))
            }
            Hop::Back => {
                let inner = back(local, net.remote_client, 59, self.own);
                let packet = back(local, net.gateway, 60, self.lent);
                (from_net(&packet), fou(net.gateway, net.remote_client, &inner))
            }
            Hop::LocalBack => {
                (from_net(&back(local, net.gateway, 60, self.lent)), back(local, net.client, 59, self.own))
            }
            Hop::Home => {
                let inner = back(world, net.client, 59, self.own);
                (from_net(&fou(net.remote_gateway, net.client, &inner)), inner)
            }
        };
        match hop {
            _ if !passes => case,
            Hop::LocalBack | Hop::Home => case.hands_over(CLIENT, &output),
            _ => case.sends(&output),
        }
    }
}

/// What makes three fragments.
const DATA: [u8; 1000] = {
    let mut data = [0; 1000];
    let mut n = 0;
    while n < data.len() {
        // No two fragments are alike.
        data[n] = (n / 7).to_le_bytes()[0];
        n += 1;
    }
    data
};
