//! Headers that the kernel understands and the programs do not: what an Egress would take goes no further.

use coil_packet::Reason;

use crate::{
    Case, Net,
    wire::{self, Ip, tcp},
    world::{CLIENT, PLAIN},
};

/// A packet of several segments with no length in its header, or one with a fragment header that is cut short.
fn packet(net: &Net, header: Ip) -> Vec<u8> {
    if net.is_v4() {
        wire::big(wire::tcp(header, 40000, 443, tcp::ACK, &[1; 1400]))
    } else {
        wire::ip(header, 44, &[17, 0, 0, 1])
    }
}

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let case = |name, link, from, to, reason| {
        Case::from_pod(name, net, link, packet(&net, Ip::new(from, to)), reason)
    };
    let outside = Ip::new(net.client, net.world);
    let longer = [&wire::udp(outside, 40000, 53, &[1; 40])[..60]].concat();
    let tunnelled = packet(&net, Ip::new(net.world_local, net.gateway));
    vec![
        case("an unreadable header to a gateway", CLIENT, net.client, net.world, Reason::EgressUnreadable),
        case(
            "an unreadable header to a gateway of this node",
            CLIENT,
            net.client,
            net.world_local,
            Reason::EgressUnreadable,
        ),
        Case::from_pod("a packet longer than its frame", net, CLIENT, longer, Reason::EgressUnreadable),
        case("an unreadable header to a pod", CLIENT, net.client, net.remote, Reason::Malformed),
        case("an unreadable header of no client", PLAIN, net.plain, net.world, Reason::Malformed),
        case("an unreadable header in another's name", CLIENT, net.plain, net.world, Reason::Malformed),
        case("an unreadable header in a client's name", PLAIN, net.client, net.world, Reason::Malformed),
        Case::from_net("an unreadable header for a gateway", net, tunnelled, Reason::Malformed),
    ]
}
