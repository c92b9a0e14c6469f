//! FOU for the clients of this node.

use coil_packet::Reason;

use crate::{
    Case, Net,
    wire::{self, Ip, tcp},
    world::CLIENT,
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let ends = (net.remote_gateway, net.client);
    let back = Ip::new(net.world, net.client).ttl(50);
    let case = |name, packet, reason| Case::from_net(name, net, packet, reason);
    let data = wire::tcp(back, 443, 40000, tcp::ACK, b"data");
    let marked = wire::udp(back.tos(0x02), 53, 40000, b"answer");
    let mut cases = vec![
        case("a reply out of the tunnel", wire::fou(ends, 0, 5555, &data), Reason::Decapsulated)
            .hands_over(CLIENT, &data),
        case(
            "from the gateway with hashed ports",
            wire::fou((net.auto_gateway, net.client), 0, 5555, &data),
            Reason::Decapsulated,
        )
        .hands_over(CLIENT, &data),
        case("a congestion mark of the tunnel", wire::fou(ends, 3, 5555, &marked), Reason::Decapsulated)
            .hands_over(CLIENT, &wire::udp(back.tos(0x03), 53, 40000, b"answer")),
        case(
            "a fragment out of the tunnel",
            wire::fou(ends, 0, 5555, &wire::fragment(back, &[0; 24])),
            Reason::Decapsulated,
        )
        .hands_over(CLIENT, &wire::fragment(back, &[0; 24])),
        case(
            "FOU from a pod that is no gateway",
            wire::fou((net.remote, net.client), 0, 5555, &data),
            Reason::FouNotGateway,
        ),
        case(
            "FOU from another Egress's gateway",
            wire::fou((net.strange_gateway, net.client), 0, 5555, &data),
            Reason::FouNotGateway,
        ),
        case("FOU from the world", wire::fou((net.world, net.client), 0, 5555, &data), Reason::FouNotGateway),
        case(
            "an inner packet for somebody else",
            wire::fou(ends, 0, 5555, &wire::tcp(Ip::new(net.world, net.plain), 443, 40000, tcp::ACK, b"")),
            Reason::FouInner,
        ),
        case(
            "FOU to a pod that is no client",
            wire::fou((net.remote_gateway, net.plain), 0, 5555, &data),
            Reason::NotFastKind,
        ),
    ];
    if !net.is_v4() {
        cases.push(
            case(
                "a reply with a tunnel encapsulation limit",
                wire::fou_with_limit(ends, &data),
                Reason::Decapsulated,
            )
            .hands_over(CLIENT, &data),
        );
    }
    cases
}
