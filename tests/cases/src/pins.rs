//! Which gateway a client's flow has: the one it began with, while that is there.

use coil_packet::Reason;

use crate::{
    Case, Flow, Given, Net,
    wire::{self, Ip, tcp},
    world::{AFFINE, AFFINITY, BOTH, CLIENT},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let tunnel = |gateway, inner: &[u8]| wire::fou((net.client, gateway), 0, 5555, inner);
    let packet = |to, flags| wire::tcp(Ip::new(net.client, to), 40000, 443, flags, b"");
    let pin = |to, egress, gateway| Given::Pin {
        protocol: 6,
        client: (net.client, 40000),
        remote: (to, 443),
        egress,
        gateway,
    };
    let idle = |gateway, idle| Given::Affinity { client: net.client, egress: AFFINE, gateway, idle };
    let of_client = |gateway| idle(gateway, 0);
    // Another gateway that would take it.
    let other = net.auto_gateway;
    let (leaving, ready) = (net.leaving_gateway, net.remote_gateway);
    let case = |name, to, flags, gateway| {
        let packet = packet(to, flags);
        Case::from_pod(name, net, CLIENT, packet.clone(), Reason::ToGateway).sends(&tunnel(gateway, &packet))
    };
    let mut cases = vec![
        case("a flow stays with a gateway that is leaving", net.world, tcp::ACK, leaving)
            .given(pin(net.world, 1, leaving)),
        case("a new flow does not", net.world, tcp::SYN, ready).given(pin(net.world, 1, leaving)),
        case("a gateway that is gone keeps nobody", net.world, tcp::ACK, ready)
            .given(pin(net.world, 1, net.remote)),
        case("a client's flow stays, too", net.world_affine, tcp::ACK, leaving)
            .given(pin(net.world_affine, AFFINE, leaving))
            .given(of_client(ready)),
        case("a client's new flow goes where the client is", net.world_affine, tcp::SYN, ready)
            .given(of_client(ready)),
        case("and leaves a gateway that is leaving", net.world_affine, tcp::SYN, ready)
            .given(of_client(leaving)),
        case("a client that was idle for as long as its Egress says", net.world_affine, tcp::SYN, other)
            .given(idle(other, AFFINITY - 2)),
        case("and one that was for longer", net.world_affine, tcp::SYN, ready)
            .given(idle(other, AFFINITY + 1)),
    ];
    cases.extend(originating_only(net));
    cases.extend(originating_only_of_a_pod(net));
    cases
}

/// What came in to the client is answered the way it came.
fn originating_only(net: Net) -> Vec<Case> {
    let remote = net.world_originating;
    let out = |flags| wire::tcp(Ip::new(net.client, remote), 80, 40000, flags, b"");
    let syn = wire::tcp(Ip::new(remote, net.client), 40000, 80, tcp::SYN, b"");
    let flow = Flow::kernel(6, (remote, 40000), (net.client, 80));
    let answer = out(tcp::SYN | tcp::ACK);
    let query = wire::udp(Ip::new(remote, net.client), 40000, 53, b"query");
    let begun = |protocol, port| Given::Pin {
        protocol,
        client: (net.client, port),
        remote: (remote, 40000),
        egress: 1,
        gateway: net.remote_gateway,
    };
    vec![
        Case::to_pod("a connection from the world is noted", net, CLIENT, syn.clone(), Reason::Incoming)
            .leaves(flow.phase(coil_packet::flow::Phase::New)),
        Case::to_pod("so is a datagram", net, CLIENT, query.clone(), Reason::Incoming).leaves(Flow::kernel(
            17,
            (remote, 40000),
            (net.client, 53),
        )),
        Case::to_pod(
            "the middle of a connection is not",
            net,
            CLIENT,
            wire::tcp(Ip::new(remote, net.client), 40000, 80, tcp::ACK, b""),
            Reason::NotMarked,
        ),
        Case::to_pod(
            "a datagram of a flow that the client has begun is not",
            net,
            CLIENT,
            query.clone(),
            Reason::NotMarked,
        )
        .given(begun(17, 53)),
        Case::to_pod("nor is a connection", net, CLIENT, syn.clone(), Reason::NotMarked).given(begun(6, 80)),
        Case::to_pod("one through another port is", net, CLIENT, query.clone(), Reason::Incoming)
            .given(begun(17, 54))
            .leaves(Flow::kernel(17, (remote, 40000), (net.client, 53))),
        Case::from_pod("its answer goes the way it came", net, CLIENT, answer.clone(), Reason::Incoming)
            .given(flow),
        Case::from_pod(
            "what the client begins goes to a gateway",
            net,
            CLIENT,
            answer.clone(),
            Reason::ToGateway,
        )
        .sends(&wire::fou((net.client, net.remote_gateway), 0, 5555, &answer)),
        Case::from_pod(
            "of an Egress that takes everything",
            net,
            CLIENT,
            wire::tcp(Ip::new(net.client, net.world), 80, 40000, tcp::ACK, b""),
            Reason::ToGateway,
        )
        .given(Flow::kernel(6, (net.world, 40000), (net.client, 80)))
        .sends(&wire::fou(
            (net.client, net.remote_gateway),
            0,
            5555,
            &wire::tcp(Ip::new(net.client, net.world), 80, 40000, tcp::ACK, b""),
        )),
    ]
}

/// The same of a pod to which the Egress leads.
fn originating_only_of_a_pod(net: Net) -> Vec<Case> {
    let remote = net.remote_originating;
    let (to, back) = (Ip::new(remote, net.client), Ip::new(net.client, remote));
    let ends = ((remote, 40000), (net.client, 80));
    let answer = |header| wire::tcp(header, 80, 40000, tcp::SYN | tcp::ACK, b"");
    vec![
        Case::to_pod(
            "a datagram from such a pod is noted",
            net,
            CLIENT,
            wire::udp(to, 40000, 53, b"query"),
            Reason::Marked,
        )
        .leaves(Flow::kernel(17, (remote, 40000), (net.client, 53))),
        Case::to_pod(
            "its connection is noted",
            net,
            CLIENT,
            wire::tcp(to, 40000, 80, tcp::SYN, b""),
            Reason::Marked,
        )
        .leaves(Flow::kernel(6, ends.0, ends.1).phase(coil_packet::flow::Phase::New)),
        // Of its answers some may be in fragments, of which the fast path knows nothing.
        Case::from_net(
            "its connection is the kernel's",
            net,
            wire::tcp(to, 40000, 80, tcp::SYN, b""),
            Reason::Incoming,
        ),
        Case::from_net("its echo request, too", net, wire::echo(to, false, 9), Reason::Incoming),
        Case::from_pod(
            "likewise on one node",
            net,
            BOTH,
            wire::tcp(Ip::new(net.both, net.client), 40000, 80, tcp::SYN, b""),
            Reason::Incoming,
        ),
        Case::from_pod("a pod is answered the way it came", net, CLIENT, answer(back), Reason::Incoming)
            .given(Flow::kernel(6, ends.0, ends.1)),
        Case::from_pod("also past the host's stack", net, CLIENT, answer(back), Reason::ToNode)
            .given(Flow::fast(6, ends.0, ends.1))
            .sends(&answer(back.ttl(63))),
        Case::from_pod(
            "what the client begins with a pod goes to a gateway",
            net,
            CLIENT,
            answer(back),
            Reason::ToGateway,
        )
        .sends(&wire::fou((net.client, net.remote_gateway), 0, 5555, &answer(back))),
    ]
}
