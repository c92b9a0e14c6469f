//! ICMP errors about FOU: whose packet was inside is told instead.

use std::net::IpAddr;

use coil_packet::Reason;

use crate::{
    Case, Given, Net,
    gateway::nat,
    wire::{self, Ip, tcp},
    world::{CLIENT, GATEWAY},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = of_client(net);
    cases.extend(not_of_client(net));
    cases.extend(of_gateway(net));
    cases.extend(not_of_gateway(net));
    cases
}

/// What a router says that has 1400 bytes of room for what is larger.
const MTU: u16 = 1400;

const fn too_big(net: &Net) -> [u8; 2] {
    if net.is_v4() { [3, 4] } else { [2, 0] }
}

/// The other errors: unreachable for some reason, and the end of the time to live.
const fn others(net: &Net) -> [[u8; 2]; 3] {
    if net.is_v4() { [[3, 0], [3, 3], [11, 0]] } else { [[1, 0], [1, 4], [3, 0]] }
}

/// The error of a router between the nodes about a packet in FOU, of which it quotes `most` bytes.
fn error(net: &Net, kind: [u8; 2], packet: &[u8], most: usize) -> Vec<u8> {
    let to = wire::source(packet);
    let [m, n] = if kind == too_big(net) { MTU.to_be_bytes() } else { [0, 0] };
    wire::error(Ip::new(net.router, to).ttl(63), kind, [0, 0, m, n], &packet[..most.min(packet.len())])
}

/// What Linux quotes, and what others do.
const fn quotes(net: &Net) -> (usize, usize) {
    if net.is_v4() { (548, 28) } else { (1232, 48) }
}

fn pin(net: &Net, protocol: u8, ports: (u16, u16)) -> Given {
    Given::Pin {
        protocol,
        client: (net.client, ports.0),
        remote: (net.world, ports.1),
        egress: 1,
        gateway: net.remote_gateway,
    }
}

/// To a client of this node, about what it sent to its gateway.
fn of_client(net: Net) -> Vec<Case> {
    let fits = MTU - net.overhead();
    let (most, _) = quotes(&net);
    let out = Ip::new(net.client, net.world);
    let fou = |inner: &[u8]| wire::fou((net.client, net.remote_gateway), 0, 5555, inner);
    let large = wire::tcp(out, 40000, 443, tcp::ACK, &[7; 1400]);
    let told = wire::too_big(net.router, net.client, fits, &large);
    let big = |packet: &[u8]| error(&net, too_big(&net), &fou(packet), most);
    let case = |name, packet: Vec<u8>| Case::from_net(name, net, packet, Reason::FouError);
    let icmp = if net.is_v4() { 1 } else { 58 };
    let datagram = wire::udp(out, 40000, 53, &[7; 1400]);
    let echo = wire::echo_with(out, false, 77, &[7; 1400]);
    vec![
        case("a narrow path to the gateway", big(&large))
            .given(pin(&net, 6, (40000, 443)))
            .hands_over(CLIENT, &told),
        case("the same for UDP", big(&datagram))
            .given(pin(&net, 17, (40000, 53)))
            .hands_over(CLIENT, &wire::too_big(net.router, net.client, fits, &datagram)),
        case("the same for an echo request", big(&echo))
            .given(pin(&net, icmp, (77, 0)))
            .hands_over(CLIENT, &wire::too_big(net.router, net.client, fits, &echo)),
        // No more is quoted than has to be.
        case(
            "as little as can be told of",
            error(&net, too_big(&net), &fou(&large), usize::from(2 * net.overhead()) + 20 - 8),
        )
        .given(pin(&net, 6, (40000, 443)))
        .hands_over(CLIENT, &told),
        Case::to_pod("a narrow path, by the kernel", net, CLIENT, big(&large), Reason::FouError)
            .given(pin(&net, 6, (40000, 443)))
            .leaves_as(&told),
        Case::to_pod("a narrow path, by the stack", net, CLIENT, big(&large), Reason::FouError)
            .given(pin(&net, 6, (40000, 443)))
            .with_host_stack()
            .leaves_as(&told),
    ]
}

