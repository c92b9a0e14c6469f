//! What tables do when they are full, old or raced for, and what cut frames come to.

use std::net::IpAddr;

use coil_cases::{
    Net, World,
    host::{HostAddr, Node},
    wire::{self, Ip, tcp},
    world::{self, CLIENT, PLAIN, UPLINK},
};
use coil_packet::{Class, Path, Reason};

/// Each runs in both families.
macro_rules! tests {
    ($($name:ident)*) => {
        mod ipv4 {
            $(#[test] fn $name() { super::$name::<[u8; 4]>(coil_cases::Net::v4()); })*
        }
        mod ipv6 {
            $(#[test] fn $name() { super::$name::<[u8; 16]>(coil_cases::Net::v6()); })*
        }
    };
}

tests! {
    a_full_flow_table_leaves_new_flows_to_the_kernel
    a_full_nat_table_refuses_new_flows_and_keeps_the_old
    a_flow_keeps_its_port_and_its_reply_finds_it
    a_port_that_the_gateway_pod_has_for_itself_is_not_lent
    an_answered_connection_outlives_an_unanswered_one
    a_closed_connection_is_forgotten_soon
    a_client_has_so_many_ports_and_no_more
    ports_are_found_when_most_are_lent
    many_clients_share_one_gateway
    segmentation_of_anything_but_tcp_is_not_egress
}

fn node<A: HostAddr>(net: &Net) -> Node<A> {
    Node::new(World::new(net), &[])
}

/// A client of another node: its number there.
fn remote_client(net: &Net, number: u8) -> IpAddr {
    if net.is_v4() {
        [10, 64, 1, number].into()
    } else {
        [0xfd64, 0, 0, 0, 0, 0, 0, 0x100 | u16::from(number)].into()
    }
}

fn from(ifindex: u32, packet: &[u8]) -> Vec<u8> {
    wire::ethernet(world::host_mac(ifindex), world::pod_mac(ifindex), packet)
}

fn to_world(net: &Net, sport: u16, flags: u8) -> Vec<u8> {
    from(CLIENT, &wire::tcp(Ip::new(net.client, net.world_local), sport, 443, flags, b""))
}

fn reply(net: &Net, port: u16, flags: u8) -> Vec<u8> {
    from(UPLINK, &wire::tcp(Ip::new(net.world_local, net.gateway), 443, port, flags, b""))
}

fn source_port(net: &Net, frame: &[u8]) -> u16 {
    let at = 14 + if net.is_v4() { 20 } else { 40 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn a_full_flow_table_leaves_new_flows_to_the_kernel<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    node.room = 1;
    let syn = |sport| from(PLAIN, &wire::tcp(Ip::new(net.plain, net.client), sport, 80, tcp::SYN, b""));
    assert_eq!(node.run(Path::FromPod, PLAIN, &syn(1), 0).reason, Reason::ToPod);
    assert_eq!(node.run(Path::FromPod, PLAIN, &syn(2), 0).reason, Reason::FlowTableFull);
    assert_eq!(node.run(Path::FromPod, PLAIN, &syn(1), 0).reason, Reason::ToPod);
}

fn a_full_nat_table_refuses_new_flows_and_keeps_the_old<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    node.room = 1;
    assert_eq!(node.run(Path::FromPod, CLIENT, &to_world(&net, 2000, tcp::SYN), 0).reason, Reason::Out);
    assert_eq!(node.run(Path::FromPod, CLIENT, &to_world(&net, 2001, tcp::SYN), 0).reason, Reason::NatFull);
    assert_eq!(node.run(Path::FromPod, CLIENT, &to_world(&net, 2000, tcp::ACK), 0).reason, Reason::Out);
    assert_eq!(node.sizes(), [0, 1, 1], "a refused flow leaves nothing");
}

fn a_flow_keeps_its_port_and_its_reply_finds_it<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    let out = node.run(Path::FromPod, CLIENT, &to_world(&net, 80, tcp::SYN), 0);
    let port = source_port(&net, &out.frame);
    assert!(coil_packet::nat::lendable(port), "{port}");
    let again = node.run(Path::FromPod, CLIENT, &to_world(&net, 80, tcp::ACK), 0);
    assert_eq!(source_port(&net, &again.frame), port);
    assert_eq!(node.run(Path::FromNet, UPLINK, &reply(&net, port, tcp::ACK), 0).reason, Reason::ReplyToPod);
    assert_eq!(node.sizes(), [0, 1, 1]);
}

fn a_port_that_the_gateway_pod_has_for_itself_is_not_lent<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    let (word, bit) = coil_packet::ports::own(9090);
    let to_pod =
        |node: &mut Node<A>, port| node.run(Path::FromNet, UPLINK, &reply(&net, port, tcp::SYN), 0).reason;
    assert_eq!(to_pod(&mut node, 9090), Reason::NatUnknown);
    node.own_ports.insert(word, bit);
    assert_ne!(to_pod(&mut node, 9090), Reason::NatUnknown, "it is the pod's");
    assert_eq!(to_pod(&mut node, 9091), Reason::NatUnknown);
    let out = node.run(Path::FromPod, CLIENT, &to_world(&net, 9090, tcp::SYN), 0);
    let port = source_port(&net, &out.frame);
    assert!(out.reason == Reason::Out && port != 9090, "{port}");
    assert_eq!(node.run(Path::FromNet, UPLINK, &reply(&net, port, tcp::ACK), 0).reason, Reason::ReplyToPod);
}

