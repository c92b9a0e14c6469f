//! Pod to pod.

use coil_packet::{Reason, flow::Phase};

use crate::{
    Case, Flow, Net,
    wire::{self, Ip, tcp},
    world::{CLIENT, PLAIN},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = same_node(net);
    cases.extend(other_node(net));
    cases.extend(not_fast(net));
    cases.extend(malformed(net));
    cases
}

fn same_node(net: Net) -> Vec<Case> {
    let there = Ip::new(net.plain, net.client);
    let back = Ip::new(net.client, net.plain);
    let open = Flow::fast(6, (net.plain, 40000), (net.client, 80));
    let icmp = if net.is_v4() { 1 } else { 58 };
    vec![
        Case::from_pod(
            "a SYN to a pod of this node",
            net,
            PLAIN,
            wire::tcp(there, 40000, 80, tcp::SYN, b""),
            Reason::ToPod,
        )
        .hands_over(CLIENT, &wire::tcp(there.ttl(63), 40000, 80, tcp::SYN, b""))
        .leaves(open.phase(Phase::New)),
        Case::from_pod(
            "a SYN again after the end",
            net,
            PLAIN,
            wire::tcp(there, 40000, 80, tcp::SYN, b""),
            Reason::ToPod,
        )
        .given(open.phase(Phase::Closing))
        .hands_over(CLIENT, &wire::tcp(there.ttl(63), 40000, 80, tcp::SYN, b""))
        .leaves(open.phase(Phase::New)),
        Case::from_pod(
            "larger than the other pod's MTU",
            net,
            PLAIN,
            wire::tcp(there, 40000, 80, tcp::ACK, &[7; 1400]),
            Reason::ForwardTooBig,
        )
        .given(open),
        Case::from_pod(
            "data of a fast flow",
            net,
            PLAIN,
            wire::tcp(there, 40000, 80, tcp::ACK, b"data"),
            Reason::ToPod,
        )
        .given(open)
        .hands_over(CLIENT, &wire::tcp(there.ttl(63), 40000, 80, tcp::ACK, b"data")),
        Case::from_pod(
            "the way back of a fast flow",
            net,
            CLIENT,
            wire::tcp(back.tos(0xb9), 80, 40000, tcp::SYN | tcp::ACK, b""),
            Reason::ToPod,
        )
        .given(open)
        .hands_over(PLAIN, &wire::tcp(back.ttl(63).tos(0xb9), 80, 40000, tcp::SYN | tcp::ACK, b"")),
        Case::from_pod(
            "an echo request to a pod of this node",
            net,
            PLAIN,
            wire::echo(there, false, 9),
            Reason::ToPod,
        )
        .hands_over(CLIENT, &wire::echo(there.ttl(63), false, 9)),
        Case::from_pod("its reply", net, CLIENT, wire::echo(back, true, 9), Reason::ToPod)
            .given(Flow::fast(icmp, (net.plain, 9), (net.client, 0)))
            .hands_over(PLAIN, &wire::echo(back.ttl(63), true, 9)),
    ]
}

fn other_node(net: Net) -> Vec<Case> {
    let out = Ip::new(net.plain, net.remote);
    let back = Ip::new(net.remote, net.plain);
    let open = Flow::fast(6, (net.plain, 40000), (net.remote, 80));
    let icmp = if net.is_v4() { 1 } else { 58 };
    let full = vec![7; usize::from(1500 - net.overhead()) - 12 + 1];
    vec![
        Case::from_pod(
            "a SYN to another node's pod",
            net,
            PLAIN,
            wire::tcp(out, 40000, 80, tcp::SYN, b""),
            Reason::ToNode,
        )
        .sends(&wire::tcp(out.ttl(63), 40000, 80, tcp::SYN, b"")),
        Case::from_pod(
            "a FIN to another node's pod",
            net,
            PLAIN,
            wire::tcp(out, 40000, 80, tcp::FIN | tcp::ACK, b""),
            Reason::ToNode,
        )
        .given(open)
        .sends(&wire::tcp(out.ttl(63), 40000, 80, tcp::FIN | tcp::ACK, b""))
        .leaves(open.phase(Phase::Closing)),
        Case::from_pod(
            "an echo request to another node's pod",
            net,
            PLAIN,
            wire::echo(out, false, 9),
            Reason::ToNode,
        )
        .sends(&wire::echo(out.ttl(63), false, 9)),
        Case::from_pod(
            "larger than the uplink's MTU",
            net,
            PLAIN,
            wire::tcp(out, 40000, 80, tcp::ACK, &full),
            Reason::ForwardTooBig,
        )
        .given(open),
        Case::from_pod(
            "a pool address without a route",
            net,
            PLAIN,
            wire::tcp(Ip::new(net.plain, net.lost), 1, 2, tcp::SYN, b""),
            Reason::NotRouted,
        ),
        Case::from_net(
            "a SYN whose answer leaves by a link that is no uplink",
            net,
            wire::tcp(Ip::new(net.beside, net.plain), 50000, 80, tcp::SYN, b""),
            Reason::NotRouted,
        ),
        Case::from_pod(
            "a SYN to a pod behind a link that is no uplink",
            net,
            PLAIN,
            wire::tcp(Ip::new(net.plain, net.beside), 50000, 80, tcp::SYN, b""),
            Reason::NotRouted,
        ),
        Case::from_net(
            "a SYN from another node's pod",
            net,
            wire::tcp(back, 50000, 80, tcp::SYN, b""),
            Reason::ToPod,
        )
        .hands_over(PLAIN, &wire::tcp(back.ttl(63), 50000, 80, tcp::SYN, b"")),
        Case::from_net(
            "data of a fast flow from another node",
            net,
            wire::tcp(back, 80, 40000, tcp::ACK, b"odd"),
            Reason::ToPod,
        )
        .given(open)
        .hands_over(PLAIN, &wire::tcp(back.ttl(63), 80, 40000, tcp::ACK, b"odd")),
        Case::from_net("an echo reply from another node", net, wire::echo(back, true, 9), Reason::ToPod)
            .given(Flow::fast(icmp, (net.plain, 9), (net.remote, 0)))
            .hands_over(PLAIN, &wire::echo(back.ttl(63), true, 9)),
        Case::from_net(
            "no pod of this node",
            net,
            wire::tcp(Ip::new(net.remote, net.lost), 1, 2, tcp::SYN, b""),
            Reason::NotAPod,
        ),
        Case::from_net(
            "a SYN from the world",
            net,
            wire::tcp(Ip::new(net.world, net.plain), 1, 2, tcp::SYN, b""),
            Reason::NotFastFlow,
        ),
        Case::from_net(
            "a SYN with the address of a pod of this node",
            net,
            wire::tcp(Ip::new(net.client, net.plain), 1, 2, tcp::SYN, b""),
            Reason::NotRouted,
        ),
        Case::from_net(
            "a SYN larger than the pod's MTU",
            net,
            wire::tcp(Ip::new(net.remote, net.client), 1, 2, tcp::SYN, &[0; 1400]),
            Reason::ForwardTooBig,
        ),
    ]
}

