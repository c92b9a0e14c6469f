//! Table 119 in a real namespace.
//!
//! ```text
//!   AddressBlocks of the node ──▶ table 119: 10.64.0.0/27 dev lo proto 30
//!                                            (others' routes stay)
//! ```

use std::collections::BTreeSet;

use crate::topology::Topology;
use coil_agent::net::{export, route::Owned};
use ipnet::IpNet;

const EXPORT: Owned = Owned { table: 119, protocol: 30 };

#[test]
fn the_table_is_the_nodes_blocks() {
    let topology = Topology::new();
    let node = &topology.node;
    let blocks = |nets: &[&str]| nets.iter().map(|n| n.parse::<IpNet>().unwrap()).collect::<BTreeSet<_>>();
    topology.run(async |_, rtnl| {
        let changes = export::sync(&rtnl, EXPORT, &blocks(&["10.64.0.0/27", "fd64::/123"])).await.unwrap();
        assert_eq!((changes.set, changes.removed), (2, 0));
        assert_eq!(node.ip("route show table 119").trim(), "10.64.0.0/27 dev lo proto 30 scope link");
        assert!(node.ip("-6 route show table 119").starts_with("fd64::/123 dev lo proto 30"));

        node.ip("route add 192.0.2.0/24 dev lo table 119 proto static");
        node.ip("route add 10.99.0.0/27 dev lo table 119 proto 30");
        node.ip("-6 route add fd99::/123 dev lo table 119 proto 30");
        node.ip("route del 10.64.0.0/27 table 119");
        let changes = export::sync(&rtnl, EXPORT, &blocks(&["10.64.0.0/27", "fd64::/123"])).await.unwrap();
        assert_eq!((changes.set, changes.removed), (1, 2));
        let changes = export::sync(&rtnl, EXPORT, &blocks(&["10.64.0.0/27", "fd64::/123"])).await.unwrap();
        assert_eq!((changes.set, changes.removed), (0, 0), "the second time nothing changes");

        export::sync(&rtnl, EXPORT, &BTreeSet::new()).await.unwrap();
        assert_eq!(node.ip("route show table 119").trim(), "192.0.2.0/24 dev lo proto static scope link");
        assert_eq!(node.ip("-6 route show table 119"), "");
    });
}

#[test]
fn a_foreign_route_to_a_block_is_an_error_and_stays() {
    let topology = Topology::new();
    topology.run(async |_, rtnl| {
        topology.node.ip("route add 10.64.0.0/27 dev lo table 119 proto static");
        let blocks = ["10.64.0.0/27", "10.64.0.32/27"].map(|n| n.parse().unwrap()).into();
        let error = export::sync(&rtnl, EXPORT, &blocks).await.unwrap_err().to_string();
        assert!(error.contains("10.64.0.0/27"), "{error}");
        let table = topology.node.ip("route show table 119");
        assert!(table.contains("10.64.0.0/27 dev lo proto static"), "{table}");
        assert!(table.contains("10.64.0.32/27 dev lo proto 30"), "the others are there: {table}");
    });
}