fn an_answered_connection_outlives_an_unanswered_one<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    for (port, answered) in [(2000, true), (2001, false)] {
        let start = node.now.get();
        assert_eq!(node.run(Path::FromPod, CLIENT, &to_world(&net, port, tcp::SYN), 0).reason, Reason::Out);
        if answered {
            let syn_ack = reply(&net, port, tcp::SYN | tcp::ACK);
            assert_eq!(node.run(Path::FromNet, UPLINK, &syn_ack, 0).reason, Reason::ReplyToPod);
        }
        node.now.set(start + 3600);
        let later = node.run(Path::FromNet, UPLINK, &reply(&net, port, tcp::ACK), 0).reason;
        assert_eq!(later, if answered { Reason::ReplyToPod } else { Reason::NatUnknown });
    }
}

fn a_closed_connection_is_forgotten_soon<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    let start = node.now.get();
    let _ = node.run(Path::FromPod, CLIENT, &to_world(&net, 2000, tcp::SYN), 0);
    let _ = node.run(Path::FromNet, UPLINK, &reply(&net, 2000, tcp::SYN | tcp::ACK), 0);
    let _ = node.run(Path::FromNet, UPLINK, &reply(&net, 2000, tcp::FIN | tcp::ACK), 0);
    node.now.set(start + 3600);
    let half_closed = node.run(Path::FromNet, UPLINK, &reply(&net, 2000, tcp::ACK), 0).reason;
    assert_eq!(half_closed, Reason::ReplyToPod, "the client may send on");
    let _ = node.run(Path::FromPod, CLIENT, &to_world(&net, 2000, tcp::FIN | tcp::ACK), 0);
    node.now.set(start + 3600 + 241);
    assert_eq!(node.run(Path::FromNet, UPLINK, &reply(&net, 2000, tcp::ACK), 0).reason, Reason::NatUnknown);
}

fn a_client_has_so_many_ports_and_no_more<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    node.quota = 3;
    let reasons: Vec<Reason> = (0..4u16)
        .map(|n| node.run(Path::FromPod, CLIENT, &to_world(&net, 2000 + n, tcp::SYN), 0).reason)
        .collect();
    assert_eq!(reasons, [Reason::Out, Reason::Out, Reason::Out, Reason::NatQuota]);
    assert_eq!(node.sizes(), [0, 3, 3], "a refused flow leaves nothing");
    assert_eq!(node.run(Path::FromPod, CLIENT, &to_world(&net, 2000, tcp::ACK), 0).reason, Reason::Out);
}

