//! Translation on the gateway's node: out, and the way back.

use std::net::IpAddr;

use coil_packet::Reason;

use crate::{
    Case, Given, Net,
    wire::{self, Ip, tcp},
    world::{CLIENT, GATEWAY},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = local_client(net);
    cases.extend(ports(net));
    cases.extend(from_tunnel(net));
    cases.extend(replies(net));
    cases
}

pub(crate) fn nat(
    net: &Net,
    protocol: u8,
    port: u16,
    client: (IpAddr, u16),
    remote: (IpAddr, u16),
    idle: u32,
) -> Given {
    Given::Nat { protocol, gateway: (net.gateway, port), client, remote, idle }
}

pub(crate) const fn icmp(net: &Net) -> u8 {
    if net.is_v4() { 1 } else { 58 }
}

/// Client and gateway on this node: no tunnel.
fn local_client(net: Net) -> Vec<Case> {
    let out = Ip::new(net.client, net.world_local);
    let as_gateway = Ip::new(net.gateway, net.world_local).ttl(63);
    let case = |name, packet, reason| Case::from_pod(name, net, CLIENT, packet, reason);
    let too_big = wire::tcp(out, 40000, 443, tcp::ACK, &[1; 1500]);
    let mut cases = vec![
        case("TCP through a gateway of this node", wire::tcp(out, 40000, 443, tcp::SYN, b""), Reason::Out)
            .sends(&wire::tcp(as_gateway, 40000, 443, tcp::SYN, b"")),
        case(
            "UDP through a gateway of this node",
            wire::udp(out.tos(0xb9), 40000, 53, b"query"),
            Reason::Out,
        )
        .sends(&wire::udp(as_gateway.tos(0xb9), 40000, 53, b"query")),
        case("an echo request through a gateway of this node", wire::echo(out, false, 4000), Reason::Out)
            .sends(&wire::echo(as_gateway, false, 4000)),
        // Who is to be told is told by the kernel, as if the gateway pod had sent the packet.
        case(
            "the last hop at a gateway of this node",
            wire::udp(out.ttl(1), 40000, 53, b"query"),
            Reason::OutByStack,
        )
        .hands_in(GATEWAY, &wire::udp(as_gateway.ttl(1), 40000, 53, b"query")),
        case("no way out", wire::udp(Ip::new(net.client, net.world_lost), 1025, 2, b""), Reason::OutByStack)
            .hands_in(GATEWAY, &wire::udp(Ip::new(net.gateway, net.world_lost), 1025, 2, b"")),
        case(
            "the end of a connection that is not known",
            wire::tcp(out, 40000, 443, tcp::FIN | tcp::ACK, b""),
            Reason::NatInvalid,
        ),
        case(
            "a reset of a connection that is not known",
            wire::tcp(out, 40000, 443, tcp::RST, b""),
            Reason::NatInvalid,
        ),
        case("SCTP at a gateway of this node", wire::ip(out, 132, &[0; 24]), Reason::EgressKind),
        case("larger than the MTU behind a gateway of this node", too_big.clone(), Reason::TooBig)
            .answers(&wire::too_big(net.gateway, net.client, 1500, &too_big)),
    ];
    if net.is_v4() {
        cases.push(
            case("UDP without a checksum", wire::udp_unsummed(out, 40000, 53, b"query"), Reason::Out)
                .sends(&wire::udp_unsummed(as_gateway, 40000, 53, b"query")),
        );
    }
    cases
}

/// Which port stands for the client's.
fn ports(net: Net) -> Vec<Case> {
    let out = Ip::new(net.client, net.world_local);
    let as_gateway = Ip::new(net.gateway, net.world_local).ttl(63);
    let remote = (net.world_local, 443);
    let header = if net.is_v4() { 20 } else { 40 };
    // The source port and the checksum with it; that one is checked by itself.
    let chosen = [header, header + 1, header + 16, header + 17];
    let tcp_case = |name, sport: u16| {
        let packet = wire::tcp(out, sport, 443, tcp::ACK, b"data");
        let same = wire::tcp(as_gateway, sport, 443, tcp::ACK, b"data");
        Case::from_pod(name, net, CLIENT, packet, Reason::Out).sends(&same)
    };
    let known = wire::tcp(as_gateway, 50001, 443, tcp::ACK, b"data");
    let echo = wire::echo(out, false, 3);
    vec![
        tcp_case("a known flow keeps its port", 40000).sends(&known).given(nat(
            &net,
            6,
            50001,
            (net.client, 40000),
            remote,
            1,
        )),
        tcp_case("a port that another client has", 40000)
            .given(nat(&net, 6, 40000, (net.remote_client, 40000), remote, 1))
            .free(chosen),
        tcp_case("another client's port towards another remote", 40000).given(nat(
            &net,
            6,
            40000,
            (net.remote_client, 40000),
            (net.world, 443),
            1,
        )),
        tcp_case("another flow's lease that has run out, before it is swept", 40000)
            .given(nat(&net, 6, 40000, (net.remote_client, 40000), remote, 241))
            .free(chosen),
        tcp_case("the flow's own lease that has run out", 40000).given(nat(
            &net,
            6,
            40000,
            (net.client, 40000),
            remote,
            241,
        )),
        tcp_case("a privileged port", 80).free(chosen),
        tcp_case("a port of the pod's own", 61000).free(chosen),
        tcp_case("the FOU port", 5555).free(chosen),
        Case::from_pod("a low echo identifier", net, CLIENT, echo, Reason::Out)
            .sends(&wire::echo(as_gateway, false, 3))
            .free([header + 2, header + 3, header + 4, header + 5]),
    ]
}

