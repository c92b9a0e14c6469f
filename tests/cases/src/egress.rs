//! A client's packets to destinations outside, up to the gateway.

use coil_packet::Reason;

use crate::{
    Case, Net,
    wire::{self, Ip, tcp},
    world::CLIENT,
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = encapsulated(net);
    cases.extend(refused(net));
    cases
}

fn encapsulated(net: Net) -> Vec<Case> {
    let out = Ip::new(net.client, net.world);
    let ends = (net.client, net.remote_gateway);
    let case = |name, packet: Vec<u8>, ecn| {
        Case::from_pod(name, net, CLIENT, packet.clone(), Reason::ToGateway)
            .sends(&wire::fou(ends, ecn, 5555, &packet))
    };
    let header = if net.is_v4() { 20 } else { 40 };
    let auto = wire::udp(Ip::new(net.client, net.world_auto), 40000, 53, b"query");
    let fits = usize::from(1500 - net.overhead());
    let exact = wire::udp(out, 40000, 53, &vec![1; fits - header - 8]);
    let over = wire::udp(out, 40000, 53, &vec![1; fits - header - 8 + 1]);
    vec![
        case("a SYN to a gateway", wire::tcp(out, 40000, 443, tcp::SYN, b""), 0),
        case("TCP data to a gateway", wire::tcp(out, 40000, 443, tcp::ACK, b"odd"), 0),
        case("UDP to a gateway", wire::udp(out, 40000, 53, b"query"), 0),
        case("an echo request to a gateway", wire::echo(out, false, 7), 0),
        case("DSCP stays inside, ECN is copied", wire::udp(out.tos(0xb9), 40000, 53, b"query"), 1),
        case("a congestion mark is copied", wire::udp(out.tos(0x03), 40000, 53, b"query"), 3),
        // What the programs cannot translate a gateway's kernel may.
        case("SCTP to a gateway", wire::ip(out, 132, &[0; 24]), 0),
        case("an echo reply to a gateway", wire::echo(out, true, 7), 0),
        case("options to a gateway", wire::with_options(out, &[0; 24]), 0),
        // The tunnel's link would be in the pod: this is no hop yet.
        case("the last hop is the gateway's matter", wire::udp(out.ttl(1), 40000, 53, b"query"), 0),
        case("exactly the MTU", exact, 0),
        Case::from_pod("one byte more", net, CLIENT, over.clone(), Reason::TooBig).answers(&wire::too_big(
            net.remote_gateway,
            net.client,
            1500 - net.overhead(),
            &over,
        )),
        Case::from_pod("a hashed source port", net, CLIENT, auto.clone(), Reason::ToGateway)
            .sends(&wire::fou((net.client, net.auto_gateway), 0, 0, &auto))
            .free([header, header + 1]),
    ]
}

fn refused(net: Net) -> Vec<Case> {
    let out = Ip::new(net.client, net.world);
    let case = |name, packet, reason| Case::from_pod(name, net, CLIENT, packet, reason);
    let header = if net.is_v4() { 20 } else { 40 };
    let whole = wire::tcp(out, 40000, 443, tcp::SYN, b"");
    vec![
        case("no gateway", wire::udp(Ip::new(net.client, net.world_none), 1, 2, b""), Reason::NoGateway),
        case("cut TCP to a gateway", wire::ip(out, 6, &whole[header..header + 12]), Reason::EgressKind),
        case(
            "link-local is never egress",
            wire::udp(Ip::new(net.client, net.link_local), 1, 2, b""),
            Reason::NotAPod,
        ),
        case(
            "a pod is never egress",
            wire::udp(Ip::new(net.client, net.remote), 1, 2, b""),
            Reason::NotFastKind,
        ),
        Case::from_pod(
            "a forged source is never egress",
            net,
            CLIENT,
            wire::udp(Ip::new(net.plain, net.world), 1, 2, b""),
            Reason::NotOwnSource,
        ),
    ]
}
