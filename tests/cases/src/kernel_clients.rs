//! Whose FOU gets to clients with tunnels, whose own kernel would take it from anybody: from the network, from pods of their
//! node, and by way of the host's stack, where connection tracking may have put a Service in a gateway's place.

use std::net::IpAddr;

use coil_packet::Reason;

use crate::{
    Case, Net,
    wire::{self, Ip, tcp},
    world::{BOTH, GATEWAY, KERNEL_CLIENT, PLAIN},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = by_stack(net);
    cases.extend(from_pods(net));
    cases.extend(both(net));
    cases.extend(from_network(net));
    cases
}

fn fou(from: IpAddr, to: IpAddr, world: IpAddr) -> Vec<u8> {
    wire::fou((from, to), 0, 5555, &wire::tcp(Ip::new(world, to), 443, 40000, tcp::ACK, b"data"))
}

/// In fragments, or behind options: what the programs do not see as FOU.
fn hidden(net: &Net, from: IpAddr, to: IpAddr) -> [Vec<u8>; 2] {
    let packet = fou(from, to, net.world);
    let udp = packet.get(if net.is_v4() { 20 } else { 40 }..).unwrap_or_default();
    [wire::fragment(Ip::new(from, to), udp), wire::with_options(Ip::new(from, to), udp)]
}

fn by_stack(net: Net) -> Vec<Case> {
    let to = net.kernel_client;
    let case = |name, from, reason| Case::to_pod(name, net, KERNEL_CLIENT, fou(from, to, net.world), reason);
    let [fragment, options] = hidden(&net, net.remote_gateway, to);
    vec![
        case("a gateway's FOU to a client's kernel, by the kernel", net.remote_gateway, Reason::NotFastKind),
        case("of a gateway of this node", net.gateway, Reason::NotFastKind),
        case("of a gateway that connection tracking shows as its Service", net.service, Reason::NotMarked),
        case("of a gateway that is leaving", net.leaving_gateway, Reason::NotFastKind),
        case("of a pod of this node, by a service", net.plain, Reason::FouNotGateway),
        case("of another node's pod", net.remote, Reason::FouNotGateway),
        case("of another Egress's gateway", net.strange_gateway, Reason::FouNotGateway),
        case("of the world", net.world, Reason::FouNotGateway),
        case("of the node", net.router, Reason::FouNotGateway),
        Case::to_pod("in fragments", net, KERNEL_CLIENT, fragment, Reason::FouHidden),
        Case::to_pod("behind options", net, KERNEL_CLIENT, options, Reason::FouHidden),
        Case::to_pod(
            "another port of a client with tunnels",
            net,
            KERNEL_CLIENT,
            wire::udp(Ip::new(net.world, to), 5555, 5556, b"answer"),
            Reason::NotMarked,
        ),
    ]
}

fn from_pods(net: Net) -> Vec<Case> {
    let to = net.kernel_client;
    vec![
        // Straight into the pod, where UDP may be fast.
        Case::from_pod(
            "FOU of a gateway that is none of the client's",
            net,
            BOTH,
            fou(net.both, to, net.world),
            Reason::FouNotGateway,
        )
        .with_fast_udp(),
        Case::from_pod(
            "FOU of a gateway of the client's",
            net,
            GATEWAY,
            fou(net.gateway, to, net.world),
            Reason::NotFastKind,
        ),
        Case::from_pod(
            "FOU of a client with tunnels to itself",
            net,
            KERNEL_CLIENT,
            fou(to, to, net.world),
            Reason::FouNotGateway,
        ),
        Case::from_pod(
            "FOU of a pod to the Service of gateways",
            net,
            PLAIN,
            fou(net.plain, net.service, net.world),
            Reason::FouForged,
        ),
        Case::from_pod(
            "FOU of a client with tunnels to the Service of its gateways",
            net,
            KERNEL_CLIENT,
            fou(to, net.service, net.world),
            Reason::NotAPod,
        ),
    ]
}

/// A gateway whose own kernel is another's client.
fn both(net: Net) -> Vec<Case> {
    let syn = wire::tcp(Ip::new(net.remote_client, net.world), 40000, 443, tcp::SYN, b"");
    let of_client = wire::fou((net.remote_client, net.both), 0, 5555, &syn);
    let out = wire::tcp(Ip::new(net.both, net.world).ttl(63), 40000, 443, tcp::SYN, b"");
    let of_gateway = fou(net.remote_gateway, net.both, net.world);
    let strange = fou(net.remote, net.both, net.world);
    vec![
        Case::from_net("a client's FOU to a gateway with tunnels", net, &of_client, Reason::Out).sends(&out),
        Case::from_net("what it gets of its own gateway", net, &of_gateway, Reason::NotFastKind),
        Case::to_pod(
            "what it gets of its own gateway by the kernel",
            net,
            BOTH,
            &of_gateway,
            Reason::NotFastKind,
        ),
        Case::from_net("what it gets of others", net, &strange, Reason::FouInner),
        Case::to_pod("what it gets of others by the kernel", net, BOTH, &strange, Reason::FouInner),
    ]
}

/// Also where everything passes the host's stack: behind that are fragments no more, and sources may be others.
fn from_network(net: Net) -> Vec<Case> {
    let to = net.kernel_client;
    let [fragment, options] = hidden(&net, net.remote_gateway, to);
    let case = |name, packet: Vec<u8>, reason| Case::from_net(name, net, packet, reason).with_host_stack();
    vec![
        case("FOU of a gateway into the stack", fou(net.remote_gateway, to, net.world), Reason::HostStack),
        case("FOU of a pod, not into the stack", fou(net.remote, to, net.world), Reason::FouNotGateway),
        case("FOU of a host, not into the stack", fou(net.world, to, net.world), Reason::FouNotGateway),
        case("FOU in fragments, not into the stack", fragment, Reason::FouHidden),
        case("FOU behind options, not into the stack", options, Reason::FouHidden),
        Case::to_pod(
            "FOU of a pod behind the stack",
            net,
            KERNEL_CLIENT,
            fou(net.plain, to, net.world),
            Reason::FouNotGateway,
        )
        .with_host_stack(),
        Case::to_pod(
            "FOU of a gateway behind the stack",
            net,
            KERNEL_CLIENT,
            fou(net.gateway, to, net.world),
            Reason::NotFastNode,
        )
        .with_host_stack(),
    ]
}
