//! Flows over time: what is remembered, for how long, and what makes the programs decide anew.

use coil_cases::{
    Flow, Net, World,
    host::{self, Node},
    wire::{self, Ip, tcp},
    world::{self, CLIENT, PLAIN, UPLINK},
};
use coil_packet::{
    Path, Reason,
    abi::{FlowValue, PodValue, Way, pod_flag, way_kind},
    flow::{self, Limits, Phase},
};

fn node() -> (Net, Node<[u8; 4]>) {
    let net = Net::v4();
    (net, Node::new(World::new(&net), &[]))
}

fn from(ifindex: u32, packet: &[u8]) -> Vec<u8> {
    wire::ethernet(world::host_mac(ifindex), world::pod_mac(ifindex), packet)
}

fn to_remote(net: &Net, flags: u8, data: &[u8]) -> Vec<u8> {
    from(PLAIN, &wire::tcp(Ip::new(net.plain, net.remote), 40000, 80, flags, data))
}

fn to_local(net: &Net, flags: u8) -> Vec<u8> {
    from(PLAIN, &wire::tcp(Ip::new(net.plain, net.client), 40000, 80, flags, b""))
}

#[test]
fn a_known_flow_asks_the_routing_once_a_second() {
    let (net, mut node) = node();
    let send = |node: &mut Node<_>, flags| {
        assert_eq!(node.run(Path::FromPod, PLAIN, &to_remote(&net, flags, b""), 0).reason, Reason::ToNode);
        node.fib_queries.get()
    };
    assert_eq!(send(&mut node, tcp::SYN), 1);
    for _ in 0..5 {
        assert_eq!(send(&mut node, tcp::ACK), 1);
    }
    node.now.set(node.now.get() + 1);
    assert_eq!(send(&mut node, tcp::ACK), 2);
    node.epoch.set(node.epoch.get() + 1);
    assert_eq!(send(&mut node, tcp::ACK), 3, "something has changed");
    assert_eq!(send(&mut node, tcp::ACK), 3);
}

/// The packet that is decided about goes by the kernel's search for the neighbour, which keeps its knowledge fresh;
/// those that follow in the same second have the MAC addresses of the answer.
#[test]
fn a_known_neighbour_is_searched_once_a_second() {
    let (net, mut node) = node();
    let macs = [9, 9, 9, 9, 9, 1, 8, 8, 8, 8, 8, 2];
    let send = |node: &mut Node<_>, flags| {
        let frame = to_remote(&net, flags, b"");
        let outcome = node.run(Path::FromPod, PLAIN, &frame, 0);
        assert_eq!(outcome.reason, Reason::ToNode);
        (outcome.frame[..12] == macs, outcome.frame[..12] == frame[..12])
    };
    assert_eq!(send(&mut node, tcp::SYN), (false, true));
    assert_eq!(send(&mut node, tcp::ACK), (false, true), "the neighbour is not known yet");
    node.macs = Some(macs);
    for _ in 0..3 {
        node.now.set(node.now.get() + 1);
        assert_eq!(send(&mut node, tcp::ACK), (false, true));
        assert_eq!(send(&mut node, tcp::ACK), (true, false));
        assert_eq!(send(&mut node, tcp::ACK), (true, false));
    }
    node.epoch.set(node.epoch.get() + 1);
    assert_eq!(send(&mut node, tcp::ACK), (false, true), "something has changed");
}

#[test]
fn a_decision_follows_the_pod() {
    let (net, mut node) = node();
    let deliver = |node: &mut Node<_>, flags| node.run(Path::FromPod, PLAIN, &to_local(&net, flags), 0).frame;
    let first = deliver(&mut node, tcp::SYN);
    assert_eq!(first[..6], world::pod_mac(CLIENT));
    node.world.pods[0].1 = 33;
    node.epoch.set(node.epoch.get() + 1);
    assert_eq!(deliver(&mut node, tcp::ACK)[..6], world::pod_mac(33));
    // Without an agent: within a second.
    node.world.pods[0].1 = 34;
    node.now.set(node.now.get() + 1);
    assert_eq!(deliver(&mut node, tcp::ACK)[..6], world::pod_mac(34));
}

