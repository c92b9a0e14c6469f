//! What tables do when they are full, old or raced for, and what cut frames come to.

use std::net::IpAddr;

use coil_cases::{
    Net, World,
    host::Node,
    wire::{self, Ip, tcp},
    world::{self, CLIENT, PLAIN, UPLINK},
};
use coil_packet::{Class, Path, Reason};

fn node() -> (Net, Node<[u8; 4]>) {
    let net = Net::v4();
    (net, Node::new(World::new(&net), &[]))
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

fn source_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

#[test]
fn a_full_flow_table_leaves_new_flows_to_the_kernel() {
    let (net, mut node) = node();
    node.room = 1;
    let syn = |sport| from(PLAIN, &wire::tcp(Ip::new(net.plain, net.client), sport, 80, tcp::SYN, b""));
    assert_eq!(node.run(Path::FromPod, PLAIN, &syn(1), 0).reason, Reason::ToPod);
    assert_eq!(node.run(Path::FromPod, PLAIN, &syn(2), 0).reason, Reason::FlowTableFull);
    assert_eq!(node.run(Path::FromPod, PLAIN, &syn(1), 0).reason, Reason::ToPod);
}

#[test]
fn a_full_nat_table_refuses_new_flows_and_keeps_the_old() {
    let (net, mut node) = node();
    node.room = 1;
    assert_eq!(node.run(Path::FromPod, CLIENT, &to_world(&net, 2000, tcp::SYN), 0).reason, Reason::Out);
    assert_eq!(node.run(Path::FromPod, CLIENT, &to_world(&net, 2001, tcp::SYN), 0).reason, Reason::NatFull);
    assert_eq!(node.run(Path::FromPod, CLIENT, &to_world(&net, 2000, tcp::ACK), 0).reason, Reason::Out);
    assert_eq!(node.sizes(), [0, 1, 1], "a refused flow leaves nothing");
}

#[test]
fn a_flow_keeps_its_port_and_its_reply_finds_it() {
    let (net, mut node) = node();
    let out = node.run(Path::FromPod, CLIENT, &to_world(&net, 80, tcp::SYN), 0);
    let port = source_port(&out.frame);
    assert!(coil_packet::nat::lendable(port), "{port}");
    let again = node.run(Path::FromPod, CLIENT, &to_world(&net, 80, tcp::ACK), 0);
    assert_eq!(source_port(&again.frame), port);
    assert_eq!(node.run(Path::FromNet, UPLINK, &reply(&net, port, tcp::ACK), 0).reason, Reason::ReplyToPod);
    assert_eq!(node.sizes(), [0, 1, 1]);
}

#[test]
fn a_port_that_the_gateway_pod_has_for_itself_is_not_lent() {
    let (net, mut node) = node();
    let (word, bit) = coil_packet::ports::own(9090);
    let to_pod = |node: &mut Node<[u8; 4]>, port| {
        node.run(Path::FromNet, UPLINK, &reply(&net, port, tcp::SYN), 0).reason
    };
    assert_eq!(to_pod(&mut node, 9090), Reason::NatUnknown);
    node.own_ports.insert(word, bit);
    assert_ne!(to_pod(&mut node, 9090), Reason::NatUnknown, "it is the pod's");
    assert_eq!(to_pod(&mut node, 9091), Reason::NatUnknown);
    let out = node.run(Path::FromPod, CLIENT, &to_world(&net, 9090, tcp::SYN), 0);
    let port = source_port(&out.frame);
    assert!(out.reason == Reason::Out && port != 9090, "{port}");
    assert_eq!(node.run(Path::FromNet, UPLINK, &reply(&net, port, tcp::ACK), 0).reason, Reason::ReplyToPod);
}

#[test]
fn an_answered_connection_outlives_an_unanswered_one() {
    let (net, mut node) = node();
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

#[test]
fn a_closed_connection_is_forgotten_soon() {
    let (net, mut node) = node();
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

#[test]
fn a_client_has_so_many_ports_and_no_more() {
    let (net, mut node) = node();
    node.quota = 3;
    let reasons: Vec<Reason> = (0..4u16)
        .map(|n| node.run(Path::FromPod, CLIENT, &to_world(&net, 2000 + n, tcp::SYN), 0).reason)
        .collect();
    assert_eq!(reasons, [Reason::Out, Reason::Out, Reason::Out, Reason::NatQuota]);
    assert_eq!(node.sizes(), [0, 3, 3], "a refused flow leaves nothing");
    assert_eq!(node.run(Path::FromPod, CLIENT, &to_world(&net, 2000, tcp::ACK), 0).reason, Reason::Out);
}

/// Fewer than one attempt in a thousand fails when 95 % of the ports towards one remote are lent.
#[test]
fn ports_are_found_when_most_are_lent() {
    let (net, mut node) = node();
    node.room = 100_000;
    let clients = (0..=u8::MAX).map(|n| IpAddr::from([10, 64, 1, n]));
    node.world.clients = clients.map(|client| (net.gateway, client)).collect();
    let packet = |client: u32, sport: u16| {
        let [_, a, b, c] = client.to_be_bytes();
        let client = IpAddr::from([10, 64, 1 + a, b.wrapping_add(c)]);
        let inner = wire::tcp(Ip::new(client, net.world_local), sport, 443, tcp::SYN, b"");
        from(UPLINK, &wire::fou((client, net.gateway), 0, 5555, &inner))
    };
    let mut sport = (0..).map(|n: u32| (n, 1024 + (n.wrapping_mul(40_503) % 59_000) as u16));
    let mut until = |node: &mut Node<[u8; 4]>, percent: usize| {
        let (mut failed, mut tried) = (0, 0);
        while node.sizes()[2] < coil_packet::nat::PORTS as usize * percent / 100 {
            let (n, port) = sport.next().expect("numbers do not end");
            tried += 1;
            let reason = node.run(Path::FromNet, UPLINK, &packet(n % 200, port), 0).reason;
            assert!(matches!(reason, Reason::Out | Reason::NatPorts), "{reason:?}");
            failed += usize::from(reason == Reason::NatPorts);
        }
        assert!(failed * 1000 < tried, "{failed} of {tried} attempts failed on the way to {percent} %");
    };
    until(&mut node, 95);
    until(&mut node, 97);
}

#[test]
fn many_clients_share_one_gateway() {
    let (net, mut node) = node();
    let mut ports = std::collections::BTreeSet::new();
    for client in 1..=200u8 {
        // All from the same source port, through the tunnel.
        let client = IpAddr::from([10, 64, 1, client]);
        node.world.clients.push((net.gateway, client));
        let inner = wire::tcp(Ip::new(client, net.world_local), 40000, 443, tcp::SYN, b"");
        let frame = from(UPLINK, &wire::fou((client, net.gateway), 0, 5555, &inner));
        let outcome = node.run(Path::FromNet, UPLINK, &frame, 0);
        assert_eq!(outcome.reason, Reason::Out);
        assert!(ports.insert(source_port(&outcome.frame)), "two flows to one remote share a port");
    }
}

/// A fragment that comes before the first of its packet is lost and counted; when the sender repeats the packet, in
/// whatever order, all of it gets through, for what the first fragment said is known by then.
#[test]
fn fragments_that_were_lost_get_through_when_they_are_sent_again() {
    let (net, mut node) = node();
    let header = Ip::new(net.client, net.world_local);
    let datagram = wire::udp_datagram(header, 40000, 53, true, &[7; 592]);
    let [first, later] = wire::fragments(header, 17, 0x4321, &datagram, 400);
    let mut send = |fragment: &[u8]| node.run(Path::FromPod, CLIENT, &from(CLIENT, fragment), 0).reason;
    assert_eq!(send(&later), Reason::EgressFragment);
    assert_eq!([send(&first), send(&later)], [Reason::Out; 2]);
    assert_eq!([send(&later), send(&first)], [Reason::Out; 2]);
}

/// Fragments of several packets that come in turns each follow their own first one, and one before its first is lost
/// alone.
#[test]
fn fragments_come_in_turns() {
    let (net, mut node) = node();
    let packet = |id: u16, sport: u16| {
        let header = Ip::new(net.remote_client, net.world_local);
        let datagram = wire::udp_datagram(header, sport, 53, true, &[7; 592]);
        wire::fragments(header, 17, id, &datagram, 400)
    };
    let ends = (net.remote_client, net.gateway);
    let mut reason = |fragment: &[u8]| {
        node.run(Path::FromNet, UPLINK, &from(UPLINK, &wire::fou(ends, 0, 5555, fragment)), 0).reason
    };
    let [[a, a_later], [b, b_later], [c, c_later]] = [packet(1, 2001), packet(2, 2002), packet(3, 2003)];
    let sent = [&a, &b, &c_later, &a_later, &c, &b_later].map(|fragment| reason(fragment));
    let out = Reason::Out;
    assert_eq!(sent, [out, out, Reason::EgressFragment, out, out, out]);
    assert_eq!(reason(&c_later), out, "sent again");
}

#[test]
fn segmentation_of_anything_but_tcp_is_not_egress() {
    let (net, mut node) = node();
    // An answer in one piece, which somebody on the gateway's own node gives.
    let inner = wire::udp(Ip::new(net.remote_client, net.world_local), 40000, 53, b"question");
    let question = from(UPLINK, &wire::fou((net.remote_client, net.gateway), 0, 5555, &inner));
    let outcome = node.run(Path::FromNet, UPLINK, &question, 0);
    let port = source_port(&outcome.frame);
    let answer =
        from(world::GATEWAY, &wire::udp(Ip::new(net.world_local, net.gateway), 53, port, &[0; 3000]));
    assert_eq!(node.run(Path::ToPod, world::GATEWAY, &answer, 1000).reason, Reason::EgressGso);
    let udp = from(CLIENT, &wire::udp(Ip::new(net.client, net.world), 1, 2, &[0; 3000]));
    assert_eq!(node.run(Path::FromPod, CLIENT, &udp, 1000).reason, Reason::EgressGso);
    let tcp = from(CLIENT, &wire::tcp(Ip::new(net.client, net.world), 1, 2, tcp::ACK, &[0; 3000]));
    assert_eq!(node.run(Path::FromPod, CLIENT, &tcp, 1000).reason, Reason::ToGateway);
    assert_eq!(node.run(Path::FromPod, CLIENT, &tcp, 1433).reason, Reason::TooBig, "one byte too many");
    assert_eq!(node.run(Path::FromPod, CLIENT, &tcp, 1432).reason, Reason::ToGateway);
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