/// What Linux sends with a SYN: MSS, SACK permitted, timestamps, window scale.
pub(crate) const SYN_OPTIONS: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];

/// A client of another node.
fn from_tunnel(net: Net) -> Vec<Case> {
    let out = Ip::new(net.remote_client, net.world_local);
    let as_gateway = Ip::new(net.gateway, net.world_local).ttl(63);
    let ends = (net.remote_client, net.gateway);
    let case = |name, packet, reason| Case::from_net(name, net, packet, reason);
    let syn = wire::tcp(out, 40000, 443, tcp::SYN, b"");
    let large = wire::udp(out, 40000, 53, &[1; 1500]);
    let dns = |tos| wire::udp(out.tos(tos), 40000, 53, b"query");
    let mut cases = vec![
        case("TCP out of the tunnel", wire::fou(ends, 0, 5555, &syn), Reason::Out).sends(&wire::tcp(
            as_gateway,
            40000,
            443,
            tcp::SYN,
            b"",
        )),
        case("from a hashed source port", wire::fou(ends, 0, 39999, &syn), Reason::Out).sends(&wire::tcp(
            as_gateway,
            40000,
            443,
            tcp::SYN,
            b"",
        )),
        case(
            "TCP options out of the tunnel",
            wire::fou(ends, 0, 5555, &wire::tcp_with_options(out, (40000, 443), tcp::SYN, SYN_OPTIONS, b"")),
            Reason::Out,
        )
        .sends(&wire::tcp_with_options(as_gateway, (40000, 443), tcp::SYN, SYN_OPTIONS, b"")),
        case("UDP out of the tunnel", wire::fou(ends, 0, 5555, &dns(0)), Reason::Out)
            .sends(&wire::udp(as_gateway, 40000, 53, b"query")),
        case(
            "an echo request out of the tunnel",
            wire::fou(ends, 0, 5555, &wire::echo(out, false, 4000)),
            Reason::Out,
        )
        .sends(&wire::echo(as_gateway, false, 4000)),
        case("a congestion mark of the tunnel is kept", wire::fou(ends, 3, 5555, &dns(0xb9)), Reason::Out)
            .sends(&wire::udp(as_gateway.tos(0xbb), 40000, 53, b"query")),
        case(
            "a congestion mark on what cannot carry it",
            wire::fou(ends, 3, 5555, &dns(0)),
            Reason::FouCongestion,
        ),
        case(
            "the last hop in the tunnel",
            wire::fou(ends, 0, 5555, &wire::tcp(out.ttl(1), 1025, 2, 2, b"")),
            Reason::OutByStack,
        )
        .hands_in(GATEWAY, &wire::tcp(as_gateway.ttl(1), 1025, 2, 2, b"")),
        case("larger than the MTU behind the gateway", wire::fou(ends, 0, 5555, &large), Reason::OutByStack)
            .hands_in(GATEWAY, &wire::udp(as_gateway.ttl(64), 40000, 53, &[1; 1500])),
        case("another inner source", wire::fou((net.remote, net.gateway), 0, 5555, &syn), Reason::FouInner),
        case(
            "an inner packet that is shorter",
            wire::fou(ends, 0, 5555, &[&syn[..], b"rest"].concat()),
            Reason::FouInner,
        ),
        case("no inner packet", wire::fou(ends, 0, 5555, b"hello"), Reason::FouInner),
        case(
            "a sender that is no pod",
            wire::fou(
                (net.world, net.gateway),
                0,
                5555,
                &wire::tcp(Ip::new(net.world, net.world_local), 1, 2, 2, b""),
            ),
            Reason::FouSender,
        ),
        case(
            "SCTP in the tunnel",
            wire::fou(ends, 0, 5555, &wire::ip(out, 132, &[0; 24])),
            Reason::EgressKind,
        ),
    ];
    if !net.is_v4() {
        cases.push(
            case("with a tunnel encapsulation limit", wire::fou_with_limit(ends, &syn), Reason::Out)
                .sends(&wire::tcp(as_gateway, 40000, 443, tcp::SYN, b"")),
        );
    }
    cases
}

