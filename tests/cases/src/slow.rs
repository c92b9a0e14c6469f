//! What the kernel delivers to gateways and clients: from this node itself, or from a link that is no uplink. And
//! what nobody may send them.

use coil_packet::Reason;

use crate::{
    Case, Net,
    gateway::nat,
    wire::{self, Ip, tcp},
    world::{CLIENT, GATEWAY, KERNEL_CLIENT, KERNEL_GATEWAY, PLAIN},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = delivered(net);
    cases.extend(forged(net));
    cases.extend(known(net));
    cases.extend(by_kernel(net));
    cases.extend(hidden(net));
    cases.extend(beside(net));
    cases
}

fn delivered(net: Net) -> Vec<Case> {
    let back = Ip::new(net.world_local, net.gateway);
    let reply = wire::tcp(back, 443, 50001, tcp::ACK, b"data");
    let lease = |client| nat(&net, 6, 50001, (client, 40000), (net.world_local, 443), 1);
    let at = |client| wire::tcp(Ip::new(net.world_local, client).ttl(63), 443, 40000, tcp::ACK, b"data");
    let out = wire::tcp(Ip::new(net.remote_client, net.world_local), 40000, 443, tcp::SYN, b"");
    let large = wire::tcp(back, 443, 50001, tcp::ACK, &[1; 1440]);
    let inner = wire::tcp(Ip::new(net.world, net.client), 443, 40000, tcp::ACK, b"data");
    let unknown = wire::tcp(back, 443, 50002, tcp::SYN, b"");
    vec![
        Case::to_pod(
            "a reply by the kernel, for a client of this node",
            net,
            GATEWAY,
            &reply,
            Reason::ReplyToPod,
        )
        .given(lease(net.client))
        .hands_over(CLIENT, &at(net.client)),
        Case::to_pod(
            "a reply by the kernel, for another node's client",
            net,
            GATEWAY,
            &reply,
            Reason::ReplyToNode,
        )
        .given(lease(net.remote_client))
        .sends(&wire::fou((net.gateway, net.remote_client), 0, 5555, &at(net.remote_client))),
        Case::to_pod("a reply by the kernel that is too big", net, GATEWAY, &large, Reason::TooBig)
            .given(lease(net.remote_client))
            .answers(&wire::too_big(net.gateway, net.world_local, 1500 - net.overhead(), &large)),
        Case::to_pod(
            "a port that is lent to nobody, by the kernel",
            net,
            GATEWAY,
            &unknown,
            Reason::NatUnknown,
        ),
        Case::to_pod(
            "FOU by the kernel to a gateway",
            net,
            GATEWAY,
            wire::fou((net.remote_client, net.gateway), 0, 5555, &out),
            Reason::Out,
        )
        .sends(&wire::tcp(Ip::new(net.gateway, net.world_local).ttl(63), 40000, 443, tcp::SYN, b"")),
        Case::to_pod(
            "FOU by the kernel to a client",
            net,
            CLIENT,
            wire::fou((net.remote_gateway, net.client), 0, 5555, &inner),
            Reason::Decapsulated,
        )
        .leaves_as(&inner),
        Case::to_pod(
            "forged FOU by the kernel to a client",
            net,
            CLIENT,
            wire::fou((net.remote, net.client), 0, 5555, &inner),
            Reason::FouNotGateway,
        ),
    ]
}

