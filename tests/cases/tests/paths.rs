//! Paths between nodes that are narrower than their links: what routers say of them is remembered.

use coil_cases::{
    Given, Net, World,
    host::{HostAddr, Node},
    wire::{self, Ip, tcp},
    world::{self, CLIENT, GATEWAY, UPLINK},
};
use coil_packet::{Path, Reason, abi::PathKey};

fn from(ifindex: u32, packet: &[u8]) -> Vec<u8> {
    wire::ethernet(world::host_mac(ifindex), world::pod_mac(ifindex), packet)
}

/// A router's error about FOU from `ends.0` to `ends.1`, which quotes no more than it has to.
fn error(net: &Net, ends: (std::net::IpAddr, std::net::IpAddr), mtu: u16) -> Vec<u8> {
    let inner = wire::tcp(Ip::new(net.world, ends.1), 443, 40000, tcp::ACK, &[7; 1400]);
    let quoted = wire::fou(ends, 0, 5555, &inner);
    let (kind, least) = if net.is_v4() { ([3, 4], 28) } else { ([2, 0], 48) };
    let [m, n] = mtu.to_be_bytes();
    from(UPLINK, &wire::error(Ip::new(net.router, ends.0), kind, [0, 0, m, n], &quoted[..least]))
}

/// A client's packet of `len` bytes.
fn of_client(net: &Net, len: u16, flags: u8) -> Vec<u8> {
    let headers = if net.is_v4() { 40 } else { 60 };
    let data = vec![7; usize::from(len) - headers];
    from(CLIENT, &wire::tcp(Ip::new(net.client, net.world), 40000, 443, flags, &data))
}

fn client_learns<A: HostAddr>(net: Net) {
    let mut node = Node::<A>::new(World::new(&net), &[]);
    let fits = 1400 - net.overhead();
    let run = |node: &mut Node<A>, len| {
        let frame = of_client(&net, len, tcp::ACK);
        let outcome = node.run(Path::FromPod, CLIENT, &frame, 0);
        if outcome.reason == Reason::TooBig {
            assert_eq!(
                &outcome.frame[14..],
                wire::too_big(net.remote_gateway, net.client, fits, &frame[14..])
            );
        }
        outcome.reason
    };
    assert_eq!(run(&mut node, fits + 1), Reason::ToGateway);
    let said = error(&net, (net.client, net.remote_gateway), 1400);
    assert_eq!(node.run(Path::FromNet, UPLINK, &said, 0).reason, Reason::PathNoted);
    // What was decided in this second holds on.
    node.now.set(node.now.get() + 1);
    assert_eq!(run(&mut node, fits + 1), Reason::TooBig);
    assert_eq!(run(&mut node, fits), Reason::ToGateway);
    assert_eq!(run(&mut node, fits + 1), Reason::TooBig, "a known flow, too");
    node.host_stack = true;
    assert_eq!(run(&mut node, fits + 1), Reason::TooBig, "by the host's stack, too");
    assert_eq!(run(&mut node, fits), Reason::ToGateway);
    node.host_stack = false;
    node.now.set(node.now.get() + 599);
    assert_eq!(run(&mut node, fits + 1), Reason::ToGateway, "not for ever");
}

/// A gateway of this node: the remote is told.
fn remote_learns<A: HostAddr>(net: Net) {
    let lease = Given::Nat {
        protocol: 6,
        gateway: (net.gateway, 50001),
        client: (net.remote_client, 40000),
        remote: (net.world_local, 443),
        idle: 1,
    };
    let mut node = Node::<A>::new(World::new(&net), &[lease]);
    let fits = 1400 - net.overhead();
    let reply = |len: u16| {
        let data = vec![7; usize::from(len) - if net.is_v4() { 40 } else { 60 }];
        from(UPLINK, &wire::tcp(Ip::new(net.world_local, net.gateway), 443, 50001, tcp::ACK, &data))
    };
    let run = |node: &mut Node<A>, len| node.run(Path::FromNet, UPLINK, &reply(len), 0);
    assert_eq!(run(&mut node, fits + 1).reason, Reason::ReplyToNode);
    let said = error(&net, (net.gateway, net.remote_client), 1400);
    assert_eq!(node.run(Path::FromNet, UPLINK, &said, 0).reason, Reason::PathNoted);
    node.now.set(node.now.get() + 1);
    let outcome = run(&mut node, fits + 1);
    assert_eq!(outcome.reason, Reason::TooBig);
    let told = wire::too_big(net.gateway, net.world_local, fits, &reply(fits + 1)[14..]);
    assert_eq!(&outcome.frame[14..], told);
    assert_eq!(run(&mut node, fits).reason, Reason::ReplyToNode);
    assert_eq!(
        node.run(Path::ToPod, GATEWAY, &reply(fits + 1), 0).reason,
        Reason::TooBig,
        "by the kernel, too"
    );
}

#[test]
fn a_narrow_path_to_a_gateway_is_remembered() {
    client_learns::<[u8; 4]>(Net::v4());
    client_learns::<[u8; 16]>(Net::v6());
}

#[test]
fn a_narrow_path_to_a_client_is_remembered() {
    remote_learns::<[u8; 4]>(Net::v4());
    remote_learns::<[u8; 16]>(Net::v6());
}

/// A router that quotes nothing of the packet inside is not believed that next to nothing fits.
#[test]
fn what_is_not_proven_is_believed_as_far_as_it_does_not_hurt() {
    fn remembered<A: HostAddr>(net: Net, mtu: u16) -> Option<u32> {
        let mut node = Node::<A>::new(World::new(&net), &[]);
        let said = error(&net, (net.client, net.remote_gateway), mtu);
        let _ = node.run(Path::FromNet, UPLINK, &said, 0);
        let path = PathKey { from: A::of(net.client), to: A::of(net.remote_gateway) };
        node.paths.get(&path).map(|path| path.mtu)
    }
    let mtus = [0, 68, 1279, 1280, 1329];
    let expected = [None, None, None, Some(1280), Some(1329)];
    assert_eq!(mtus.map(|mtu| remembered::<[u8; 4]>(Net::v4(), mtu)), expected);
    assert_eq!(mtus.map(|mtu| remembered::<[u8; 16]>(Net::v6(), mtu)), expected);
}

/// Of two narrow places the narrower one counts, as long as it is remembered, and for that pair of pods alone.
#[test]
fn a_path_does_not_become_wider() {
    fn try_it<A: HostAddr>(net: Net) {
        let mut node = Node::<A>::new(World::new(&net), &[]);
        let path = |node: &mut Node<A>, mtu, seconds: u32| {
            node.now.set(node.now.get() + seconds);
            let said = error(&net, (net.client, net.remote_gateway), mtu);
            assert_eq!(node.run(Path::FromNet, UPLINK, &said, 0).reason, Reason::PathNoted);
            let path = PathKey { from: A::of(net.client), to: A::of(net.remote_gateway) };
            let path = node.paths[&path];
            (path.mtu, node.now.get() - path.seen)
        };
        assert_eq!(path(&mut node, 1400, 0), (1400, 0));
        assert_eq!(path(&mut node, 1450, 10), (1400, 10), "one that is wider");
        assert_eq!(path(&mut node, 1400, 10), (1400, 0), "the same again");
        assert_eq!(path(&mut node, 1300, 10), (1300, 0), "one that is narrower");
        assert_eq!(path(&mut node, 1450, 600), (1450, 0), "when the other is forgotten");
        assert_eq!(node.paths.len(), 1, "nobody else's path has changed");
    }
    try_it::<[u8; 4]>(Net::v4());
    try_it::<[u8; 16]>(Net::v6());
}
