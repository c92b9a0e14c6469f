//! What comes back to a client whose link has a queue, a bandwidth limit say: it goes through that.

use coil_packet::Reason;

use crate::{
    Case, Given, Net,
    gateway::{icmp, nat},
    wire::{self, Ip, tcp},
    world::{GATEWAY, QUEUED},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = tunnel(net);
    cases.extend(replies(net));
    cases
}

/// Out of the tunnel behind the stack, which delivers by the queue.
fn tunnel(net: Net) -> Vec<Case> {
    let inner = wire::tcp(Ip::new(net.world, net.queued), 443, 40000, tcp::ACK, b"data");
    let fou = |from| wire::fou((from, net.queued), 0, 5555, &inner);
    vec![
        Case::from_net("FOU for a client with a queue", net, fou(net.remote_gateway), Reason::KernelPod),
        Case::to_pod(
            "FOU for a client with a queue, by the kernel",
            net,
            QUEUED,
            fou(net.remote_gateway),
            Reason::Decapsulated,
        )
        .leaves_as(&inner),
        Case::from_net("forged FOU for a client with a queue", net, fou(net.remote), Reason::FouNotGateway),
    ]
}

/// From a gateway of this node.
fn replies(net: Net) -> Vec<Case> {
    let out = Ip::new(net.queued, net.world_local);
    let (back, at) = (Ip::new(net.world_local, net.gateway), Ip::new(net.world_local, net.queued).ttl(63));
    let reply = wire::tcp(back, 443, 50001, tcp::ACK, b"data");
    let answer = wire::tcp(at, 443, 40000, tcp::ACK, b"data");
    let lease = |protocol, port| -> Given {
        nat(&net, protocol, 50001, (net.queued, 40000), (net.world_local, port), 1)
    };
    vec![
        Case::from_pod(
            "TCP of a client with a queue",
            net,
            QUEUED,
            wire::tcp(out, 40000, 443, tcp::SYN, b""),
            Reason::Out,
        )
        .sends(&wire::tcp(Ip::new(net.gateway, net.world_local).ttl(63), 40000, 443, tcp::SYN, b"")),
        Case::from_net("a reply for a client with a queue", net, &reply, Reason::ReplyToPod)
            .given(lease(6, 443))
            .queues(QUEUED, &answer),
        Case::from_net(
            "an echo reply for a client with a queue",
            net,
            wire::echo(back, true, 50001),
            Reason::ReplyToPod,
        )
        .given(lease(icmp(&net), 0))
        .queues(QUEUED, &wire::echo(at, true, 40000)),
        Case::to_pod(
            "a reply by the kernel for a client with a queue",
            net,
            GATEWAY,
            &reply,
            Reason::ReplyToPod,
        )
        .given(lease(6, 443))
        .queues(QUEUED, &answer),
    ]
}
