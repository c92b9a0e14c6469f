//! Connections that came in to a client whose Egress is originating only: what it says of their packets, and their
//! fragments.

use std::net::IpAddr;

use coil_packet::{Reason, flow::Phase};

use crate::{
    Case, Flow, Given, Net,
    gateway::icmp,
    wire::{self, Ip, tcp},
    world::CLIENT,
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = errors(net);
    cases.extend(begun_in_fragments(net));
    cases.extend(answered_in_fragments(net));
    cases
}

const ID: u16 = 0x4321;

fn datagram(header: Ip, sport: u16, dport: u16) -> [Vec<u8>; 2] {
    wire::fragments(header, 17, ID, &wire::udp_datagram(header, sport, dport, true, &[7; 592]), 400)
}

/// An error of the client goes where the answers of that flow go.
fn errors(net: Net) -> Vec<Case> {
    let unreachable = if net.is_v4() { [3, 3] } else { [1, 4] };
    let (outside, pod) = (net.world_originating, net.remote_originating);
    let error = |to: IpAddr, quoted: &[u8]| wire::error(Ip::new(net.client, to), unreachable, [0; 4], quoted);
    let came = |from| Ip::new(from, net.client).ttl(50);
    let query = wire::udp(came(outside), 4000, 53, b"query");
    let segment = wire::tcp(came(outside), 4000, 80, tcp::ACK, b"data");
    let flow = |protocol, from, port| Flow::kernel(protocol, (from, 4000), (net.client, port));
    let case = |name, to, quoted: &[u8], reason| Case::from_pod(name, net, CLIENT, error(to, quoted), reason);
    let [first, _] = datagram(came(outside), 4000, 53);
    let echo = wire::echo(came(outside), false, 9);
    let fast = wire::udp(came(pod), 4000, 53, b"query");
    let segment_of_pod = wire::tcp(came(pod), 4000, 80, tcp::ACK, b"data");
    vec![
        case("an error about a datagram that came in", outside, &query, Reason::Incoming)
            .given(flow(17, outside, 53))
            .leaves(flow(17, outside, 53)),
        // It neither opens nor closes what it is about.
        case("an error about a connection that came in", outside, &segment, Reason::Incoming)
            .given(flow(6, outside, 80).phase(Phase::Closing))
            .leaves(flow(6, outside, 80).phase(Phase::Closing)),
        case("an error about a first fragment that came in", outside, &first, Reason::Incoming)
            .given(flow(17, outside, 53)),
        case("an error about an echo request that came in", outside, &echo, Reason::Incoming)
            .given(Flow::kernel(icmp(&net), (outside, 9), (net.client, 0))),
        case("an error about a datagram of a flow of the client's own", outside, &query, Reason::ToGateway)
            .sends(&wire::fou((net.client, net.remote_gateway), 0, 5555, &error(outside, &query))),
        case("an error about a fast connection that came in", pod, &segment_of_pod, Reason::ToNode)
            .given(Flow::fast(6, (pod, 4000), (net.client, 80)))
            .sends(&wire::error(Ip::new(net.client, pod).ttl(63), unreachable, [0; 4], &segment_of_pod)),
        case(
            "an error about another's packet from there",
            pod,
            &wire::udp(Ip::new(pod, net.plain), 4000, 53, b""),
            {
                // As any packet of the client to there.
                Reason::ToGateway
            },
        )
        .given(Flow::fast(17, (pod, 4000), (net.plain, 53)))
        .sends(&wire::fou(
            (net.client, net.remote_gateway),
            0,
            5555,
            &error(pod, &wire::udp(Ip::new(pod, net.plain), 4000, 53, b"")),
        )),
        case("an error about a fast datagram that came in", pod, &fast, Reason::ToNode)
            .given(Flow::fast(17, (pod, 4000), (net.client, 53)))
            .sends(&wire::error(Ip::new(net.client, pod).ttl(63), unreachable, [0; 4], &fast)),
    ]
}

/// The first fragment of what begins a flow has all that it takes to remember it.
fn begun_in_fragments(net: Net) -> Vec<Case> {
    let case = |name, packet: Vec<u8>, reason| Case::to_pod(name, net, CLIENT, packet, reason);
    let [first, later] = datagram(Ip::new(net.world, net.client), 4000, 53);
    let [of_pod, _] = datagram(Ip::new(net.remote, net.client), 4000, 53);
    let ping = Ip::new(net.world, net.client);
    let echo = wire::echo_with(ping, false, 9, &[7; 592]);
    let header = if net.is_v4() { 20 } else { 40 };
    let [request, _] = wire::fragments(ping, icmp(&net), ID, &echo[header..], 400);
    let begun = Given::Pin {
        protocol: 17,
        client: (net.client, 53),
        remote: (net.world, 4000),
        egress: 1,
        gateway: net.remote_gateway,
    };
    vec![
        case("a first fragment comes in", first.clone(), Reason::Incoming).leaves(Flow::kernel(
            17,
            (net.world, 4000),
            (net.client, 53),
        )),
        case("a first fragment of an echo request comes in", request, Reason::Incoming).leaves(Flow::kernel(
            icmp(&net),
            (net.world, 9),
            (net.client, 0),
        )),
        case("a pod's first fragment comes in", of_pod, Reason::Marked).leaves(Flow::kernel(
            17,
            (net.remote, 4000),
            (net.client, 53),
        )),
        case("a later fragment comes in", later, Reason::NotMarked),
        case("a first fragment of a flow that the client has begun", first, Reason::NotMarked).given(begun),
    ]
}

/// What is answered in fragments goes where it came from.
fn answered_in_fragments(net: Net) -> Vec<Case> {
    let outside = net.world_originating;
    let [first, later] = datagram(Ip::new(net.client, outside), 53, 4000);
    let flow = Flow::kernel(17, (outside, 4000), (net.client, 53));
    let known = Given::Frag { protocol: 17, ends: (net.client, outside), id: ID.into(), ports: (53, 4000) };
    let case =
        |name, packet: Vec<u8>| Case::from_pod(name, net, CLIENT, packet, Reason::Incoming).given(flow);
    vec![case("an answer's first fragment", first), case("an answer's later fragment", later).given(known)]
}
