//! Packets in fragments, in every order. A fragment that is lost on a node does not come to the next.

use coil_packet::Reason;

use super::{AFFINE, FAR, Hop, Journey, NEAR, Place, Way};
use crate::{
    Case, Given, Net,
    gateway::{icmp, nat},
    wire::{self, Ip, tcp},
};

/// Packets of one client, one there and one back.
#[derive(Clone, Copy)]
struct Talk {
    way: Way,
    protocol: u8,
    /// The client's port (or identifier of an echo), and the gateway's.
    own: u16,
    lent: u16,
    /// Identification of the packet there, and back.
    id: [u16; 2],
}

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

pub(super) fn of_family(net: Net) -> Vec<Journey> {
    let mut journeys = vec![];
    for (what, protocol) in [("UDP", 17), ("TCP", 6), ("an echo", icmp(&net))] {
        // Every order for one protocol, and those that say most for the others.
        let (one, two) = if protocol == 17 { (&ONE[..], &TWO[..]) } else { (&ONE[1..2], &TWO[1..2]) };
        let talk = Talk { way: FAR, protocol, own: 40000, lent: 40000, id: [0x4321, 0x5432] };
        let ways = [
            ("through a gateway of another node", FAR),
            ("through the gateway that the client keeps", AFFINE),
            ("through a gateway of its node", NEAR),
        ];
        for (through, way) in ways {
            let first = Talk { way, ..talk };
            for (how, order) in one {
                journeys.push(journey(net, format!("{what} {through}, {how}"), &[first], order));
            }
            // Of one flow, or of two.
            let own = if way == AFFINE { first.own } else { first.own + 1 };
            let other = Talk { own, lent: own, id: [0x4322, 0x5433], ..first };
            for (how, order) in two {
                journeys.push(journey(
                    net,
                    format!("{what} {through}, twice, {how}"),
                    &[first, other],
                    order,
                ));
            }
        }
        // What two clients send is the same but for their addresses; what comes back for them is told apart by its
        // identification.
        let far = Talk { way: AFFINE, lent: 50001, ..talk };
        let near = Talk { way: NEAR, lent: 50002, id: [0x4321, 0x5433], ..talk };
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
        let hops = |talk: &Talk| talk.way[usize::from(back)];
        let mut sent = order.to_vec();
        let longest = talks.iter().map(|talk| hops(talk).len()).max().unwrap_or_default();
        for place in 0..longest {
            let mut begun = vec![false; talks.len()];
            sent.retain(|&(number, fragment)| {
                let talk = &talks[number];
                let Some(hop) = hops(talk).get(place) else { return true };
                begun[number] |= fragment == 0;
                let passes = begun[number] || hop.takes_any();
                let reason = if passes { hop.passes() } else { hop.too_early() };
                steps.push(talk.step(net, *hop, (number, fragment), reason));
                passes
            });
        }
    }
    Journey { name, net, given, steps, chosen: None }
}

impl Hop {
    /// True where a fragment needs no port.
    const fn takes_any(self) -> bool {
        matches!(self, Self::AffineTunnel | Self::Home)
    }

    /// The reason of a fragment that comes before the first one of its packet.
    const fn too_early(self) -> Reason {
        match self {
            Self::Tunnel | Self::AffineTunnel | Self::Out | Self::LocalOut => Reason::EgressFragment,
            Self::Back | Self::LocalBack | Self::Home => Reason::FragmentEarly,
        }
    }
}

impl Talk {
    fn lease(&self, net: &Net) -> Given {
        let client = if self.way[0].contains(&Hop::LocalOut) { net.client } else { net.remote_client };
        let port = if self.protocol == icmp(net) { 0 } else { 53 };
        nat(net, self.protocol, self.lent, (client, self.own), (net.world_local, port), 1)
    }

    /// One of the fragments, on a hop.
    fn step(&self, net: Net, hop: Hop, (number, fragment): (usize, usize), reason: Reason) -> Case {
        let name = format!("fragment {fragment} of packet {number}");
        hop.case(name, net, reason, [self.own, self.lent], &|place| {
            if hop.is_back() { self.back(place, fragment) } else { self.there(place, fragment) }
        })
    }

    fn there(&self, place: Place, fragment: usize) -> Vec<u8> {
        let (header, port) = (place.out(), place.port);
        let whole = match self.protocol {
            6 => wire::tcp(header, port, 53, tcp::ACK, &DATA),
            17 => wire::udp(header, port, 53, &DATA),
            _ => wire::echo_with(header, false, port, &DATA),
        };
        self.cut(header, self.id[0], &whole, fragment)
    }

    fn back(&self, place: Place, fragment: usize) -> Vec<u8> {
        let (header, port) = (place.home(), place.port);
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