/// By its link a pod takes what has its hardware address, past the link everything.
#[test]
fn a_pod_without_a_known_address_is_reached_past_its_link() {
    for (mac, flags, kind) in [
        ([2, 0, 0, 0, 0, 1], pod_flag::BY_KERNEL, way_kind::POD_BY_LINK),
        ([0, 0, 0, 0, 0, 1], pod_flag::BY_KERNEL, way_kind::POD_BY_LINK),
        ([0; 6], pod_flag::BY_KERNEL, way_kind::POD),
        ([2, 0, 0, 0, 0, 1], 0, way_kind::POD),
    ] {
        let mut way = Way::default();
        way.to_pod(&PodValue { mac, flags, ..PodValue::default() });
        assert_eq!(way.kind, kind, "{mac:?}, flags {flags}");
    }
}

#[test]
fn a_longer_packet_is_decided_anew() {
    let (net, mut node) = node();
    assert_eq!(node.run(Path::FromPod, PLAIN, &to_remote(&net, tcp::SYN, b""), 0).reason, Reason::ToNode);
    let long = to_remote(&net, tcp::ACK, &[0; 1461]);
    assert_eq!(node.run(Path::FromPod, PLAIN, &long, 0).reason, Reason::ForwardTooBig);
    let exact = to_remote(&net, tcp::ACK, &[0; 1460]);
    assert_eq!(node.run(Path::FromPod, PLAIN, &exact, 0).reason, Reason::ToNode);
}

#[test]
fn segments_count_not_the_whole() {
    let (net, mut node) = node();
    let large = to_remote(&net, tcp::ACK, &[0; 20_000]);
    let _ = node.run(Path::FromPod, PLAIN, &to_remote(&net, tcp::SYN, b""), 0);
    assert_eq!(node.run(Path::FromPod, PLAIN, &large, 1460).reason, Reason::ToNode);
    assert_eq!(node.run(Path::FromPod, PLAIN, &large, 1461).reason, Reason::ForwardTooBig);
    // The client's MTU is 1400.
    let _ = node.run(Path::FromPod, PLAIN, &to_local(&net, tcp::SYN), 0);
    let large = from(PLAIN, &wire::tcp(Ip::new(net.plain, net.client), 40000, 80, tcp::ACK, &[0; 20_000]));
    assert_eq!(node.run(Path::FromPod, PLAIN, &large, 1360).reason, Reason::ToPod);
    assert_eq!(node.run(Path::FromPod, PLAIN, &large, 1361).reason, Reason::ForwardTooBig);
}

/// A known flow is no way round the check of the source.
#[test]
fn a_forged_packet_of_a_known_flow_is_the_kernels() {
    let (net, mut node) = node();
    assert_eq!(node.run(Path::FromPod, PLAIN, &to_remote(&net, tcp::SYN, b""), 0).reason, Reason::ToNode);
    let forged = to_remote(&net, tcp::ACK, b"");
    assert_eq!(node.run(Path::FromPod, CLIENT, &forged, 0).reason, Reason::NotOwnSource);
    assert_eq!(node.run(Path::FromNet, UPLINK, &forged, 0).reason, Reason::NotAPod);
}

#[test]
fn a_mixture_of_two_decisions_is_none() {
    let (net, mut node) = node();
    let _ = node.run(Path::FromPod, PLAIN, &to_remote(&net, tcp::SYN, b""), 0);
    let key = host::key::<[u8; 4]>(&Flow::fast(6, (net.plain, 40000), (net.remote, 80)));
    let value = node.flow(&key).unwrap();
    let way = value.upward;
    assert_eq!(way.check, way.sum());
    for change in [
        |way: &mut coil_packet::abi::Way| way.egress += 1,
        |way: &mut coil_packet::abi::Way| way.next[3] ^= 1,
        |way: &mut coil_packet::abi::Way| way.kind ^= 1,
        |way: &mut coil_packet::abi::Way| way.fits += 1,
        |way: &mut coil_packet::abi::Way| way.epoch += 1,
    ] {
        let mut mixed = way;
        change(&mut mixed);
        assert_ne!(mixed.check, mixed.sum());
    }
}

