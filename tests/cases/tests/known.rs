//! Egress flows that are known: what is remembered of them changes no byte but MAC addresses, and holds no longer than it
//! may.

use coil_cases::{
    Net, World,
    host::Node,
    wire::{self, Ip, tcp},
    world::{self, CLIENT, PLAIN, UPLINK},
};
use coil_packet::{Class, Path, Reason};

const MACS: [u8; 12] = [9, 9, 9, 9, 9, 1, 8, 8, 8, 8, 8, 2];

fn node() -> (Net, Node<[u8; 4]>) {
    let net = Net::v4();
    let mut node = Node::new(World::new(&net), &[]);
    node.macs = Some(MACS);
    (net, node)
}

fn from(ifindex: u32, packet: &[u8]) -> Vec<u8> {
    wire::ethernet(world::host_mac(ifindex), world::pod_mac(ifindex), packet)
}

fn to_world(net: &Net, flags: u8, data: &[u8]) -> Vec<u8> {
    from(CLIENT, &wire::tcp(Ip::new(net.client, net.world), 40000, 443, flags, data))
}

/// Through the gateway of this node.
fn to_local(net: &Net, flags: u8) -> Vec<u8> {
    from(CLIENT, &wire::tcp(Ip::new(net.client, net.world_local), 40000, 443, flags, b""))
}

fn in_tunnel(net: &Net, flags: u8) -> Vec<u8> {
    let inner = wire::tcp(Ip::new(net.remote_client, net.world_local), 40000, 443, flags, b"");
    from(UPLINK, &wire::fou((net.remote_client, net.gateway), 0, 5555, &inner))
}

fn reply(net: &Net, flags: u8) -> Vec<u8> {
    from(UPLINK, &wire::tcp(Ip::new(net.world_local, net.gateway), 443, 40000, flags, b""))
}

/// Runs a packet; true when it went by what is remembered.
fn remembered(node: &mut Node<[u8; 4]>, path: Path, frame: &[u8], reason: Reason) -> bool {
    let ingress = if path == Path::FromPod { CLIENT } else { UPLINK };
    let asked = node.fib_queries.get();
    let outcome = node.run(path, ingress, frame, 0);
    assert_eq!(outcome.reason, reason);
    let by_memory = outcome.frame[..12] == MACS;
    assert_eq!(node.fib_queries.get() == asked, by_memory, "the routing is asked, or nobody");
    by_memory
}

/// The second packet of a flow leaves as the first did.
#[test]
fn every_case_again() {
    let (mut sent, mut by_memory) = (0, 0);
    for case in coil_cases::all() {
        let again = |first: (Reason, Vec<u8>), second: (Reason, Vec<u8>)| {
            assert_eq!(first.0, second.0, "{}", case.name);
            assert!(first.1[12..] == second.1[12..], "{}: {:?} and {:?}", case.name, first.1, second.1);
            usize::from(second.1[..12] == MACS && first.1[..12] != MACS)
        };
        if case.reason.class() != Class::Sent || !matches!(case.path, Path::FromPod | Path::FromNet) {
            continue;
        }
        sent += 1;
        let world = World::new(&case.net);
        by_memory += if case.net.is_v4() {
            let mut node = Node::<[u8; 4]>::new(world, &case.given);
            (node.macs, node.fast_udp, node.host_stack) = (Some(MACS), case.fast_udp, case.host_stack);
            let mut run = || node.run(case.path, case.ingress, &case.frame, 0);
            let (first, second) = (run(), run());
            again((first.reason, first.frame), (second.reason, second.frame))
        } else {
            let mut node = Node::<[u8; 16]>::new(world, &case.given);
            (node.macs, node.fast_udp, node.host_stack) = (Some(MACS), case.fast_udp, case.host_stack);
            let mut run = || node.run(case.path, case.ingress, &case.frame, 0);
            let (first, second) = (run(), run());
            again((first.reason, first.frame), (second.reason, second.frame))
        };
    }
    assert!(by_memory > 60 && by_memory < sent, "{by_memory} of {sent} by memory");
}

