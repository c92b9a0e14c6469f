use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use coil_api::{crd::AddressBlock, names::LABEL_NODE};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use crate::net::{
    reach::Reach,
    route::{Path, Routes},
};

/// What the router knows of the cluster. Plain data: fed by watch events, tested without a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Index {
    /// Block name → its node and subnets. None until the first complete list.
    blocks: Option<BTreeMap<String, Block>>,
    /// Node name → InternalIPs. None until the first complete list.
    nodes: Option<BTreeMap<String, Vec<IpAddr>>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Block {
    node: String,
    subnets: Vec<IpNet>,
}

impl Index {
    /// Both lists have been seen once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.blocks.is_some() && self.nodes.is_some()
    }

    /// Takes the complete list of blocks.
    pub fn reset_blocks<'a>(&mut self, blocks: impl IntoIterator<Item = &'a AddressBlock>) {
        self.blocks = Some(blocks.into_iter().map(|b| (b.name_any(), block_of(b))).collect());
    }

    /// Takes one new or changed block.
    pub fn apply_block(&mut self, block: &AddressBlock) {
        self.blocks.get_or_insert_default().insert(block.name_any(), block_of(block));
    }

    /// Forgets a block.
    pub fn delete_block(&mut self, name: &str) {
        self.blocks.get_or_insert_default().remove(name);
    }

    /// Takes the complete list of nodes.
    pub fn reset_nodes<'a>(&mut self, nodes: impl IntoIterator<Item = &'a Node>) {
        self.nodes = Some(nodes.into_iter().map(|n| (n.name_any(), addresses_of(n))).collect());
    }

    /// Takes one new or changed node.
    pub fn apply_node(&mut self, node: &Node) {
        self.nodes.get_or_insert_default().insert(node.name_any(), addresses_of(node));
    }

    /// Forgets a node: its blocks are no longer reached through it.
    pub fn delete_node(&mut self, name: &str) {
        self.nodes.get_or_insert_default().remove(name);
    }

    /// The routes that the node `own` should have, when `reach` is on its links.
    #[must_use]
    pub fn plan(&self, own: &str, reach: &Reach) -> Plan {
        let none = BTreeMap::new();
        let nodes = self.nodes.as_ref().unwrap_or(&none);
        // An address that this node has too would lead nowhere.
        let own_addresses: BTreeSet<&IpAddr> = nodes.get(own).into_iter().flatten().collect();
        let mut plan = Plan::default();
        for block in self.blocks.iter().flat_map(BTreeMap::values).filter(|block| block.node != own) {
            let addresses = nodes.get(&block.node).into_iter().flatten();
            let others: Vec<&IpAddr> = addresses.filter(|a| !own_addresses.contains(a)).collect();
            for subnet in &block.subnets {
                let family = || others.iter().filter(|a| a.is_ipv4() == subnet.addr().is_ipv4());
                let hop = family().find_map(|a| Some((**a, reach.link_of(**a)?)));
                if let Some((gateway, link)) = hop {
                    let path = Path { gateway: Some(gateway), ifindex: Some(link), ..Path::default() };
                    plan.routes.insert(*subnet, path);
                } else if let Some(first) = family().next() {
                    plan.elsewhere.insert((block.node.clone(), **first));
                }
            }
        }
        plan
    }
}

/// What the node should have, and what it cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The routes.
    pub routes: Routes,
    /// Nodes with blocks whose address is on no link of this node: they are behind a router, which has to
    /// know the way to their blocks.
    pub elsewhere: BTreeSet<(String, IpAddr)>,
}

fn block_of(block: &AddressBlock) -> Block {
    let node = block.labels().get(LABEL_NODE).cloned().unwrap_or_default();
    let fields = [block.block.ipv4.as_deref(), block.block.ipv6.as_deref()];
    let parse = |text: &str| match text.parse::<IpNet>() {
        Ok(subnet) => Some(subnet.trunc()),
        Err(error) => {
            tracing::warn!(block = %block.name_any(), subnet = text, %error, "the block's subnet is none; no route for it");
            None
        }
    };
    Block { node, subnets: fields.into_iter().flatten().filter_map(parse).collect() }
}