/// Fewer than one attempt in a thousand fails when 95 % of the ports towards one remote are lent.
fn ports_are_found_when_most_are_lent<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    node.room = 100_000;
    node.world.clients = (0..=u8::MAX).map(|n| (net.gateway, remote_client(&net, n))).collect();
    let packet = |client: u32, sport: u16| {
        let client = remote_client(&net, (client % 200) as u8);
        let inner = wire::tcp(Ip::new(client, net.world_local), sport, 443, tcp::SYN, b"");
        from(UPLINK, &wire::fou((client, net.gateway), 0, 5555, &inner))
    };
    let mut sport = (0..).map(|n: u32| (n, 1024 + (n.wrapping_mul(40_503) % 59_000) as u16));
    let mut lent = |node: &mut Node<A>| {
        let (n, port) = sport.next().expect("numbers do not end");
        let reason = node.run(Path::FromNet, UPLINK, &packet(n, port), 0).reason;
        assert!(matches!(reason, Reason::Out | Reason::NatPorts), "{reason:?}");
        reason == Reason::Out
    };
    let (mut failed, mut tried) = (0, 0);
    while node.sizes()[2] < coil_packet::nat::PORTS as usize * 95 / 100 {
        tried += 1;
        failed += usize::from(!lent(&mut node));
    }
    assert!(failed * 1000 < tried, "{failed} of {tried} attempts failed on the way to 95 %");
    // From there on, again and again.
    let (mut failed, mut tried) = (0, 0);
    for _ in 0..10 {
        let mut node = node.clone();
        tried += 1000;
        failed += (0..1000).filter(|_| !lent(&mut node)).count();
    }
    assert!(failed * 1000 < tried, "{failed} of {tried} attempts failed at 95 % and above");
}

fn many_clients_share_one_gateway<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    let mut ports = std::collections::BTreeSet::new();
    for client in 1..=200u8 {
        // All from the same source port, through the tunnel.
        let client = remote_client(&net, client);
        node.world.clients.push((net.gateway, client));
        let inner = wire::tcp(Ip::new(client, net.world_local), 40000, 443, tcp::SYN, b"");
        let frame = from(UPLINK, &wire::fou((client, net.gateway), 0, 5555, &inner));
        let outcome = node.run(Path::FromNet, UPLINK, &frame, 0);
        assert_eq!(outcome.reason, Reason::Out);
        assert!(ports.insert(source_port(&net, &outcome.frame)), "two flows to one remote share a port");
    }
}

fn segmentation_of_anything_but_tcp_is_not_egress<A: HostAddr>(net: Net) {
    let mut node = node::<A>(&net);
    // An answer in one piece, which somebody on the gateway's own node gives.
    let inner = wire::udp(Ip::new(net.remote_client, net.world_local), 40000, 53, b"question");
    let question = from(UPLINK, &wire::fou((net.remote_client, net.gateway), 0, 5555, &inner));
    let outcome = node.run(Path::FromNet, UPLINK, &question, 0);
    let port = source_port(&net, &outcome.frame);
    let answer =
        from(world::GATEWAY, &wire::udp(Ip::new(net.world_local, net.gateway), 53, port, &[0; 3000]));
    assert_eq!(node.run(Path::ToPod, world::GATEWAY, &answer, 1000).reason, Reason::EgressGso);
    let udp = from(CLIENT, &wire::udp(Ip::new(net.client, net.world), 1, 2, &[0; 3000]));
    assert_eq!(node.run(Path::FromPod, CLIENT, &udp, 1000).reason, Reason::EgressGso);
    let tcp = from(CLIENT, &wire::tcp(Ip::new(net.client, net.world), 1, 2, tcp::ACK, &[0; 3000]));
    assert_eq!(node.run(Path::FromPod, CLIENT, &tcp, 1000).reason, Reason::ToGateway);
    let fits = 1500 - u32::from(net.overhead()) - if net.is_v4() { 40 } else { 60 };
    assert_eq!(node.run(Path::FromPod, CLIENT, &tcp, fits + 1).reason, Reason::TooBig, "one byte too many");
    assert_eq!(node.run(Path::FromPod, CLIENT, &tcp, fits).reason, Reason::ToGateway);
}

#[test]
fn a_cut_frame_is_never_sent() {
    for case in coil_cases::all() {
        for len in 0..case.frame.len().min(300) {
            let mut cut = case.clone();
            cut.frame.truncate(len);
            let reason = coil_cases::host::run(&cut).reason;
            assert!(
                matches!(reason.class(), Class::Next | Class::Drop),
                "{} cut to {len}: {reason:?}",
                case.name
            );
        }
    }
}