#[test]
fn a_decision_holds_for_its_second_and_its_epoch() {
    let net = Net::v4();
    for (path, syn, packet, reason) in [
        (Path::FromPod, to_world(&net, tcp::SYN, b""), to_world(&net, tcp::ACK, b""), Reason::ToGateway),
        (Path::FromPod, to_local(&net, tcp::SYN), to_local(&net, tcp::ACK), Reason::Out),
        (Path::FromNet, in_tunnel(&net, tcp::SYN), in_tunnel(&net, tcp::ACK), Reason::Out),
    ] {
        let (_, mut node) = node();
        assert!(!remembered(&mut node, path, &syn, reason));
        for _ in 0..3 {
            assert!(remembered(&mut node, path, &packet, reason));
        }
        assert!(!remembered(&mut node, path, &syn, reason), "what begins is decided");
        node.now.set(node.now.get() + 1);
        assert!(!remembered(&mut node, path, &packet, reason), "the next second");
        assert!(remembered(&mut node, path, &packet, reason));
        node.epoch.set(node.epoch.get() + 1);
        assert!(!remembered(&mut node, path, &packet, reason), "something has changed");
        assert!(remembered(&mut node, path, &packet, reason));
        node.macs = None;
        node.epoch.set(node.epoch.get() + 1);
        assert!(!remembered(&mut node, path, &packet, reason));
        assert!(!remembered(&mut node, path, &packet, reason), "nobody knows the neighbour");
    }
}

/// What changes while a decision is made is not in it: it does not hold for what is true now.
#[test]
fn a_decision_that_a_change_overtakes_does_not_hold() {
    let net = Net::v4();
    let reply_to = in_tunnel(&net, tcp::SYN);
    for (path, first, packet, reason) in [
        (Path::FromPod, None, to_world(&net, tcp::ACK, b""), Reason::ToGateway),
        (Path::FromPod, None, to_local(&net, tcp::ACK), Reason::Out),
        (Path::FromNet, None, in_tunnel(&net, tcp::ACK), Reason::Out),
        (Path::FromNet, Some(reply_to), reply(&net, tcp::ACK), Reason::ReplyToNode),
    ] {
        let (_, mut node) = node();
        if let Some(first) = first {
            let _ = node.run(Path::FromNet, UPLINK, &first, 0);
        }
        node.overtaken = true;
        assert!(!remembered(&mut node, path, &packet, reason));
        node.overtaken = false;
        assert!(!remembered(&mut node, path, &packet, reason), "what was decided before the change");
        assert!(remembered(&mut node, path, &packet, reason));
    }
}

#[test]
fn a_reply_is_remembered_likewise() {
    let (net, mut node) = node();
    assert!(!remembered(&mut node, Path::FromNet, &in_tunnel(&net, tcp::SYN), Reason::Out));
    let (syn_ack, data) = (reply(&net, tcp::SYN | tcp::ACK), reply(&net, tcp::ACK));
    assert!(!remembered(&mut node, Path::FromNet, &syn_ack, Reason::ReplyToNode));
    assert!(remembered(&mut node, Path::FromNet, &data, Reason::ReplyToNode));
    node.now.set(node.now.get() + 1);
    // That the client has sent something decides nothing about the way back.
    let _ = node.run(Path::FromNet, UPLINK, &in_tunnel(&net, tcp::ACK), 0);
    assert!(!remembered(&mut node, Path::FromNet, &data, Reason::ReplyToNode));
    assert!(remembered(&mut node, Path::FromNet, &data, Reason::ReplyToNode));
    // What the kernel delivers may have come from elsewhere.
    let by_stack = node.run(Path::ToPod, world::GATEWAY, &data, 0);
    assert!(by_stack.reason == Reason::ReplyToNode && by_stack.frame[..12] != MACS);
    // A client that has moved here.
    node.world.pods.push((net.remote_client, 55, world::Role::Client));
    node.epoch.set(node.epoch.get() + 1);
    assert_eq!(node.run(Path::FromNet, UPLINK, &data, 0).reason, Reason::ReplyToPod);
    assert_eq!(node.run(Path::FromNet, UPLINK, &data, 0).frame[..6], world::pod_mac(55));
}