fn forged(net: Net) -> Vec<Case> {
    let inner = wire::tcp(Ip::new(net.plain, net.world), 40000, 443, tcp::SYN, b"");
    let fou = |from, to| wire::fou((from, to), 0, 5555, &inner);
    vec![
        Case::from_pod(
            "FOU to a gateway from no client",
            net,
            PLAIN,
            fou(net.plain, net.remote_gateway),
            Reason::FouForged,
        ),
        Case::from_pod(
            "FOU to a gateway of this node from no client",
            net,
            PLAIN,
            fou(net.plain, net.gateway),
            Reason::FouForged,
        ),
        Case::from_pod(
            "FOU in a client's name",
            net,
            PLAIN,
            fou(net.client, net.remote_gateway),
            Reason::FouForged,
        ),
        Case::from_pod(
            "FOU in a gateway's name",
            net,
            PLAIN,
            fou(net.remote_gateway, net.remote_client),
            Reason::FouForged,
        ),
        // Port 5555 is free for everything else.
        Case::from_pod(
            "the FOU port of another pod",
            net,
            PLAIN,
            fou(net.plain, net.remote),
            Reason::NotFastKind,
        ),
        Case::from_pod(
            "a client's own FOU to a gateway",
            net,
            CLIENT,
            fou(net.client, net.remote_gateway),
            Reason::FouForged,
        ),
        Case::from_pod(
            "FOU to a client of this node that has tunnels",
            net,
            PLAIN,
            fou(net.plain, net.kernel_client),
            Reason::FouForged,
        ),
        Case::to_pod(
            "a pod's FOU to a gateway by a service",
            net,
            GATEWAY,
            fou(net.plain, net.gateway),
            Reason::FouSender,
        ),
    ]
}

/// Whose FOU a gateway takes: of a client that it knows, or of one that may be new.
fn known(net: Net) -> Vec<Case> {
    let syn = |from| wire::tcp(Ip::new(from, net.world_local), 40000, 443, tcp::SYN, b"");
    let fou = |from, to| wire::fou((from, to), 0, 5555, &syn(from));
    let out = |gateway| wire::tcp(Ip::new(gateway, net.world_local).ttl(63), 40000, 443, tcp::SYN, b"");
    let case = |name, from, to, reason| Case::from_net(name, net, fou(from, to), reason);
    let (gateway, opening) = (net.gateway, net.kernel_gateway);
    vec![
        case("a pod that is no client of the gateway", net.remote, gateway, Reason::FouSender),
        case("an address of no pod", net.lost, gateway, Reason::FouSender),
        case("another gateway", net.remote_gateway, gateway, Reason::FouSender),
        case("a known client beside new ones", net.remote_client, opening, Reason::Out).sends(&out(opening)),
        case("a new client", net.remote, opening, Reason::Out).sends(&out(opening)),
        case("the world beside new clients", net.world, opening, Reason::FouSender),
        Case::to_pod("a new client of this node", net, KERNEL_GATEWAY, fou(net.client, opening), Reason::Out)
            .sends(&out(opening)),
        Case::to_pod(
            "another pod of this node beside new clients",
            net,
            KERNEL_GATEWAY,
            fou(net.plain, opening),
            Reason::FouSender,
        ),
    ]
}

/// FOU that the programs do not see as such, where a pod's own kernel would.
fn hidden(net: Net) -> Vec<Case> {
    let inner = wire::tcp(Ip::new(net.remote_client, net.world_kernel), 40000, 443, tcp::SYN, b"");
    let fou = wire::fou((net.remote_client, net.kernel_gateway), 0, 5555, &inner);
    let udp = fou.get(if net.is_v4() { 20 } else { 40 }..).unwrap_or_default();
    let ends = Ip::new(net.remote_client, net.kernel_gateway);
    let first = wire::fragment(ends, udp);
    vec![
        Case::from_net("FOU in fragments", net, &first, Reason::FouHidden),
        Case::to_pod("FOU in fragments, by the kernel", net, KERNEL_GATEWAY, &first, Reason::FouHidden),
        Case::from_net(
            "FOU in fragments to a gateway without a kernel of its own for it",
            net,
            wire::fragment(Ip::new(net.remote_client, net.gateway), udp),
            Reason::NotFastKind,
        ),
        Case::from_net("FOU behind options", net, wire::with_options(ends, udp), Reason::FouHidden),
    ]
}