fn addresses_of(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, addresses: &[&str]) -> Node {
        let internal = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a}));
        let addresses: Vec<_> = internal.chain([json!({"type": "Hostname", "address": name})]).collect();
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"addresses": addresses}}))
            .unwrap()
    }

    fn block(index: i32, node: &str, ipv4: Option<&str>, ipv6: Option<&str>) -> AddressBlock {
        serde_json::from_value(json!({
            "apiVersion": "coil.cybozu.com/v2", "kind": "AddressBlock",
            "metadata": {"name": format!("default-{index}"), "labels": {"coil.cybozu.com/node": node}},
            "index": index, "ipv4": ipv4, "ipv6": ipv6,
        }))
        .unwrap()
    }

    fn plan(index: &Index, own: &str) -> Routes {
        index.plan(own, &Reach::of(&["172.18.0.0/24 2", "fd00:18::/64 2"])).routes
    }

    fn shown(routes: &Routes) -> Vec<String> {
        routes.iter().map(|(dst, path)| format!("{dst} via {}", path.gateway.unwrap())).collect()
    }

    #[test]
    fn each_family_has_its_next_hop_and_own_blocks_none() {
        let mut index = Index::default();
        index.reset_nodes(&[
            node("n1", &["172.18.0.1", "fd00:18::1"]),
            node("n2", &["fd00:18::2", "172.18.0.2"]),
        ]);
        assert!(!index.is_complete(), "blocks are not listed yet");
        index.reset_blocks(&[
            block(0, "n1", Some("10.64.0.0/27"), Some("fd64::/123")),
            block(1, "n2", Some("10.64.0.32/27"), Some("fd64::20/123")),
            block(2, "n2", Some("10.64.0.64/27"), None),
        ]);
        assert!(index.is_complete());
        assert_eq!(
            shown(&plan(&index, "n1")),
            ["10.64.0.32/27 via 172.18.0.2", "10.64.0.64/27 via 172.18.0.2", "fd64::20/123 via fd00:18::2"]
        );
        assert_eq!(shown(&plan(&index, "n2")), ["10.64.0.0/27 via 172.18.0.1", "fd64::/123 via fd00:18::1"]);
    }

    #[test]
    fn a_node_that_goes_or_moves_takes_its_routes_along() {
        let mut index = Index::default();
        index.reset_nodes(&[node("n1", &["172.18.0.1"]), node("n2", &["172.18.0.2"])]);
        index.reset_blocks(&[block(0, "n2", Some("10.64.0.0/27"), Some("fd64::/123"))]);
        assert_eq!(
            shown(&plan(&index, "n1")),
            ["10.64.0.0/27 via 172.18.0.2"],
            "no IPv6 address, no IPv6 route"
        );
        index.apply_node(&node("n2", &["172.18.0.9"]));
        assert_eq!(shown(&plan(&index, "n1")), ["10.64.0.0/27 via 172.18.0.9"]);
        index.delete_node("n2");
        assert!(plan(&index, "n1").is_empty(), "a deleted node's blocks are not advertised");
        index.apply_node(&node("n2", &["172.18.0.1"]));
        assert!(plan(&index, "n1").is_empty(), "an address of our own is no next hop");
    }

    #[test]
    fn a_next_hop_is_on_a_link() {
        let mut index = Index::default();
        index.reset_nodes(&[
            node("n1", &["172.18.0.1"]),
            node("n2", &["192.0.2.2", "172.18.0.2"]),
            node("n3", &["192.0.2.3", "fd00:18::3"]),
        ]);
        index.reset_blocks(&[
            block(0, "n2", Some("10.64.0.0/27"), None),
            block(1, "n3", Some("10.64.0.32/27"), Some("fd64::20/123")),
        ]);
        let reach = Reach::of(&["0.0.0.0/0 -", "172.18.0.0/24 2", "fd00:18::/64 2"]);
        let plan = index.plan("n1", &reach);
        assert_eq!(
            shown(&plan.routes),
            ["10.64.0.0/27 via 172.18.0.2", "fd64::20/123 via fd00:18::3"],
            "of several addresses the one on a link"
        );
        assert_eq!(plan.elsewhere, [("n3".to_owned(), "192.0.2.3".parse().unwrap())].into());
    }

    #[test]
    fn blocks_come_go_and_may_be_broken() {
        let mut index = Index::default();
        index.reset_nodes(&[node("n1", &["172.18.0.1"]), node("n2", &["172.18.0.2"])]);
        index.reset_blocks(&[]);
        index.apply_block(&block(3, "n2", Some("nonsense"), None));
        assert!(plan(&index, "n1").is_empty());
        index.apply_block(&block(3, "n2", Some("10.64.0.5/27"), None));
        assert_eq!(shown(&plan(&index, "n1")), ["10.64.0.0/27 via 172.18.0.2"], "host bits are cut");
        index.delete_block("default-3");
        assert!(plan(&index, "n1").is_empty());
    }
}
