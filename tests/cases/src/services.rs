//! Services behind a gateway: the node's stack turns a gateway's packets to pods and nodes, and what these answer back.

use std::net::IpAddr;

use coil_packet::{Reason, flow::Phase};

use crate::{
    Case, Flow, Net,
    gateway::nat,
    wire::{self, Ip, tcp},
    world::{CLIENT, GATEWAY},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = out(net);
    cases.extend(back(net));
    cases.extend(turned(net));
    cases
}

/// To a Service's address: not past the stack.
fn out(net: Net) -> Vec<Case> {
    let from = |client| Ip::new(client, net.cluster_ip);
    let syn = |ip| wire::tcp(ip, 40000, 443, tcp::SYN, b"");
    let data = |ip, port| wire::tcp(ip, port, 443, tcp::ACK, b"data");
    let query = |ip| wire::udp(ip, 40000, 53, b"query");
    let as_gateway = from(net.gateway);
    let lease = nat(&net, 6, 50001, (net.client, 40000), (net.cluster_ip, 443), 1);
    let pod = |name, packet: Vec<u8>| Case::from_pod(name, net, CLIENT, packet, Reason::OutByStack);
    let fou = |inner: &[u8]| wire::fou((net.remote_client, net.gateway), 0, 5555, inner);
    let tunnel = fou(&syn(from(net.remote_client)));
    let to = |from, to| syn(Ip::new(from, to));
    let inside = |to| fou(&syn(Ip::new(net.remote_client, to)));
    vec![
        pod("TCP to a Service", syn(from(net.client))).hands_in(GATEWAY, &syn(as_gateway)),
        pod("UDP to a Service", query(from(net.client))).hands_in(GATEWAY, &query(as_gateway)),
        pod("a known connection to a Service", data(from(net.client), 40000))
            .given(lease)
            .hands_in(GATEWAY, &data(as_gateway, 50001)),
        Case::from_net("TCP to a Service out of the tunnel", net, tunnel, Reason::OutByStack)
            .hands_in(GATEWAY, &syn(as_gateway)),
        // Who may answer for a Service: connection tracking tells what goes there directly from what was turned there.
        Case::from_net("TCP to a pod out of the tunnel", net, inside(net.remote), Reason::OutByStack)
            .hands_in(GATEWAY, &to(net.gateway, net.remote)),
        Case::from_net("TCP to a node out of the tunnel", net, inside(net.node), Reason::OutByStack)
            .hands_in(GATEWAY, &to(net.gateway, net.node)),
        Case::from_net("TCP to a private range out of the tunnel", net, inside(net.private), Reason::Out)
            .sends(&syn(Ip::new(net.gateway, net.private).ttl(63))),
    ]
}

/// From a Service's address, where nobody turned the packets: what the stack saw go, it has to see come.
fn back(net: Net) -> Vec<Case> {
    let reply = wire::tcp(Ip::new(net.cluster_ip, net.gateway), 443, 50001, tcp::ACK, b"data");
    let at = |client| wire::tcp(Ip::new(net.cluster_ip, client).ttl(63), 443, 40000, tcp::ACK, b"data");
    let lease = |client| nat(&net, 6, 50001, (client, 40000), (net.cluster_ip, 443), 1);
    let fou = wire::fou((net.gateway, net.remote_client), 0, 5555, &at(net.remote_client));
    vec![
        Case::from_net("a Service's reply", net, &reply, Reason::NotFastFlow).given(lease(net.client)),
        Case::to_pod("a Service's reply by the kernel", net, GATEWAY, &reply, Reason::ReplyToPod)
            .given(lease(net.client))
            .hands_over(CLIENT, &at(net.client)),
        Case::to_pod(
            "a Service's reply by the kernel, to another node",
            net,
            GATEWAY,
            &reply,
            Reason::ReplyToNode,
        )
        .given(lease(net.remote_client))
        .sends(&fou),
    ]
}

