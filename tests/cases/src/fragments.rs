//! Fragments through gateways: each follows the first one of its packet.

use coil_packet::Reason;

use crate::{
    Case, Given, Net,
    gateway::nat,
    wire::{self, Ip},
    world::{AFFINE, CLIENT, KERNEL_GATEWAY},
};

const ID: u16 = 0x4321;

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let mut cases = outward(net);
    cases.extend(homeward(net));
    cases.extend(to_gateway(net));
    cases.extend(by_kernel(net));
    cases
}

fn known(ends: (std::net::IpAddr, std::net::IpAddr), ports: (u16, u16)) -> Given {
    Given::Frag { protocol: 17, ends, id: ID.into(), ports }
}

/// A datagram of 600 bytes in two fragments.
fn datagram(header: Ip, sport: u16, dport: u16) -> [Vec<u8>; 2] {
    wire::fragments(header, 17, ID, &wire::udp_datagram(header, sport, dport, true, &[7; 592]), 400)
}

/// From clients, at the gateway.
fn outward(net: Net) -> Vec<Case> {
    let of = |client| datagram(Ip::new(client, net.world_local), 40000, 53);
    let out = datagram(Ip::new(net.gateway, net.world_local).ttl(63), 40000, 53);
    let lease = |client| nat(&net, 17, 40000, (client, 40000), (net.world_local, 53), 1);
    let tunnel = |inner: &[u8]| wire::fou((net.remote_client, net.gateway), 0, 5555, inner);
    let [first, later] = of(net.client);
    let [remote_first, remote_later] = of(net.remote_client);
    vec![
        Case::from_pod("a first fragment", net, CLIENT, first, Reason::Out).sends(&out[0]),
        Case::from_pod("a later fragment", net, CLIENT, later.clone(), Reason::Out)
            .given(known((net.client, net.world_local), (40000, 53)))
            .given(lease(net.client))
            .sends(&out[1]),
        Case::from_pod("a later fragment comes first", net, CLIENT, later.clone(), Reason::EgressFragment),
        Case::from_pod(
            "a later fragment of a translation that has ended",
            net,
            CLIENT,
            later,
            Reason::EgressFragment,
        )
        .given(known((net.client, net.world_local), (40000, 53))),
        Case::from_net("a first fragment out of the tunnel", net, tunnel(&remote_first), Reason::Out)
            .sends(&out[0]),
        Case::from_net("a later fragment out of the tunnel", net, tunnel(&remote_later), Reason::Out)
            .given(known((net.remote_client, net.world_local), (40000, 53)))
            .given(lease(net.remote_client))
            .sends(&out[1]),
        Case::from_net(
            "a later fragment comes first out of the tunnel",
            net,
            tunnel(&remote_later),
            Reason::EgressFragment,
        ),
    ]
}

/// From the world.
fn homeward(net: Net) -> Vec<Case> {
    let arrives = datagram(Ip::new(net.world_local, net.gateway), 53, 50001);
    let at_client = datagram(Ip::new(net.world_local, net.client).ttl(63), 53, 40000);
    let at_remote = datagram(Ip::new(net.world_local, net.remote_client).ttl(63), 53, 40000);
    let lease = |client| nat(&net, 17, 50001, (client, 40000), (net.world_local, 53), 1);
    let facts = known((net.world_local, net.gateway), (53, 50001));
    let tunnel = |inner: &[u8]| wire::fou((net.gateway, net.remote_client), 0, 5555, inner);
    let own = datagram(Ip::new(net.world_local, net.gateway), 53, 61001);
    vec![
        Case::from_net("a reply's first fragment", net, &arrives[0], Reason::ReplyToPod)
            .given(lease(net.client))
            .hands_over(CLIENT, &at_client[0]),
        Case::from_net("a reply's later fragment", net, &arrives[1], Reason::ReplyToPod)
            .given(lease(net.client))
            .given(facts)
            .hands_over(CLIENT, &at_client[1]),
        Case::from_net("a reply's first fragment to another node", net, &arrives[0], Reason::ReplyToNode)
            .given(lease(net.remote_client))
            .sends(&tunnel(&at_remote[0])),
        Case::from_net("a reply's later fragment to another node", net, &arrives[1], Reason::ReplyToNode)
            .given(lease(net.remote_client))
            .given(facts)
            .sends(&tunnel(&at_remote[1])),
        // Nobody knows yet whose it is: the pod's own, perhaps.
        Case::from_net("a reply's later fragment comes first", net, &arrives[1], Reason::FragmentEarly)
            .given(lease(net.client)),
        Case::from_net(
            "a first fragment to a port that is lent to nobody",
            net,
            &arrives[0],
            Reason::NatUnknown,
        ),
        Case::from_net("a first fragment for the gateway pod", net, &own[0], Reason::NotFastKind),
        Case::from_net("a later fragment for the gateway pod", net, &own[1], Reason::NotFastKind)
            .given(known((net.world_local, net.gateway), (53, 61001))),
    ]
}