#[test]
fn both_directions_of_one_flow_share_its_entry() {
    let (net, mut node) = node();
    let _ = node.run(Path::FromPod, PLAIN, &to_local(&net, tcp::SYN), 0);
    let reply = from(CLIENT, &wire::tcp(Ip::new(net.client, net.plain), 80, 40000, tcp::SYN | tcp::ACK, b""));
    assert_eq!(node.run(Path::FromPod, CLIENT, &reply, 0).frame[..6], world::pod_mac(PLAIN));
    assert_eq!(node.run(Path::FromPod, CLIENT, &reply, 0).frame[..6], world::pod_mac(PLAIN));
    assert_eq!(node.sizes()[0], 1);
}

/// Marks that find no room are counted, and keep UDP from being fast: an answer of a service could be one.
#[test]
fn a_full_table_loses_marks_and_stops_udp() {
    let (net, mut node) = node();
    node.fast_udp = true;
    node.room = 1;
    let datagram = |port| from(PLAIN, &wire::udp(Ip::new(net.plain, net.remote), port, 53, b""));
    assert_eq!(node.run(Path::FromPod, PLAIN, &datagram(1), 0).reason, Reason::ToNode);
    assert_eq!(node.run(Path::ToNet, UPLINK, &datagram(2), 0).reason, Reason::MarkLost);
    assert!(node.lost);
    node.room = 10;
    assert_eq!(node.run(Path::FromPod, PLAIN, &datagram(1), 0).reason, Reason::ToNode, "a known flow");
    assert_eq!(node.run(Path::FromPod, PLAIN, &datagram(3), 0).reason, Reason::NotFastFlow);
    let syn = to_remote(&net, tcp::SYN, b"");
    assert_eq!(node.run(Path::FromPod, PLAIN, &syn, 0).reason, Reason::ToNode, "TCP begins with a SYN");
    node.lost = false;
    assert_eq!(node.run(Path::FromPod, PLAIN, &datagram(3), 0).reason, Reason::ToNode);
}

/// Where connection tracking forgets, we do, and not before.
#[test]
fn flows_live_as_long_as_connection_tracking_remembers() {
    let limits = Limits { tcp_new: 120, tcp_open: 86_400, tcp_closing: 300, udp: 180, echo: 30 };
    let value = |phase| FlowValue { seen: 1000, phase: phase as u8, ..FlowValue::default() };
    for (protocol, phase, limit) in [
        (6, Phase::New, 120),
        (6, Phase::Open, 86_400),
        (6, Phase::Closing, 300),
        (17, Phase::Open, 180),
        (1, Phase::Open, 30),
        (58, Phase::Open, 30),
    ] {
        assert!(!flow::expired(protocol, &value(phase), 1000 + limit, &limits));
        assert!(flow::expired(protocol, &value(phase), 1000 + limit + 2, &limits));
        assert!(!flow::expired(protocol, &value(phase), 999, &limits), "a clock that is a little behind");
    }
    let forever = Limits { tcp_open: u32::MAX, ..limits };
    assert!(!flow::expired(6, &value(Phase::Open), u32::MAX, &forever));
}

/// FIN and RST after hours of idleness are still the fast flow's.
#[test]
fn an_idle_flow_ends_as_it_began() {
    for flags in [tcp::FIN | tcp::ACK, tcp::RST] {
        let (net, mut node) = node();
        let _ = node.run(Path::FromPod, PLAIN, &to_remote(&net, tcp::SYN, b""), 0);
        let _ = node.run(Path::FromPod, PLAIN, &to_remote(&net, tcp::ACK, b""), 0);
        node.now.set(node.now.get() + 7 * 3600);
        let end = to_remote(&net, flags, b"");
        assert_eq!(node.run(Path::FromPod, PLAIN, &end, 0).reason, Reason::ToNode);
    }
}
