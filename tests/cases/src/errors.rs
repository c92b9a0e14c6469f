//! ICMP errors between pods: judged by the packet that they quote.

use coil_packet::Reason;

use crate::{
    Case, Flow, Net,
    wire::{self, Ip, tcp},
    world::{CLIENT, PLAIN},
};

/// Type and code of an error that concerns one flow.
const fn unreachable(net: &Net) -> [u8; 2] {
    if net.is_v4() { [3, 3] } else { [1, 4] }
}

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let sent = wire::tcp(Ip::new(net.plain, net.remote), 40000, 80, tcp::ACK, b"data");
    let open = Flow::fast(6, (net.plain, 40000), (net.remote, 80));
    let error = |header, kind, quoted: &[u8]| wire::error(header, kind, [0; 4], quoted);
    let router = Ip::new(net.router, net.plain);
    let case = |name, packet: Vec<u8>, reason| Case::from_net(name, net, packet, reason);
    let hands_over = |name, kind: [u8; 2], rest: [u8; 4]| {
        case(name, wire::error(router, kind, rest, &sent), Reason::ToPod)
            .given(open)
            .hands_over(PLAIN, &wire::error(router.ttl(63), kind, rest, &sent))
    };
    let too_big = if net.is_v4() { [3, 4] } else { [2, 0] };
    let time = if net.is_v4() { [11, 0] } else { [3, 0] };
    let header = if net.is_v4() { 20 } else { 40 };
    let mut cases = vec![
        hands_over("a router's MTU", too_big, [0, 0, 5, 0]),
        hands_over("time exceeded", time, [0; 4]),
        hands_over("unreachable", unreachable(&net), [0; 4]),
        case("about a flow of the kernel", error(router, too_big, &sent), Reason::KernelFlow)
            .given(Flow::kernel(6, (net.plain, 40000), (net.remote, 80))),
        case("about no flow", error(router, too_big, &sent), Reason::NotFastFlow),
        case("about a packet of another pod", error(Ip::new(net.router, net.gateway), too_big, &sent), {
            // The kernel does what it does with it.
            Reason::NotFastKind
        })
        .given(open),
        case("an error at its last hop", error(router.ttl(1), time, &sent), Reason::LastHop).given(open),
        case("a short quotation", error(router, time, &sent[..header + 7]), Reason::NotFastKind).given(open),
        case("as short as may be", error(router, time, &sent[..header + 8]), Reason::ToPod)
            .given(open)
            .hands_over(PLAIN, &error(router.ttl(63), time, &sent[..header + 8])),
        case(
            "about a fragment",
            error(router, time, &wire::fragment(swap(net), &[0; 24])),
            Reason::NotFastKind,
        ),
        case(
            "a redirect",
            error(router, if net.is_v4() { [5, 1] } else { [137, 0] }, &sent),
            Reason::NotFastKind,
        )
        .given(open),
        about_an_echo(net),
        Case::from_pod(
            "a pod's error to another node's pod",
            net,
            PLAIN,
            error(Ip::new(net.plain, net.remote), unreachable(&net), &turned(net)),
            Reason::ToNode,
        )
        .given(open)
        .sends(&error(Ip::new(net.plain, net.remote).ttl(63), unreachable(&net), &turned(net))),
        Case::from_pod(
            "a pod's error to a pod of this node",
            net,
            PLAIN,
            error(Ip::new(net.plain, net.client), unreachable(&net), &local(net)),
            Reason::ToPod,
        )
        .given(Flow::fast(6, (net.client, 40000), (net.plain, 80)))
        .hands_over(CLIENT, &error(Ip::new(net.plain, net.client).ttl(63), unreachable(&net), &local(net))),
        Case::from_pod(
            "a pod's error about no flow",
            net,
            PLAIN,
            error(Ip::new(net.plain, net.client), unreachable(&net), &local(net)),
            Reason::NotFastFlow,
        ),
    ];
    if net.is_v4() {
        // Some routers leave the quoted header's checksum wrong.
        let mut wrong = sent.clone();
        wrong[10] ^= 1;
        cases.push(
            case("a wrong checksum in the quotation", error(router, time, &wrong), Reason::ToPod)
                .given(open)
                .hands_over(PLAIN, &error(router.ttl(63), time, &wrong)),
        );
        let options = wire::with_options(Ip::new(net.plain, net.remote), &[0; 24]);
        cases.push(
            case("options in the quotation", error(router, time, &options), Reason::NotFastKind).given(open),
        );
    }
    cases
}

const fn swap(net: Net) -> Ip {
    Ip::new(net.plain, net.remote)
}

/// What the pod got from another node.
fn turned(net: Net) -> Vec<u8> {
    wire::tcp(Ip::new(net.remote, net.plain), 80, 40000, tcp::ACK, b"data")
}

/// What the pod got from the client.
fn local(net: Net) -> Vec<u8> {
    wire::tcp(Ip::new(net.client, net.plain), 40000, 80, tcp::ACK, b"data")
}

fn about_an_echo(net: Net) -> Case {
    let icmp = if net.is_v4() { 1 } else { 58 };
    let sent = wire::echo(Ip::new(net.plain, net.remote), false, 9);
    let error = |header| wire::error(header, unreachable(&net), [0; 4], &sent);
    let router = Ip::new(net.router, net.plain);
    Case::from_net("about an echo request", net, error(router), Reason::ToPod)
        .given(Flow::fast(icmp, (net.plain, 9), (net.remote, 0)))
        .hands_over(PLAIN, &error(router.ttl(63)))
}