/// From a pod or a node that a Service's packets were turned to: connection tracking alone knows the address that the
/// client has sent to.
fn turned(net: Net) -> Vec<Case> {
    let reply = |from: IpAddr, flags| wire::tcp(Ip::new(from, net.gateway), 443, 50001, flags, b"");
    let datagram = wire::udp(Ip::new(net.remote, net.gateway), 53, 50001, b"answer");
    let back = Ip::new(net.remote, net.gateway);
    let [first, later] =
        wire::fragments(back, 17, 0x4321, &wire::udp_datagram(back, 53, 50001, true, &[7; 592]), 400);
    let case = |name, packet: Vec<u8>| Case::from_net(name, net, packet, Reason::NotFastFlow);
    let lost = |name, packet: Vec<u8>| Case::to_pod(name, net, GATEWAY, packet, Reason::NatUnknown);
    // Of the Service's address, and so of none of the pod's or the node's.
    let lease = nat(&net, 6, 50001, (net.client, 40000), (net.cluster_ip, 443), 1);
    let own = nat(&net, 6, 50001, (net.client, 40000), (net.remote, 443), 1);
    let at = |from| wire::tcp(Ip::new(from, net.client).ttl(63), 443, 40000, tcp::ACK, b"");
    let unreachable = if net.is_v4() { [3, 1] } else { [1, 0] };
    let sent = |from, port, to| wire::tcp(Ip::new(from, to).ttl(60), port, 443, tcp::ACK, b"data");
    let error = |from, to| {
        wire::error(Ip::new(from, net.gateway), unreachable, [0; 4], &sent(net.gateway, 50001, to))
    };
    let of_world = nat(&net, 6, 50001, (net.client, 40000), (net.world_local, 443), 1);
    let error_at = wire::error(
        Ip::new(net.node, net.client).ttl(63),
        unreachable,
        [0; 4],
        &sent(net.client, 40000, net.world_local),
    );
    let of_private = nat(&net, 6, 50001, (net.client, 40000), (net.private, 443), 1);
    vec![
        case("a reply of a Service's pod", reply(net.remote, tcp::SYN | tcp::ACK)).given(lease),
        case("a reply of a Service's node", reply(net.node, tcp::ACK)).given(lease),
        case("UDP of a Service's pod", datagram.clone()),
        case("a first fragment of a Service's pod", first),
        Case::from_net("a later fragment of a Service's pod", net, later, Reason::FragmentEarly),
        case("a pod that opens a connection to a port for lending", reply(net.remote, tcp::SYN)),
        // Connection tracking may know it for another client's, of a Service.
        case("a pod's own lease", reply(net.remote, tcp::ACK)).given(own),
        Case::to_pod(
            "a pod's own lease by the kernel",
            net,
            GATEWAY,
            reply(net.remote, tcp::ACK),
            Reason::ReplyToPod,
        )
        .given(own)
        .hands_over(CLIENT, &at(net.remote)),
        // About what the node's stack saw go, and about what it did not, whoever says so.
        case("an error about a pod's own lease", error(net.router, net.remote)).given(own),
        Case::from_net(
            "a node's error about a flow to the world",
            net,
            error(net.node, net.world_local),
            Reason::ReplyToPod,
        )
        .given(of_world)
        .hands_over(CLIENT, &error_at),
        case("a reply of a private range that answers for a Service", reply(net.private, tcp::ACK)),
        Case::from_net("a private range's own lease", net, reply(net.private, tcp::ACK), Reason::ReplyToPod)
            .given(of_private)
            .hands_over(CLIENT, &at(net.private)),
        lost("what nobody turned back, of a pod", reply(net.remote, tcp::ACK)).given(lease),
        lost("what nobody turned back, of a node", reply(net.node, tcp::ACK)).given(lease),
        lost("UDP that nobody turned back", datagram),
        lost("a pod that opens a connection to such a port, by the kernel", reply(net.remote, tcp::SYN))
            .given(Flow::kernel(6, (net.remote, 443), (net.gateway, 50001)).phase(Phase::New)),
    ]
}
