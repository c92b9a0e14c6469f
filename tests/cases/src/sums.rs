//! UDP whose checksum comes out as zero behind a translation: it is sent as its other representation (RFC 768), as zero
//! says that there is none, and over IPv6 is no checksum at all (RFC 8200, section 8.1).

use coil_packet::Reason;

use crate::{
    Case, Net,
    gateway::nat,
    wire::{self, Ip},
    world::{CLIENT, GATEWAY},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = out(net);
    cases.extend(back(net));
    cases
}

fn out(net: Net) -> Vec<Case> {
    let from = |client| Ip::new(client, net.world_local);
    let as_gateway = from(net.gateway).ttl(63);
    let lease = |client| nat(&net, 17, 50001, (client, 40000), (net.world_local, 53), 1);
    let zero = |port| wire::zeroing(as_gateway, port, 53);
    let sent = |client, data: [u8; 2]| wire::udp(from(client), 40000, 53, &data);
    let leaves = |port, data: [u8; 2]| wire::udp(as_gateway, port, 53, &data);
    let tunnel = |inner: &[u8]| wire::fou((net.remote_client, net.gateway), 0, 5555, inner);
    vec![
        Case::from_pod(
            "a checksum of zero, same port",
            net,
            CLIENT,
            sent(net.client, zero(40000)),
            Reason::Out,
        )
        .sends(&leaves(40000, zero(40000))),
        Case::from_pod(
            "a checksum of zero, another port",
            net,
            CLIENT,
            sent(net.client, zero(50001)),
            Reason::Out,
        )
        .given(lease(net.client))
        .sends(&leaves(50001, zero(50001))),
        Case::from_pod(
            "a checksum of zero between address and port",
            net,
            CLIENT,
            sent(net.client, zero(40000)),
            Reason::Out,
        )
        .given(lease(net.client))
        .sends(&leaves(50001, zero(40000))),
        Case::from_net(
            "a checksum of zero out of the tunnel",
            net,
            tunnel(&sent(net.remote_client, zero(50001))),
            Reason::Out,
        )
        .given(lease(net.remote_client))
        .sends(&leaves(50001, zero(50001))),
    ]
}

fn back(net: Net) -> Vec<Case> {
    let at = |client| Ip::new(net.world_local, client).ttl(63);
    let lease = |client| nat(&net, 17, 50001, (client, 40000), (net.world_local, 53), 1);
    let data = |client| wire::zeroing(at(client), 53, 40000);
    let reply = |client| wire::udp(at(net.gateway).ttl(64), 53, 50001, &data(client));
    let inside = |client| wire::udp(at(client), 53, 40000, &data(client));
    let fou = wire::fou((net.gateway, net.remote_client), 0, 5555, &inside(net.remote_client));
    vec![
        Case::from_net("a reply's checksum of zero", net, reply(net.client), Reason::ReplyToPod)
            .given(lease(net.client))
            .hands_over(CLIENT, &inside(net.client)),
        Case::from_net(
            "a reply's checksum of zero to another node",
            net,
            reply(net.remote_client),
            Reason::ReplyToNode,
        )
        .given(lease(net.remote_client))
        .sends(&fou),
        Case::to_pod(
            "a reply's checksum of zero by the kernel",
            net,
            GATEWAY,
            reply(net.client),
            Reason::ReplyToPod,
        )
        .given(lease(net.client))
        .hands_over(CLIENT, &inside(net.client)),
    ]
}
