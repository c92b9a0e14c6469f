//! Our encapsulation against that of a stock Linux 6.1: `golden/README.md`.

use std::net::IpAddr;

use coil_cases::{
    Net, World,
    host::{HostAddr, Node},
    pcap, wire,
};
use coil_packet::{Path, Reason};

/// What the capture's client is in our picture: its addresses, behind the client's veth.
fn world<A: HostAddr>(client: A, gateway: A) -> World {
    let net = if client.into().is_ipv4() { Net::v4() } else { Net::v6() };
    let mut world = World::new(&net);
    world.pods[0].0 = client.into();
    for (_, gateways, auto) in &mut world.egresses {
        *gateways = vec![gateway.into()];
        *auto = false;
    }
    world.policy.retain(|((_, len), _)| *len == 0);
    world
}

/// Encapsulates every packet that the capture's client sent through FOU to `gateway`, and compares.
/// `free`: bytes of the outer header that are Linux's own choice.
fn compare<A: HostAddr>(client: A, gateway: A, fou: usize, free: &[usize]) -> usize {
    let file = include_bytes!("../golden/fou-linux-6.1.pcap");
    let mut compared = 0;
    for frame in pcap::frames(file).expect("a capture file") {
        let address = |at: usize| frame.get(at..at + size_of::<A>()).map(|b| address_of::<A>(b));
        let (src, dst) = if fou == 28 { (26, 30) } else { (22, 38) };
        let ours = frame.len() > 14 + fou && address(src) == Some(client) && address(dst) == Some(gateway);
        let udp = 14 + fou - 8;
        if !ours || frame[udp + 2..udp + 4] != 5555u16.to_be_bytes() {
            continue;
        }
        let inner = &frame[14 + fou..];
        let mut node: Node<A> = Node::new(world(client, gateway), &[]);
        let ethernet = wire::ethernet([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], inner);
        let outcome = node.run(Path::FromPod, 11, &ethernet, 0);
        // Router solicitations of the link itself, and what the sender made fragments of.
        if matches!(outcome.reason, Reason::NotOwnSource | Reason::EgressFragment) {
            continue;
        }
        assert_eq!(outcome.reason, Reason::ToGateway, "inner packet {inner:02x?}");
        for (at, (is, golden)) in outcome.frame[14..].iter().zip(&frame[14..]).enumerate() {
            assert!(is == golden || free.contains(&at), "byte {at}: {is:#04x}, Linux sends {golden:#04x}");
        }
        assert_eq!(outcome.frame.len(), frame.len());
        compared += 1;
    }
    compared
}

fn address_of<A: HostAddr>(bytes: &[u8]) -> A {
    match bytes.len() {
        4 => A::of(IpAddr::from(<[u8; 4]>::try_from(bytes).expect("an address"))),
        _ => A::of(IpAddr::from(<[u8; 16]>::try_from(bytes).expect("an address"))),
    }
}

fn v6(last: u16) -> [u8; 16] {
    std::net::Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, last).octets()
}

/// Linux fills in an identification, and the header checksum with it.
const IPV4_ID: [usize; 4] = [4, 5, 10, 11];
/// A flow label, which Linux makes of a hash.
const IPV6_FLOW_LABEL: [usize; 3] = [1, 2, 3];

#[test]
fn ipip_with_a_fixed_source_port() {
    assert!(compare([10, 1, 0, 1], [10, 1, 0, 5], 28, &IPV4_ID) >= 5);
}

#[test]
fn ipip_with_hashed_source_ports() {
    let source_port = [20, 21];
    assert!(compare([10, 1, 0, 1], [10, 1, 0, 6], 28, &[&IPV4_ID[..], &source_port].concat()) >= 1);
}

#[test]
fn ip6tnl_with_hashed_source_ports() {
    let source_port = [40, 41];
    assert!(compare(v6(1), v6(6), 48, &[&IPV6_FLOW_LABEL[..], &source_port].concat()) >= 1);
}