/// Errors that tell a client nothing, or whose truth is in doubt.
fn not_of_client(net: Net) -> Vec<Case> {
    let (most, least) = quotes(&net);
    let out = Ip::new(net.client, net.world);
    let large = wire::tcp(out, 40000, 443, tcp::ACK, &[7; 1400]);
    let fou = |to, inner: &[u8]| wire::fou((net.client, to), 0, 5555, inner);
    let pinned = pin(&net, 6, (40000, 443));
    let case = |name, packet: Vec<u8>, reason| Case::from_net(name, net, packet, reason);
    let to_gateway = fou(net.remote_gateway, &large);
    let of_another = wire::tcp(Ip::new(net.plain, net.world), 40000, 443, tcp::ACK, &[7; 1400]);
    let other_port = wire::udp(Ip::new(net.client, net.remote_gateway), 5555, 5556, &large);
    let [unreachable, refused, exceeded] = others(&net);
    vec![
        case(
            "a narrow path, with nothing of what was inside",
            error(&net, too_big(&net), &to_gateway, least),
            Reason::PathNoted,
        )
        .given(pinned),
        case(
            "a narrow path, with one byte too few of that",
            error(&net, too_big(&net), &to_gateway, usize::from(2 * net.overhead()) + 20 - 9),
            Reason::PathNoted,
        )
        .given(pinned),
        case(
            "a narrow path for a flow that is not known",
            error(&net, too_big(&net), &to_gateway, most),
            Reason::NotFastFlow,
        ),
        case(
            "a narrow path for a flow with another gateway",
            error(&net, too_big(&net), &fou(net.auto_gateway, &large), most),
            Reason::NotFastFlow,
        )
        .given(pinned),
        case(
            "a narrow path for another's packet",
            error(&net, too_big(&net), &fou(net.remote_gateway, &of_another), most),
            Reason::NotFastFlow,
        )
        .given(pinned),
        case("no way to the gateway", error(&net, unreachable, &to_gateway, most), Reason::NotFastFlow)
            .given(pinned),
        case("no FOU at the gateway", error(&net, refused, &to_gateway, most), Reason::NotFastFlow)
            .given(pinned),
        case(
            "a loop on the way to the gateway",
            error(&net, exceeded, &to_gateway, most),
            Reason::NotFastFlow,
        )
        .given(pinned),
        case(
            "a narrow path that a pod tells of, with nothing of what was inside",
            wire::error(
                Ip::new(net.remote, net.client).ttl(63),
                too_big(&net),
                [0, 0, MTU.to_be_bytes()[0], MTU.to_be_bytes()[1]],
                &to_gateway[..least],
            ),
            Reason::NotFastFlow,
        )
        .given(pinned),
        case(
            "a path narrower than any, with nothing of what was inside",
            wire::error(
                Ip::new(net.router, net.client).ttl(63),
                too_big(&net),
                [0, 0, 1279_u16.to_be_bytes()[0], 1279_u16.to_be_bytes()[1]],
                &to_gateway[..least],
            ),
            Reason::NotFastFlow,
        )
        .given(pinned),
        case(
            "a narrow path to what is no gateway",
            error(&net, too_big(&net), &fou(net.remote, &large), most),
            Reason::NotFastFlow,
        )
        .given(pinned),
        case(
            "a narrow path of another port",
            error(&net, too_big(&net), &other_port, most),
            Reason::NotFastFlow,
        )
        .given(pinned),
        case(
            "a path that is too narrow to be",
            wire::error(
                Ip::new(net.router, net.client).ttl(63),
                too_big(&net),
                [0, 0, 1, 0],
                &to_gateway[..most],
            ),
            Reason::NotFastFlow,
        )
        .given(pinned),
    ]
}

fn lease(net: &Net, protocol: u8, remote_port: u16) -> Given {
    nat(net, protocol, 50001, (net.remote_client, 40000), (net.world_local, remote_port), 1)
}