#[test]
fn a_changed_policy_and_another_gateway_are_followed() {
    let (net, mut node) = node();
    let _ = remembered(&mut node, Path::FromPod, &to_world(&net, tcp::SYN, b""), Reason::ToGateway);
    assert!(remembered(&mut node, Path::FromPod, &to_world(&net, tcp::ACK, b""), Reason::ToGateway));
    // The gateway is leaving: its flow stays, a connection that begins does not.
    let gateway = |node: &mut Node<_>, flags| {
        node.run(Path::FromPod, CLIENT, &to_world(&net, flags, b""), 0).frame[30..34].to_vec()
    };
    let first = gateway(&mut node, tcp::ACK);
    node.world.leaving = vec![net.remote_gateway];
    node.epoch.set(node.epoch.get() + 1);
    assert_eq!(gateway(&mut node, tcp::ACK), first);
    assert_eq!(gateway(&mut node, tcp::ACK), first);
    let next = gateway(&mut node, tcp::SYN);
    assert_ne!(next, first);
    assert_eq!(gateway(&mut node, tcp::ACK), next);
    // Another Egress takes the destination: a pin of the former is none of it.
    for (_, egress) in &mut node.world.policy {
        if *egress == Some(1) {
            *egress = Some(4);
        }
    }
    node.epoch.set(node.epoch.get() + 1);
    let frame = to_world(&net, tcp::ACK, b"");
    assert_eq!(node.run(Path::FromPod, CLIENT, &frame, 0).reason, Reason::NoGateway);
    node.world.policy.clear();
    node.epoch.set(node.epoch.get() + 1);
    assert_eq!(node.run(Path::FromPod, CLIENT, &frame, 0).reason.class(), Class::Next);
}

#[test]
fn what_is_remembered_is_no_way_round_a_check() {
    let (net, mut node) = node();
    let _ = remembered(&mut node, Path::FromPod, &to_world(&net, tcp::SYN, b""), Reason::ToGateway);
    let packet = to_world(&net, tcp::ACK, b"");
    assert!(remembered(&mut node, Path::FromPod, &packet, Reason::ToGateway));
    assert_eq!(node.run(Path::FromPod, PLAIN, &packet, 0).reason, Reason::NotOwnSource, "another pod's link");
    let long = to_world(&net, tcp::ACK, &[0; 1433]);
    assert_eq!(node.run(Path::FromPod, CLIENT, &long, 0).reason, Reason::TooBig);
    let large = to_world(&net, tcp::ACK, &[0; 20_000]);
    assert_eq!(node.run(Path::FromPod, CLIENT, &large, 1433).reason, Reason::TooBig);
    assert_eq!(node.run(Path::FromPod, CLIENT, &large, 1432).reason, Reason::ToGateway);

    let _ = remembered(&mut node, Path::FromNet, &in_tunnel(&net, tcp::SYN), Reason::Out);
    assert!(remembered(&mut node, Path::FromNet, &in_tunnel(&net, tcp::ACK), Reason::Out));
    let last = wire::tcp(Ip::new(net.remote_client, net.world_local).ttl(1), 40000, 443, tcp::ACK, b"");
    let last = from(UPLINK, &wire::fou((net.remote_client, net.gateway), 0, 5555, &last));
    assert_eq!(node.run(Path::FromNet, UPLINK, &last, 0).reason, Reason::OutByStack);
    let inner = wire::tcp(Ip::new(net.remote_client, net.world_local), 40000, 443, tcp::ACK, b"");
    let forged = from(UPLINK, &wire::fou((net.remote, net.gateway), 0, 5555, &inner));
    assert_eq!(node.run(Path::FromNet, UPLINK, &forged, 0).reason, Reason::FouInner);
    let short =
        from(UPLINK, &wire::fou((net.remote_client, net.gateway), 0, 5555, &[&inner[..], &[0]].concat()));
    assert_eq!(node.run(Path::FromNet, UPLINK, &short, 0).reason, Reason::FouInner);
    // Its sender is a client no more.
    node.world.clients.clear();
    node.epoch.set(node.epoch.get() + 1);
    assert_eq!(node.run(Path::FromNet, UPLINK, &in_tunnel(&net, tcp::ACK), 0).reason, Reason::FouSender);
}

