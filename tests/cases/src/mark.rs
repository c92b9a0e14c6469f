//! What the kernel sends: marked as its own.

use coil_packet::{Reason, flow::Phase};

use crate::{
    Case, Flow, Net,
    wire::{self, Ip, tcp},
    world::{CLIENT, PLAIN},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = to_pod(net);
    cases.extend(to_net(net));
    cases.extend(against_fast(net));
    cases.extend(datagrams(net));
    cases
}

const fn icmp(net: &Net) -> u8 {
    if net.is_v4() { 1 } else { 58 }
}

fn to_pod(net: Net) -> Vec<Case> {
    let there = Ip::new(net.remote, net.plain);
    let flow = Flow::kernel(6, (net.remote, 40000), (net.plain, 80));
    let case = |name, packet: Vec<u8>, reason| Case::to_pod(name, net, PLAIN, packet, reason);
    vec![
        case("a SYN of the kernel", wire::tcp(there, 40000, 80, tcp::SYN, b""), Reason::Marked)
            .leaves(flow.phase(Phase::New)),
        case("data of the kernel", wire::tcp(there, 40000, 80, tcp::ACK, b"data"), Reason::Marked)
            .leaves(flow.phase(Phase::Open)),
        case("the handshake's end", wire::tcp(there, 40000, 80, tcp::ACK, b""), Reason::Marked)
            .given(flow.phase(Phase::New))
            .leaves(flow.phase(Phase::Open)),
        case("a FIN of the kernel", wire::tcp(there, 40000, 80, tcp::FIN | tcp::ACK, b""), Reason::Marked)
            .given(flow)
            .leaves(flow.phase(Phase::Closing)),
        case("data after a FIN", wire::tcp(there, 40000, 80, tcp::ACK, b"data"), Reason::Marked)
            .given(flow.phase(Phase::Closing))
            .leaves(flow.phase(Phase::Closing)),
        case("an echo request of the kernel", wire::echo(there, false, 9), Reason::Marked)
            .leaves(Flow::kernel(icmp(&net), (net.remote, 9), (net.plain, 0))),
        case(
            "from another pod of this node",
            wire::tcp(Ip::new(net.client, net.plain), 40000, 80, tcp::SYN, b""),
            Reason::Marked,
        )
        .leaves(Flow::kernel(6, (net.client, 40000), (net.plain, 80)).phase(Phase::New)),
        case(
            "from the world to a pod",
            wire::tcp(Ip::new(net.world, net.plain), 40000, 80, tcp::SYN, b""),
            Reason::NotMarked,
        ),
        case(
            "to another address behind the veth",
            wire::tcp(Ip::new(net.remote, net.client), 40000, 80, tcp::SYN, b""),
            Reason::NotMarked,
        ),
        case("UDP of the kernel", wire::udp(there, 40000, 53, b"query"), Reason::NotFastKind),
        case("a fragment of the kernel", wire::fragment(there, &[0; 24]), Reason::NotFastKind),
        case("options of the kernel", wire::with_options(there, &[0; 24]), Reason::NotFastKind),
        case("nonsense of the kernel", wire::ip(there, 6, &[0; 12]), Reason::NotFastKind),
        case("a cut header of the kernel", wire::tcp(there, 1, 2, 2, b"")[..19].to_vec(), Reason::Malformed),
    ]
}

fn to_net(net: Net) -> Vec<Case> {
    let out = Ip::new(net.plain, net.remote);
    let flow = Flow::kernel(6, (net.plain, 40000), (net.remote, 80));
    let case = |name, packet: Vec<u8>, reason| Case::to_net(name, net, packet, reason);
    let as_gateway = Ip::new(net.gateway, net.remote);
    let of_gateway = |port| wire::tcp(as_gateway, port, 80, tcp::SYN, b"");
    let echo = |id| wire::echo(as_gateway, false, id);
    vec![
        case("a SYN to another node", wire::tcp(out, 40000, 80, tcp::SYN, b""), Reason::Marked)
            .leaves(flow.phase(Phase::New)),
        case("a RST to another node", wire::tcp(out, 40000, 80, tcp::RST, b""), Reason::Marked)
            .given(flow)
            .leaves(flow.phase(Phase::Closing)),
        case("a SYN to the world", wire::tcp(Ip::new(net.plain, net.world), 1, 2, 2, b""), Reason::NotMarked),
        case(
            "the node's own connection",
            wire::tcp(Ip::new(net.router, net.remote), 1, 2, tcp::SYN, b""),
            Reason::NotMarked,
        ),
        case("UDP to another node", wire::udp(out, 40000, 53, b"query"), Reason::NotFastKind),
        // In a client's name, and in its own.
        case("a gateway's SYN for a client", of_gateway(50001), Reason::NotMarked),
        case("a gateway's echo request for a client", echo(50001), Reason::NotMarked),
        case("a gateway's own SYN", of_gateway(61000), Reason::Marked)
            .leaves(Flow::kernel(6, (net.gateway, 61000), (net.remote, 80)).phase(Phase::New)),
        case("a gateway's own echo request", echo(61000), Reason::Marked),
    ]
}