fn not_fast(net: Net) -> Vec<Case> {
    let there = Ip::new(net.plain, net.client);
    let case = |name, packet, reason| Case::from_pod(name, net, PLAIN, packet, reason);
    vec![
        case("data without a flow", wire::tcp(there, 40000, 80, tcp::ACK, b"data"), Reason::NotFastFlow),
        case(
            "a SYN-ACK without a flow",
            wire::tcp(there, 80, 40000, tcp::SYN | tcp::ACK, b""),
            Reason::NotFastFlow,
        ),
        case("an echo reply without a flow", wire::echo(there, true, 9), Reason::NotFastFlow),
        case("UDP", wire::udp(there, 40000, 53, b"query"), Reason::NotFastKind),
        case("a fragment", wire::fragment(there, &[0; 24]), Reason::NotFastKind),
        case("with options", wire::with_options(there, &[0; 24]), Reason::NotFastKind),
        case("another protocol", wire::ip(there, 132, &[0; 24]), Reason::NotFastKind),
        case("the last hop", wire::tcp(there.ttl(1), 40000, 80, tcp::SYN, b""), Reason::LastHop),
        case(
            "a service or the world",
            wire::tcp(Ip::new(net.plain, net.world), 1, 80, tcp::SYN, b""),
            Reason::NotAPod,
        ),
        case(
            "another pod's address",
            wire::tcp(Ip::new(net.client, net.remote), 1, 80, tcp::SYN, b""),
            Reason::NotOwnSource,
        ),
        case(
            "nobody's address",
            wire::tcp(Ip::new(net.world, net.client), 1, 80, tcp::SYN, b""),
            Reason::NotOwnSource,
        ),
    ]
}

fn malformed(net: Net) -> Vec<Case> {
    let whole = wire::tcp(Ip::new(net.plain, net.client), 40000, 80, tcp::SYN, b"");
    let header = if net.is_v4() { 20 } else { 40 };
    let case = |name, packet, reason| Case::from_pod(name, net, PLAIN, packet, reason);
    let mut cases = vec![
        case("a cut header", whole[..header - 1].to_vec(), Reason::Malformed),
        case("shorter than it says", whole[..whole.len() - 1].to_vec(), Reason::Malformed),
        case(
            "TCP cut short",
            wire::ip(Ip::new(net.plain, net.client), 6, &whole[header..header + 12]),
            Reason::NotFastKind,
        ),
    ];
    let mut short_offset = whole.clone();
    short_offset[header + 12] = 0x40;
    cases.push(case("a TCP header of 16 bytes", short_offset, Reason::NotFastKind));
    let mut version = whole.clone();
    version[0] = version[0] & 0x0f | 0x50;
    // The EtherType is what it was.
    let mut frame = Case::from_pod("IP version 5", net, PLAIN, whole.clone(), Reason::Malformed);
    frame.frame[14..].copy_from_slice(&version);
    cases.push(frame);
    if net.is_v4() {
        let mut sum = whole;
        sum[10] ^= 1;
        cases.push(case("a wrong header checksum", sum, Reason::Malformed));
    }
    cases
}