/// Clients and gateways with a kernel of their own for what the programs leave.
fn by_kernel(net: Net) -> Vec<Case> {
    let other = |from, to| wire::ip(Ip::new(from, to), 47, &[0; 24]);
    let to_gateway = |from| wire::fou((from, net.kernel_gateway), 0, 5555, &other(from, net.world_kernel));
    let back = wire::tcp(Ip::new(net.world, net.kernel_client), 443, 40000, tcp::ACK, b"data");
    let fou = |from, to, inner: &[u8]| wire::fou((from, to), 0, 5555, inner);
    let reply = fou(net.kernel_gateway, net.remote_client, &other(net.world_kernel, net.remote_client));
    vec![
        Case::from_pod(
            "GRE through a kernel gateway of this node",
            net,
            CLIENT,
            other(net.client, net.world_kernel),
            Reason::ToGateway,
        )
        .hands_over(KERNEL_GATEWAY, &to_gateway(net.client)),
        Case::from_net("GRE to a kernel gateway", net, to_gateway(net.remote_client), Reason::KernelGateway),
        Case::to_pod(
            "GRE to a kernel gateway, by the kernel",
            net,
            KERNEL_GATEWAY,
            to_gateway(net.remote_client),
            Reason::KernelGateway,
        ),
        Case::from_net("GRE of no client to a kernel gateway", net, to_gateway(net.world), Reason::FouSender),
        Case::from_net(
            "GRE in another's name to a kernel gateway",
            net,
            fou(net.remote_client, net.kernel_gateway, &other(net.remote, net.world_kernel)),
            Reason::FouInner,
        ),
        Case::from_pod("FOU of a gateway's kernel", net, KERNEL_GATEWAY, reply, Reason::NotFastKind),
        Case::from_pod(
            "FOU of a client's kernel",
            net,
            KERNEL_CLIENT,
            fou(net.kernel_client, net.remote_gateway, &other(net.kernel_client, net.world)),
            Reason::NotFastKind,
        ),
        Case::from_net(
            "a gateway's FOU to a client's kernel",
            net,
            fou(net.remote_gateway, net.kernel_client, &back),
            Reason::NotFastKind,
        ),
        Case::from_net(
            "a pod's FOU to a client's kernel",
            net,
            fou(net.remote, net.kernel_client, &back),
            Reason::FouNotGateway,
        ),
    ]
}

/// Over a link that is no uplink: by the kernel, in FOU.
fn beside(net: Net) -> Vec<Case> {
    let syn = wire::tcp(Ip::new(net.client, net.world_beside), 40000, 443, tcp::SYN, b"");
    let large = wire::udp(Ip::new(net.client, net.world_beside), 40000, 53, &[1; 1472]);
    let reply = wire::tcp(Ip::new(net.world_local, net.gateway), 443, 50001, tcp::ACK, b"data");
    let lease = nat(&net, 6, 50001, (net.beside_client, 40000), (net.world_local, 443), 1);
    let at_client =
        wire::tcp(Ip::new(net.world_local, net.beside_client).ttl(63), 443, 40000, tcp::ACK, b"data");
    let fou = wire::fou((net.gateway, net.beside_client), 0, 5555, &at_client);
    vec![
        Case::from_pod(
            "a gateway behind a link that is no uplink",
            net,
            CLIENT,
            syn.clone(),
            Reason::ToGateway,
        )
        .leaves_as(&wire::fou((net.client, net.beside_gateway), 0, 5555, &syn)),
        Case::from_pod("too big for the way there", net, CLIENT, large.clone(), Reason::TooBig)
            .answers(&wire::too_big(net.beside_gateway, net.client, 1500 - net.overhead(), &large)),
        Case::from_net(
            "a reply to a client behind a link that is no uplink",
            net,
            reply.clone(),
            Reason::ReplyToNode,
        )
        .given(lease)
        .hands_in(GATEWAY, &fou),
        Case::to_pod("the same by the kernel", net, GATEWAY, reply, Reason::ReplyToNode)
            .given(lease)
            .hands_in(GATEWAY, &fou),
    ]
}
