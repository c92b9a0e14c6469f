//! The node's own network: rules, and the MTU that pods get.

use coil_agent::net::{Rtnl, host};

use crate::topology::TestNs;

fn inside(ns: &TestNs, test: impl AsyncFnOnce(Rtnl) + Send) {
    ns.0.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Rtnl::open().unwrap()).await });
    })
    .unwrap();
}

/// A node with a wire of 1400 and one of 1450 bytes.
fn two_wires() -> (TestNs, TestNs) {
    let (node, peer) = (TestNs::new("node"), TestNs::new("peer"));
    let path = peer.path();
    let name = path.file_name().unwrap().to_str().unwrap();
    for (wire, mtu, v4, v6) in
        [("one", 1400, "172.18.0.1/24", "fd00:18::1/64"), ("two", 1450, "172.19.0.1/24", "fd00:19::1/64")]
    {
        node.ip(&format!("link add {wire} mtu {mtu} type veth peer name {wire} netns {name}"));
        node.ip(&format!("addr add {v4} dev {wire}"));
        node.ip(&format!("addr add {v6} dev {wire} nodad"));
        node.ip(&format!("link set {wire} up"));
        peer.ip(&format!("link set {wire} up"));
    }
    (node, peer)
}

#[test]
fn the_mtu_is_that_towards_the_default_route_of_either_family() {
    for (routes, mtu) in [
        (&["route add default via 172.19.0.2"][..], 1450),
        (&["-6 route add default via fd00:19::2"], 1450),
        (&["-6 route add default via fd00:18::2"], 1400),
        (&["route add default via 172.19.0.2", "-6 route add default via fd00:18::2"], 1400),
        (&["route add default nexthop via 172.18.0.2 nexthop via 172.19.0.2"], 1400),
    ] {
        let (node, _peer) = two_wires();
        for route in routes {
            node.ip(route);
        }
        inside(&node, async |rtnl| assert_eq!(host::mtu(&rtnl).await.unwrap(), mtu, "{routes:?}"));
    }
}

/// No link of a namespace is physical, so there is none to take the MTU of.
#[test]
fn without_a_default_route_links_made_by_software_do_not_count() {
    let (node, _peer) = two_wires();
    inside(&node, async |rtnl| assert_eq!(host::mtu(&rtnl).await.unwrap(), 1500));
}

#[test]
fn one_rule_of_each_family_however_often_it_is_prepared() {
    let node = TestNs::new("node");
    inside(&node, async |rtnl| {
        for _ in 0..2 {
            host::prepare(&rtnl, 116, 2000).await.unwrap();
        }
    });
    for family in ["-4", "-6"] {
        let rules = node.ip(&format!("{family} rule show"));
        let ours: Vec<&str> = rules.lines().filter(|line| line.contains("lookup 116")).collect();
        assert_eq!(ours, ["2000:\tfrom all lookup 116"], "{rules}");
    }
}
