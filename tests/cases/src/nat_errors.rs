//! ICMP errors from outside about translated packets: the quoted packet is translated, too.

use std::net::IpAddr;

use coil_packet::Reason;

use crate::{
    Case, Given, Net,
    gateway::{icmp, nat},
    wire::{self, Ip, tcp},
    world::CLIENT,
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = from_outside(net);
    cases.extend(quotations(net));
    cases
}

/// Type, code and the four bytes behind the checksum: too big, time exceeded, unreachable.
fn kinds(net: &Net) -> [(&'static str, [u8; 2], [u8; 4]); 3] {
    let mtu = [0, 0, 5, 0];
    if net.is_v4() {
        [
            ("a smaller MTU outside", [3, 4], mtu),
            ("time exceeded outside", [11, 0], [0; 4]),
            ("unreachable outside", [3, 1], [0; 4]),
        ]
    } else {
        [
            ("a smaller MTU outside", [2, 0], mtu),
            ("time exceeded outside", [3, 0], [0; 4]),
            ("unreachable outside", [1, 0], [0; 4]),
        ]
    }
}

fn lease(net: &Net, protocol: u8, client: IpAddr) -> Given {
    let port = if protocol == icmp(net) { 0 } else { 443 };
    nat(net, protocol, 50001, (client, 40000), (net.world_local, port), 1)
}

/// Errors of a router outside, for a client of this node and of another.
fn from_outside(net: Net) -> Vec<Case> {
    let router = net.world;
    let quoted =
        |from: IpAddr, port| wire::tcp(Ip::new(from, net.world_local).ttl(60), port, 443, tcp::ACK, b"data");
    let arrives =
        |kind, rest| wire::error(Ip::new(router, net.gateway), kind, rest, &quoted(net.gateway, 50001));
    let leaves =
        |client, kind, rest| wire::error(Ip::new(router, client).ttl(63), kind, rest, &quoted(client, 40000));
    let mut cases = vec![];
    for (name, kind, rest) in kinds(&net) {
        cases.push(
            Case::from_net(name, net, arrives(kind, rest), Reason::ReplyToPod)
                .given(lease(&net, 6, net.client))
                .hands_over(CLIENT, &leaves(net.client, kind, rest)),
        );
        let name = format!("{name}, for another node's client");
        cases.push(
            Case::from_net(name, net, arrives(kind, rest), Reason::ReplyToNode)
                .given(lease(&net, 6, net.remote_client))
                .sends(&wire::fou(
                    (net.gateway, net.remote_client),
                    0,
                    5555,
                    &leaves(net.remote_client, kind, rest),
                )),
        );
    }
    let (_, kind, rest) = kinds(&net)[2];
    let to_plain = wire::error(Ip::new(router, net.gateway), kind, rest, &quoted(net.gateway, 50002));
    cases.push(Case::from_net(
        "about a flow that the gateway does not have",
        net,
        to_plain,
        Reason::NotFastFlow,
    ));
    let of_pod = wire::error(Ip::new(router, net.gateway), kind, rest, &quoted(net.client, 50001));
    cases.push(
        Case::from_net("about a packet that the gateway did not send", net, of_pod, Reason::NotFastKind)
            .given(lease(&net, 6, net.client)),
    );
    cases
}

/// Of each protocol, and cut short.
fn quotations(net: Net) -> Vec<Case> {
    let (_, kind, rest) = kinds(&net)[2];
    let header = |from: IpAddr| Ip::new(from, net.world_local).ttl(60);
    let case = |name, protocol, quoted: &dyn Fn(IpAddr, u16) -> Vec<u8>| {
        let error = |to: Ip, quoted: &[u8]| wire::error(to, kind, rest, quoted);
        Case::from_net(
            name,
            net,
            error(Ip::new(net.world_local, net.gateway), &quoted(net.gateway, 50001)),
            Reason::ReplyToPod,
        )
        .given(lease(&net, protocol, net.client))
        .hands_over(CLIENT, &error(Ip::new(net.world_local, net.client).ttl(63), &quoted(net.client, 40000)))
    };
    let ip = if net.is_v4() { 20 } else { 40 };
    let mut cases = vec![
        case("about UDP", 17, &|from, port| wire::udp(header(from), port, 443, b"query")),
        case("about an echo", icmp(&net), &|from, id| wire::echo(header(from), false, id)),
        case("with eight bytes of TCP", 6, &|from, port| {
            wire::tcp(header(from), port, 443, tcp::SYN, b"")[..ip + 8].to_vec()
        }),
        case("with eight bytes of UDP", 17, &|from, port| {
            wire::udp(header(from), port, 443, b"query")[..ip + 8].to_vec()
        }),
    ];
    let piece = |from, port, which: usize| {
        let ip = header(from);
        let datagram = wire::udp_datagram(ip, port, 443, true, &[7; 592]);
        wire::fragments(ip, 17, 0x4321, &datagram, 400)[which].clone()
    };
    cases.push(case("about a first fragment", 17, &|from, port| piece(from, port, 0)));
    cases.push(case("with eight bytes of a first fragment", 17, &|from, port| {
        let fragment = piece(from, port, 0);
        fragment[..fragment.len() - 392].to_vec()
    }));
    let later = wire::error(Ip::new(net.world, net.gateway), kind, rest, &piece(net.gateway, 50001, 1));
    cases.push(
        Case::from_net("about a later fragment, which names no flow", net, later, Reason::NotFastKind)
            .given(lease(&net, 17, net.client)),
    );
    if net.is_v4() {
        cases.push(case("about UDP without a checksum", 17, &|from, port| {
            wire::udp_unsummed(header(from), port, 443, b"query")
        }));
    }
    cases
}