/// To a gateway of this node, about replies that it sent to clients of others: the remote sent them.
fn of_gateway(net: Net) -> Vec<Case> {
    let fits = MTU - net.overhead();
    let (most, _) = quotes(&net);
    let fou = |inner: &[u8]| wire::fou((net.gateway, net.remote_client), 0, 5555, inner);
    let back = |to: IpAddr| Ip::new(net.world_local, to).ttl(50);
    let reply = |to, port| wire::tcp(back(to), 443, port, tcp::ACK, &[7; 1400]);
    let answer = |to, port| wire::udp(back(to), 53, port, &[7; 1400]);
    let echo = |to, id| wire::echo_with(back(to), true, id, &[7; 1400]);
    let (inside, outside) = (reply(net.remote_client, 40000), reply(net.gateway, 50001));
    let told = |packet: &[u8]| wire::too_big(net.gateway, net.world_local, fits, packet);
    let big = |inner: &[u8]| error(&net, too_big(&net), &fou(inner), most);
    let case = |name, packet: Vec<u8>| Case::from_net(name, net, packet, Reason::FouError);
    let icmp = if net.is_v4() { 1 } else { 58 };
    let mut cases = vec![
        case("a narrow path to the client", big(&inside))
            .given(lease(&net, 6, 443))
            .hands_in(GATEWAY, &told(&outside)),
        case("the same for UDP to the client", big(&answer(net.remote_client, 40000)))
            .given(lease(&net, 17, 53))
            .hands_in(GATEWAY, &told(&answer(net.gateway, 50001))),
        case("the same for an echo reply", big(&echo(net.remote_client, 40000)))
            .given(lease(&net, icmp, 0))
            .hands_in(GATEWAY, &told(&echo(net.gateway, 50001))),
        Case::to_pod(
            "a narrow path to the client, by the kernel",
            net,
            GATEWAY,
            big(&inside),
            Reason::FouError,
        )
        .given(lease(&net, 6, 443))
        .hands_in(GATEWAY, &told(&outside)),
        Case::to_pod(
            "a narrow path to the client, by the stack",
            net,
            GATEWAY,
            big(&inside),
            Reason::FouError,
        )
        .given(lease(&net, 6, 443))
        .with_host_stack()
        .hands_in(GATEWAY, &told(&outside)),
    ];
    if net.is_v4() {
        let unsummed = |to, port| wire::udp_unsummed(back(to), 53, port, &[7; 1400]);
        cases.push(
            case("the same for UDP without a checksum", big(&unsummed(net.remote_client, 40000)))
                .given(lease(&net, 17, 53))
                .hands_in(GATEWAY, &told(&unsummed(net.gateway, 50001))),
        );
    }
    cases
}

fn not_of_gateway(net: Net) -> Vec<Case> {
    let (most, least) = quotes(&net);
    let reply = |to| wire::tcp(Ip::new(net.world_local, to), 443, 40000, tcp::ACK, &[7; 1400]);
    let case = |name, packet: Vec<u8>, reason| Case::from_net(name, net, packet, reason);
    let fou = |to| wire::fou((net.gateway, to), 0, 5555, &reply(to));
    vec![
        case(
            "a narrow path to the client, with nothing of what was inside",
            error(&net, too_big(&net), &fou(net.remote_client), least),
            Reason::PathNoted,
        )
        .given(lease(&net, 6, 443)),
        case(
            "a narrow path for a reply that is not known",
            error(&net, too_big(&net), &fou(net.remote_client), most),
            Reason::NotFastFlow,
        ),
        case(
            "no way to the client",
            error(&net, others(&net)[0], &fou(net.remote_client), most),
            Reason::NotFastFlow,
        )
        .given(lease(&net, 6, 443)),
        case(
            "a narrow path to what is no client",
            error(&net, too_big(&net), &fou(net.remote), most),
            Reason::NotFastFlow,
        )
        .given(lease(&net, 6, 443)),
    ]
}
