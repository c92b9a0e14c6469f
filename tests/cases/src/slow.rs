//! What the kernel delivers to gateways and clients: from this node itself, or from a link that is no uplink. And
//! what nobody may send them.

use coil_packet::Reason;

use crate::{
    Case, Net,
    gateway::nat,
    wire::{self, Ip, tcp},
    world::{CLIENT, GATEWAY, PLAIN},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = delivered(net);
    cases.extend(forged(net));
    cases
}

fn delivered(net: Net) -> Vec<Case> {
    let back = Ip::new(net.world_local, net.gateway);
    let reply = wire::tcp(back, 443, 50001, tcp::ACK, b"data");
    let lease = |client| nat(&net, 6, 50001, (client, 40000), (net.world_local, 443), 1);
    let at = |client| wire::tcp(Ip::new(net.world_local, client).ttl(63), 443, 40000, tcp::ACK, b"data");
    let out = wire::tcp(Ip::new(net.remote_client, net.world_local), 40000, 443, tcp::SYN, b"");
    let large = wire::tcp(back, 443, 50001, tcp::ACK, &[1; 1440]);
    let inner = wire::tcp(Ip::new(net.world, net.client), 443, 40000, tcp::ACK, b"data");
    let unknown = wire::tcp(back, 443, 50002, tcp::SYN, b"");
    vec![
        Case::to_pod(
            "a reply by the kernel, for a client of this node",
            net,
            GATEWAY,
            &reply,
            Reason::ReplyToPod,
        )
        .given(lease(net.client))
        .hands_over(CLIENT, &at(net.client)),
        Case::to_pod(
            "a reply by the kernel, for another node's client",
            net,
            GATEWAY,
            &reply,
            Reason::ReplyToNode,
        )
        .given(lease(net.remote_client))
        .sends(&wire::fou((net.gateway, net.remote_client), 0, 5555, &at(net.remote_client))),
        Case::to_pod("a reply by the kernel that is too big", net, GATEWAY, &large, Reason::TooBig)
            .given(lease(net.remote_client))
            .answers(&wire::too_big(net.gateway, net.world_local, 1500 - net.overhead(), &large)),
        Case::to_pod(
            "a port that is lent to nobody, by the kernel",
            net,
            GATEWAY,
            &unknown,
            Reason::NatUnknown,
        ),
        Case::to_pod(
            "FOU by the kernel to a gateway",
            net,
            GATEWAY,
            wire::fou((net.remote_client, net.gateway), 0, 5555, &out),
            Reason::Out,
        )
        .sends(&wire::tcp(Ip::new(net.gateway, net.world_local).ttl(63), 40000, 443, tcp::SYN, b"")),
        Case::to_pod(
            "FOU by the kernel to a client",
            net,
            CLIENT,
            wire::fou((net.remote_gateway, net.client), 0, 5555, &inner),
            Reason::Decapsulated,
        )
        .leaves_as(&inner),
        Case::to_pod(
            "forged FOU by the kernel to a client",
            net,
            CLIENT,
            wire::fou((net.remote, net.client), 0, 5555, &inner),
            Reason::FouNotGateway,
        ),
    ]
}

fn forged(net: Net) -> Vec<Case> {
    let inner = wire::tcp(Ip::new(net.plain, net.world), 40000, 443, tcp::SYN, b"");
    let fou = |from, to| wire::fou((from, to), 0, 5555, &inner);
    vec![
        Case::from_pod(
            "FOU to a gateway from no client",
            net,
            PLAIN,
            fou(net.plain, net.remote_gateway),
            Reason::FouForged,
        ),
        Case::from_pod(
            "FOU to a gateway of this node from no client",
            net,
            PLAIN,
            fou(net.plain, net.gateway),
            Reason::FouForged,
        ),
        Case::from_pod(
            "FOU in a client's name",
            net,
            PLAIN,
            fou(net.client, net.remote_gateway),
            Reason::FouForged,
        ),
        Case::from_pod(
            "FOU in a gateway's name",
            net,
            PLAIN,
            fou(net.remote_gateway, net.remote_client),
            Reason::FouForged,
        ),
        // Port 5555 is free for everything else.
        Case::from_pod(
            "the FOU port of another pod",
            net,
            PLAIN,
            fou(net.plain, net.remote),
            Reason::NotFastKind,
        ),
        Case::to_pod(
            "a pod's FOU to a gateway by a service",
            net,
            GATEWAY,
            fou(net.plain, net.gateway),
            Reason::FouSender,
        ),
    ]
}