/// From the world to the gateway.
fn replies(net: Net) -> Vec<Case> {
    let back = Ip::new(net.world_local, net.gateway);
    let remote = (net.world_local, 443);
    let case = |name, packet: &[u8], reason| Case::from_net(name, net, packet, reason);
    let reply = wire::tcp(back, 443, 50001, tcp::ACK, b"data");
    let large = wire::tcp(back, 443, 50001, tcp::ACK, &[1; 1440]);
    let to_remote = |inner: &[u8]| wire::fou((net.gateway, net.remote_client), 0, 5555, inner);
    let at_client = Ip::new(net.world_local, net.client).ttl(63);
    let at_remote = Ip::new(net.world_local, net.remote_client).ttl(63);
    let of_local = nat(&net, 6, 50001, (net.client, 40000), remote, 1);
    let of_remote = nat(&net, 6, 50001, (net.remote_client, 40000), remote, 1);
    let mut cases = vec![
        case("a reply for a client of this node", &reply, Reason::ReplyToPod)
            .given(of_local)
            .hands_over(CLIENT, &wire::tcp(at_client, 443, 40000, tcp::ACK, b"data")),
        case("a reply for a client of another node", &reply, Reason::ReplyToNode)
            .given(of_remote)
            .sends(&to_remote(&wire::tcp(at_remote, 443, 40000, tcp::ACK, b"data"))),
        case("a UDP reply", &wire::udp(back, 443, 50001, b"answer"), Reason::ReplyToNode)
            .given(nat(&net, 17, 50001, (net.remote_client, 40000), remote, 119))
            .sends(&to_remote(&wire::udp(at_remote, 443, 40000, b"answer"))),
        case("a UDP reply to another node", &wire::udp(back, 443, 50001, &[3; 700]), Reason::ReplyToNode)
            .given(nat(&net, 17, 50001, (net.remote_client, 40000), remote, 1))
            .sends(&to_remote(&wire::udp(at_remote, 443, 40000, &[3; 700]))),
        case(
            "options of a reply",
            &wire::tcp_with_options(back, (443, 50001), tcp::SYN | tcp::ACK, SYN_OPTIONS, b""),
            Reason::ReplyToNode,
        )
        .given(of_remote)
        .sends(&to_remote(&wire::tcp_with_options(
            at_remote,
            (443, 40000),
            tcp::SYN | tcp::ACK,
            SYN_OPTIONS,
            b"",
        ))),
        case("an echo reply", &wire::echo(back, true, 50001), Reason::ReplyToNode)
            .given(nat(&net, icmp(&net), 50001, (net.remote_client, 7), (net.world_local, 0), 1))
            .sends(&to_remote(&wire::echo(at_remote, true, 7))),
        case("a reply too big for the tunnel", &large, Reason::TooBig)
            .given(of_remote)
            .answers(&wire::too_big(net.gateway, net.world_local, 1500 - net.overhead(), &large)),
        case(
            "a reply at its last hop",
            &wire::tcp(back.ttl(1), 443, 50001, tcp::ACK, b""),
            Reason::EgressLastHop,
        )
        .given(of_remote),
        case("a port that is lent to nobody", &reply, Reason::NatUnknown),
        case("another remote port", &wire::tcp(back, 444, 50001, tcp::ACK, b""), Reason::NatUnknown)
            .given(of_local),
        case("UDP to a port that is lent to nobody", &wire::udp(back, 53, 2000, b""), Reason::NatUnknown),
        case("a lease that has run out", &reply, Reason::NatUnknown).given(nat(
            &net,
            6,
            50001,
            (net.client, 40000),
            remote,
            241,
        )),
        case(
            "the gateway pod's health port",
            &wire::tcp(back, 40000, 8081, tcp::SYN, b""),
            Reason::NotFastFlow,
        ),
        case(
            "the gateway pod's own connection",
            &wire::tcp(back, 443, 61001, tcp::ACK, b""),
            Reason::NotFastFlow,
        ),
        case("an echo request to the gateway pod", &wire::echo(back, false, 1), Reason::NotFastFlow),
    ];
    if net.is_v4() {
        // Nobody sums it, on any way.
        let unsummed = wire::udp_unsummed(back, 443, 50001, b"answer");
        for (name, client, at, reason) in [
            ("a UDP reply without a checksum", net.client, at_client, Reason::ReplyToPod),
            ("the same to another node", net.remote_client, at_remote, Reason::ReplyToNode),
        ] {
            let inside = wire::udp_unsummed(at, 443, 40000, b"answer");
            let case = case(name, &unsummed, reason).given(nat(&net, 17, 50001, (client, 40000), remote, 1));
            cases.push(if client == net.client {
                case.hands_over(CLIENT, &inside)
            } else {
                case.sends(&to_remote(&inside))
            });
        }
    }
    cases
}