/// The kernel has the last word, but for a new connection that runs into a live one.
fn against_fast(net: Net) -> Vec<Case> {
    let out = Ip::new(net.plain, net.remote);
    let ends = ((net.plain, 40000), (net.remote, 80));
    let fast = Flow::fast(6, ends.0, ends.1);
    let kernel = Flow::kernel(6, ends.0, ends.1);
    let case = |name, flags, reason| Case::to_net(name, net, wire::tcp(out, 40000, 80, flags, b""), reason);
    let from_pod = |name, packet: Vec<u8>, reason| Case::from_pod(name, net, PLAIN, packet, reason);
    let syn = wire::tcp(out, 40000, 80, tcp::SYN, b"");
    let icmp = icmp(&net);
    vec![
        case("data of a flow that was fast", tcp::ACK, Reason::Marked).given(fast).leaves(kernel),
        case("a SYN where a fast flow has ended", tcp::SYN, Reason::Marked)
            .given(fast.phase(Phase::Closing))
            .leaves(kernel.phase(Phase::New)),
        case("a SYN into a live fast flow", tcp::SYN, Reason::FlowClash).given(fast).leaves(fast),
        Case::to_pod(
            "a SYN into a live fast flow on this node",
            net,
            CLIENT,
            wire::tcp(Ip::new(net.plain, net.client), 40000, 80, tcp::SYN, b""),
            Reason::FlowClash,
        )
        .given(Flow::fast(6, (net.plain, 40000), (net.client, 80))),
        Case::to_net("an echo request that was fast", net, wire::echo(out, false, 9), Reason::Marked)
            .given(Flow::fast(icmp, (net.plain, 9), (net.remote, 0)))
            .leaves(Flow::kernel(icmp, (net.plain, 9), (net.remote, 0))),
        from_pod("a SYN of a flow of the kernel", syn.clone(), Reason::KernelFlow)
            .given(kernel)
            .leaves(kernel),
        from_pod("a SYN of an ended flow of the kernel", syn, Reason::KernelFlow)
            .given(kernel.phase(Phase::Closing))
            .leaves(kernel.phase(Phase::New)),
        from_pod(
            "a FIN of a flow of the kernel",
            wire::tcp(out, 40000, 80, tcp::FIN, b""),
            Reason::KernelFlow,
        )
        .given(kernel)
        .leaves(kernel.phase(Phase::Closing)),
        Case::from_net(
            "a reply of a flow of the kernel",
            net,
            wire::tcp(Ip::new(net.remote, net.plain), 80, 40000, tcp::SYN | tcp::ACK, b""),
            Reason::KernelFlow,
        )
        .given(kernel.phase(Phase::New))
        .leaves(kernel.phase(Phase::New)),
        Case::from_net(
            "a SYN from another node of a flow of the kernel",
            net,
            wire::tcp(Ip::new(net.remote, net.plain), 80, 40000, tcp::SYN, b""),
            Reason::KernelFlow,
        )
        .given(kernel),
    ]
}

/// With `--fast-udp`.
fn datagrams(net: Net) -> Vec<Case> {
    let (out, back) = (Ip::new(net.plain, net.remote), Ip::new(net.remote, net.plain));
    let ends = ((net.plain, 40000), (net.remote, 53));
    let (fast, kernel) = (Flow::fast(17, ends.0, ends.1), Flow::kernel(17, ends.0, ends.1));
    let query = |header| wire::udp(header, 40000, 53, b"query");
    let answer = |header| wire::udp(header, 53, 40000, b"answer");
    let cases = vec![
        Case::from_pod("a datagram to another node", net, PLAIN, query(out), Reason::ToNode)
            .sends(&query(out.ttl(63)))
            .leaves(fast),
        Case::from_pod("a datagram of the kernel's flow", net, PLAIN, query(out), Reason::KernelFlow)
            .given(kernel),
        Case::from_net("an answer from another node", net, answer(back), Reason::ToPod)
            .given(fast)
            .hands_over(PLAIN, &answer(back.ttl(63))),
        Case::from_net("an answer to a service's client", net, answer(back), Reason::KernelFlow)
            .given(kernel),
        Case::to_net("a translated datagram", net, query(out), Reason::Marked).leaves(kernel),
        Case::to_pod("a datagram to a service of this node", net, PLAIN, answer(back), Reason::Marked)
            .given(fast)
            .leaves(kernel),
        Case::from_pod(
            "a datagram to a pod of this node",
            net,
            PLAIN,
            wire::udp(Ip::new(net.plain, net.client), 1, 2, b""),
            Reason::ToPod,
        )
        .hands_over(CLIENT, &wire::udp(Ip::new(net.plain, net.client).ttl(63), 1, 2, b"")),
        Case::from_pod(
            "a datagram larger than the pod's MTU",
            net,
            PLAIN,
            wire::udp(Ip::new(net.plain, net.client), 1, 2, &[0; 1400]),
            Reason::ForwardTooBig,
        ),
        Case::from_pod(
            "a fragment of a datagram",
            net,
            PLAIN,
            wire::fragment(out, &[0; 24]),
            Reason::NotFastKind,
        ),
    ];
    cases.into_iter().map(Case::with_fast_udp).collect()
}