/// From clients, on their own node.
fn to_gateway(net: Net) -> Vec<Case> {
    let [first, later] = datagram(Ip::new(net.client, net.world), 40000, 53);
    let [_, affine] = datagram(Ip::new(net.client, net.world_affine), 40000, 53);
    let tunnel = |inner: &[u8]| wire::fou((net.client, net.remote_gateway), 0, 5555, inner);
    vec![
        Case::from_pod("a first fragment to a gateway", net, CLIENT, first.clone(), Reason::ToGateway)
            .sends(&tunnel(&first)),
        Case::from_pod("a later fragment to a gateway", net, CLIENT, later.clone(), Reason::ToGateway)
            .given(known((net.client, net.world), (40000, 53)))
            .sends(&tunnel(&later)),
        Case::from_pod(
            "a later fragment comes first to a gateway",
            net,
            CLIENT,
            later,
            Reason::EgressFragment,
        ),
        Case::from_pod(
            "in any order where the client has one gateway",
            net,
            CLIENT,
            affine.clone(),
            Reason::ToGateway,
        )
        .sends(&tunnel(&affine)),
        // There it would have to be translated.
        Case::from_pod(
            "a later fragment comes first where the client's one gateway is on its node",
            net,
            CLIENT,
            affine,
            Reason::EgressFragment,
        )
        .given(Given::Affinity { client: net.client, egress: AFFINE, gateway: net.gateway, idle: 0 }),
    ]
}

/// Of what a gateway pod's own kernel translates: all fragments of a packet go there, in any order.
fn by_kernel(net: Net) -> Vec<Case> {
    // GRE, ESP and SCTP; behind an IPv6 fragment header other headers may come.
    let protocols: &[u8] = if net.is_v4() { &[47, 50, 132] } else { &[47, 50, 132, 0, 43, 60] };
    let mut cases: Vec<Case> = protocols.iter().flat_map(|protocol| of_protocol(net, *protocol)).collect();
    // The first one had options, which the others need not have.
    let [_, later] = datagram(Ip::new(net.client, net.world_kernel), 40000, 53);
    let fou = wire::fou((net.client, net.kernel_gateway), 0, 5555, &later);
    let [_, remote] = datagram(Ip::new(net.remote_client, net.world_kernel), 40000, 53);
    let tunnel = wire::fou((net.remote_client, net.kernel_gateway), 0, 5555, &remote);
    cases.extend([
        Case::from_pod(
            "a later fragment, without the first one's options",
            net,
            CLIENT,
            later,
            Reason::ToGateway,
        )
        .given(known((net.client, net.world_kernel), (0, 0)))
        .hands_over(KERNEL_GATEWAY, &fou),
        Case::from_net(
            "a later fragment, without the first one's options, out of the tunnel",
            net,
            tunnel,
            Reason::KernelGateway,
        )
        .given(known((net.remote_client, net.world_kernel), (0, 0))),
    ]);
    cases
}

fn of_protocol(net: Net, protocol: u8) -> Vec<Case> {
    let of = |from, to| wire::fragments(Ip::new(from, to), protocol, ID, &[0; 600], 400);
    let fou = |ends, inner: &[u8]| wire::fou(ends, 0, 5555, inner);
    let mut cases = vec![];
    for (n, which) in ["first", "later"].into_iter().enumerate() {
        let name = |place| format!("a {which} fragment of protocol {protocol} {place}");
        let [near, far, lost] =
            [net.world_kernel, net.world, net.world_local].map(|to| of(net.client, to)[n].clone());
        let tunnel = |gateway, to| fou((net.remote_client, gateway), &of(net.remote_client, to)[n]);
        let kernel = tunnel(net.kernel_gateway, net.world_kernel);
        cases.extend([
            Case::from_pod(name("to a kernel gateway"), net, CLIENT, &near, Reason::ToGateway)
                .hands_over(KERNEL_GATEWAY, &fou((net.client, net.kernel_gateway), &near)),
            Case::from_pod(name("to another node"), net, CLIENT, &far, Reason::ToGateway)
                .sends(&fou((net.client, net.remote_gateway), &far)),
            Case::from_pod(name("to a gateway without a kernel"), net, CLIENT, &lost, Reason::EgressKind),
            Case::from_net(name("out of the tunnel"), net, &kernel, Reason::KernelGateway),
            Case::to_pod(name("by the kernel"), net, KERNEL_GATEWAY, kernel, Reason::KernelGateway),
            Case::from_net(
                name("out of the tunnel, without a kernel"),
                net,
                tunnel(net.gateway, net.world_local),
                Reason::EgressKind,
            ),
        ]);
    }
    cases
}