/// Leases end as they do without memory; a reset that was forged is found out by the client's next packet, in the same
/// second, too.
#[test]
fn a_remembered_connection_ends_as_others_do() {
    let (net, mut node) = node();
    let mut run = |frame: &[u8]| {
        let path = if frame[6..12] == world::pod_mac(CLIENT) { Path::FromPod } else { Path::FromNet };
        let ingress = if path == Path::FromPod { CLIENT } else { UPLINK };
        let reason = node.run(path, ingress, frame, 0).reason;
        assert!(matches!(reason, Reason::Out | Reason::ReplyToPod), "{reason:?}");
        node.states()
    };
    use coil_packet::nat::State;
    let states = |state: State| vec![state as u8];
    assert_eq!(run(&to_local(&net, tcp::SYN)), states(State::New));
    assert_eq!(run(&reply(&net, tcp::SYN | tcp::ACK)), states(State::Established));
    for _ in 0..2 {
        let _ = run(&to_local(&net, tcp::ACK));
        let _ = run(&reply(&net, tcp::ACK));
    }
    assert_eq!(run(&reply(&net, tcp::RST)), states(State::Reset));
    assert_eq!(run(&to_local(&net, tcp::ACK)), states(State::Established));
    assert_eq!(run(&to_local(&net, tcp::FIN | tcp::ACK)), states(State::ClientFin));
    assert_eq!(run(&reply(&net, tcp::FIN | tcp::ACK)), states(State::Closed));
}

/// The routing may look at the type of service, of what leaves a gateway: ECN is none.
#[test]
fn another_service_is_decided_anew() {
    let (net, mut node) = node();
    let packet = |tos| {
        let inner = wire::udp(Ip::new(net.remote_client, net.world_local).tos(tos), 40000, 53, b"");
        from(UPLINK, &wire::fou((net.remote_client, net.gateway), tos & 3, 5555, &inner))
    };
    assert!(!remembered(&mut node, Path::FromNet, &packet(0), Reason::Out));
    assert!(remembered(&mut node, Path::FromNet, &packet(0), Reason::Out));
    assert!(remembered(&mut node, Path::FromNet, &packet(2), Reason::Out));
    assert!(!remembered(&mut node, Path::FromNet, &packet(0xb8), Reason::Out));
    assert!(remembered(&mut node, Path::FromNet, &packet(0xb9), Reason::Out));
}

/// Two hops that want one slot take turns; none is taken for the other.
#[test]
fn a_slot_of_another_hop_is_none_of_this_flow() {
    let (net, mut node) = node();
    let _ = remembered(&mut node, Path::FromPod, &to_world(&net, tcp::SYN, b""), Reason::ToGateway);
    let packet = to_world(&net, tcp::ACK, b"");
    assert!(remembered(&mut node, Path::FromPod, &packet, Reason::ToGateway));
    node.change_hops(|way| {
        way.egress += 1;
        way.ingress ^= 0x1000_0000;
        way.check = way.sum();
    });
    assert!(!remembered(&mut node, Path::FromPod, &packet, Reason::ToGateway), "another hop");
    assert!(remembered(&mut node, Path::FromPod, &packet, Reason::ToGateway));
    node.change_hops(|way| way.next[3] ^= 1);
    assert!(!remembered(&mut node, Path::FromPod, &packet, Reason::ToGateway), "a mixture of two");
}

#[test]
fn stamps_differ_for_months() {
    use coil_packet::{
        abi::{Config, Known},
        hops::Moment,
    };
    let config = |epoch| Config { epoch, ..Config::default() };
    for epoch in [1, 2, 77, u32::MAX - 3] {
        let known = Known::since(&Moment { epoch, second: 5_000_000 }, 9);
        assert!(known.holds(&config(epoch), 5_000_000));
        for step in 1..=1000u32 {
            // No later epoch passes for this one within four months, nor a later second in the same epoch.
            let alias = epoch.wrapping_mul(0x9e37_79b1) ^ epoch.wrapping_add(step).wrapping_mul(0x9e37_79b1);
            assert!((alias ^ 5_000_000).abs_diff(5_000_000) > 1_000_000, "{epoch} {step}");
            assert!(!known.holds(&config(epoch), 5_000_000 + step));
        }
    }
}
