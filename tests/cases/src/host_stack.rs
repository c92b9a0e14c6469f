//! Where every packet passes the host's stack: programs encapsulate and translate, and send nothing themselves.

use coil_packet::Reason;

use crate::{
    Case, Net,
    gateway::nat,
    wire::{self, Ip, tcp},
    world::{CLIENT, GATEWAY, PLAIN},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = out(net);
    cases.extend(back(net));
    cases.extend(incoming(net));
    cases.into_iter().map(Case::with_host_stack).collect()
}

/// From a client up to its gateway, and through it.
fn out(net: Net) -> Vec<Case> {
    let (far, near) = (Ip::new(net.client, net.world), Ip::new(net.client, net.world_local));
    let syn = |ip| wire::tcp(ip, 40000, 443, tcp::SYN, b"");
    let large = wire::udp(far, 40000, 53, &[1; 1472]);
    let in_tunnel = syn(Ip::new(net.remote_client, net.world_local));
    let as_gateway = Ip::new(net.gateway, net.world_local);
    vec![
        Case::from_pod("goes on in the stack, encapsulated", net, CLIENT, syn(far), Reason::ToGateway)
            .leaves_as(&wire::fou((net.client, net.remote_gateway), 0, 5555, &syn(far))),
        Case::from_pod("to a gateway of this node by the stack", net, CLIENT, syn(near), Reason::ToGateway)
            .leaves_as(&wire::fou((net.client, net.gateway), 0, 5555, &syn(near))),
        Case::from_pod(
            "SCTP that no program translates",
            net,
            CLIENT,
            wire::ip(near, 132, &[0; 24]),
            Reason::EgressKind,
        ),
        Case::from_pod("too big for the stack, too", net, CLIENT, large.clone(), Reason::TooBig)
            .answers(&wire::too_big(net.remote_gateway, net.client, 1500 - net.overhead(), &large)),
        Case::from_pod(
            "pod to pod by the stack",
            net,
            PLAIN,
            syn(Ip::new(net.plain, net.remote)),
            Reason::NotFastNode,
        ),
        Case::to_pod(
            "out of the tunnel into the stack",
            net,
            GATEWAY,
            wire::fou((net.remote_client, net.gateway), 0, 5555, &in_tunnel),
            Reason::OutByStack,
        )
        .hands_in(GATEWAY, &syn(as_gateway)),
    ]
}

/// What the stack delivers to a gateway pod for a client.
fn back(net: Net) -> Vec<Case> {
    let reply = wire::tcp(Ip::new(net.world_local, net.gateway), 443, 50001, tcp::ACK, b"data");
    let to = |client| {
        let inner = wire::tcp(Ip::new(net.world_local, client).ttl(63), 443, 40000, tcp::ACK, b"data");
        wire::fou((net.gateway, client), 0, 5555, &inner)
    };
    let of = |client| nat(&net, 6, 50001, (client, 40000), (net.world_local, 443), 1);
    let case = |name| Case::to_pod(name, net, GATEWAY, reply.clone(), Reason::ReplyToNode);
    vec![
        case("a reply into the stack").given(of(net.remote_client)).hands_in(GATEWAY, &to(net.remote_client)),
        case("a reply to a client of this node by the stack")
            .given(of(net.client))
            .hands_in(GATEWAY, &to(net.client)),
        Case::to_pod(
            "out of the tunnel behind the stack",
            net,
            CLIENT,
            wire::fou((net.remote_gateway, net.client), 0, 5555, &reply_for(net)),
            Reason::Decapsulated,
        )
        .leaves_as(&reply_for(net)),
    ]
}

fn reply_for(net: Net) -> Vec<u8> {
    wire::tcp(Ip::new(net.world, net.client), 443, 40000, tcp::ACK, b"data")
}

/// What comes in on an uplink for a pod is the stack's.
fn incoming(net: Net) -> Vec<Case> {
    let case = |name, packet: Vec<u8>| Case::from_net(name, net, packet, Reason::HostStack);
    let ends = (net.remote_client, net.gateway);
    vec![
        case(
            "FOU for a gateway",
            wire::fou(ends, 0, 5555, &wire::echo(Ip::new(net.remote_client, net.world), false, 1)),
        ),
        case(
            "a reply for a gateway",
            wire::tcp(Ip::new(net.world_local, net.gateway), 443, 50001, tcp::ACK, b""),
        )
        .given(nat(&net, 6, 50001, (net.client, 40000), (net.world_local, 443), 1)),
        case("FOU for a client", wire::fou((net.remote_gateway, net.client), 0, 5555, &reply_for(net))),
        case("for any pod", wire::tcp(Ip::new(net.remote, net.plain), 443, 80, tcp::SYN, b"")),
    ]
}
