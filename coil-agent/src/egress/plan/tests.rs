//! Plans from indices in memory.

use super::*;
use crate::{
    net::Link,
    watch::index::{EgressInfo, Endpoint, PoolInfo, SliceInfo},
};

fn egress(name: &str) -> EgressRef {
    EgressRef { namespace: "internet".into(), name: name.into() }
}

fn index() -> Index {
    let mut index = Index::default();
    let pool = PoolInfo { subnets: vec!["203.0.113.0/24".parse().unwrap()], deleting: false };
    index.pools.insert(ObjectKey::new("", "default"), pool);
    index.nodes.insert(ObjectKey::new("", "n1"), vec!["192.0.2.1".parse().unwrap()]);
    for (name, destination) in [("nat", "0.0.0.0/0"), ("six", "::/0")] {
        let info = EgressInfo {
            destinations: vec![destination.parse().unwrap()],
            sport_auto: name == "six",
            affinity: Some(60),
            originating_only: None,
            unknown: false,
        };
        index.egresses.insert(ObjectKey::new("internet", name), info);
    }
    let endpoints = vec![Endpoint { address: "203.0.113.1".parse().unwrap(), ready: true }];
    index.slices.insert(ObjectKey::new("internet", "nat-x"), SliceInfo { egress: egress("nat"), endpoints });
    index
}

fn attached(index: u32, egresses: &[&str], gateway: bool) -> Attached {
    let host = Link { index, name: format!("veth{index}"), mac: Mac([2, 0, 0, 0, 0, 9]), ..Link::default() };
    Attached {
        link: PodLink { host, mac: Mac([2, 0, 0, 0, 0, 1]), ipv4: "203.0.113.7".parse().ok(), ipv6: None },
        pod: Some(PodInfo {
            key: ObjectKey::new("a", &format!("p{index}")),
            uid: index.to_string(),
            egresses: Ok(egresses.iter().map(|name| egress(name)).collect()),
            gateway_of: gateway.then(|| egress("nat")),
            shaped: false,
            addresses: Vec::new(),
            ports: BTreeSet::new(),
        }),
        kernel_client: false,
        kernel_gateway: false,
    }
}

#[test]
fn clients_with_the_same_egresses_share_a_policy() {
    let facts = NodeFacts { fou_port: 5555, ..NodeFacts::default() };
    let pods = [
        attached(2, &["nat"], false),
        attached(3, &["nat"], false),
        attached(4, &["nat", "six"], false),
        attached(5, &[], true),
    ];
    let desired = desired(&index(), &facts, &pods);
    let policies: Vec<PolicyId> = desired.pods.iter().map(|p| p.policy).collect();
    assert_eq!(policies[0], policies[1]);
    assert!(policies[0] != policies[2] && policies[2] != 0 && policies[3] == 0);
    assert!(desired.pods[3].gateway && !desired.pods[3].client && desired.pods[0].client);
    assert_eq!(desired.egresses.len(), 2);
    let nat = &desired.egresses[&egress_id(&egress("nat"))];
    assert_eq!((nat.name.as_str(), nat.gateways.len(), nat.sport_auto), ("internet/nat", 1, false));
    let of = |policy: PolicyId, net: &str| desired.policies.get(&(policy, net.parse().unwrap())).copied();
    assert_eq!(of(policies[0], "0.0.0.0/0"), Some(Some(egress_id(&egress("nat")))));
    assert_eq!(of(policies[0], "203.0.113.0/24"), Some(None), "pools stay in the cluster");
    assert_eq!(of(policies[0], "192.0.2.1/32"), Some(None), "so do nodes");
    assert_eq!(of(policies[0], "::/0"), None);
    assert_eq!(of(policies[2], "::/0"), Some(Some(egress_id(&egress("six")))));
}

#[test]
fn a_former_client_whose_egresses_nobody_knows_is_shut_in() {
    let index = index();
    let wrong = PodInfo {
        egresses: Err(coil_api::annotation::AnnotationError::Name { key: "k".into(), name: ",".into() }),
        ..attached(2, &[], false).pod.unwrap()
    };
    let with = |pod: Option<PodInfo>| Attached { pod, ..attached(2, &[], false) };
    let former =
        NodeFacts { former_clients: ["203.0.113.7".parse().unwrap()].into(), ..NodeFacts::default() };
    for pod in [Some(wrong.clone()), None] {
        let shut = desired(&index, &former, &[with(pod.clone())]);
        let of = |net: &str| shut.policies.get(&(shut.pods[0].policy, net.parse().unwrap())).copied();
        assert!(shut.pods[0].client && shut.egresses.is_empty());
        assert!(matches!(of("0.0.0.0/0"), Some(Some(egress)) if !shut.egresses.contains_key(&egress)));
        assert_eq!(of("203.0.113.0/24"), Some(None), "pools stay in the cluster");
        // Whoever was no client stays none.
        let open = desired(&index, &NodeFacts::default(), &[with(pod)]);
        assert!(!open.pods[0].client && open.policies.is_empty());
    }
    let known = desired(&index, &former, &[attached(2, &[], false)]);
    assert!(!known.pods[0].client, "the API says that it is none any more");
}

#[test]
fn clients_of_an_egress_that_is_not_understood_are_shut_in() {
    let mut index = index();
    index.egresses.insert(ObjectKey::new("internet", "nat"), EgressInfo::unknown());
    let pods = [attached(2, &["nat", "six"], false), attached(3, &["six"], false)];
    let of = |facts: &NodeFacts, net: &str| {
        let desired = desired(&index, facts, &pods);
        let id = desired.policies.get(&(desired.pods[0].policy, net.parse().unwrap())).copied();
        (id, id.flatten().map(|id| desired.egresses.contains_key(&id)))
    };
    let nat = egress_id(&egress("nat"));
    assert_eq!(of(&NodeFacts::default(), "0.0.0.0/0"), (Some(Some(nat)), Some(false)), "it leads nowhere");
    assert_eq!(of(&NodeFacts::default(), "::/0"), (Some(Some(nat)), Some(false)), "nor does IPv6");
    assert_eq!(of(&NodeFacts::default(), "203.0.113.0/24").0, Some(None), "pools stay in the cluster");
    let former = ["10.20.0.0/16", "192.0.2.0/24"].map(|net| (nat, net.parse().unwrap()));
    let former = NodeFacts { former_destinations: former.into(), ..NodeFacts::default() };
    assert_eq!(of(&former, "10.20.0.0/16"), (Some(Some(nat)), Some(false)), "private ones, too");
    assert_eq!(of(&former, "0.0.0.0/0").0, None, "what never led there is open");
    let six = egress_id(&egress("six"));
    assert_eq!(of(&former, "::/0"), (Some(Some(six)), Some(true)), "the other Egress goes on");
    let names: Vec<_> = unknown_egresses(&index, &pods).into_iter().collect();
    assert_eq!(names, [(egress("nat"), vec!["a/p2".to_owned()])]);
}

#[test]
fn gateways_know_their_clients() {
    let mut index = index();
    let mut client = |name: &str, of: &str, addresses: &[&str]| {
        let pod = PodInfo {
            key: ObjectKey::new("b", name),
            uid: name.into(),
            egresses: Ok(vec![egress(of)]),
            gateway_of: None,
            shaped: false,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ports: BTreeSet::new(),
        };
        index.clients.insert(pod.key.clone(), pod);
    };
    client("far", "nat", &["203.0.113.77", "2001:db8::7"]);
    client("other", "six", &["203.0.113.78"]);
    let mut gateway = attached(5, &[], true);
    gateway.link.ipv4 = "203.0.113.1".parse().ok();
    let pods = [attached(2, &["nat"], false), attached(3, &[], false), gateway];
    let known = NodeFacts { knows_clients: true, ..NodeFacts::default() };
    let of = |index: &Index, facts: &NodeFacts| {
        let desired = desired(index, facts, &pods);
        let clients: Vec<String> = desired.clients.iter().map(|(_, client)| client.to_string()).collect();
        (clients, desired.pods[2].new_clients)
    };
    let both = vec!["203.0.113.7".to_owned(), "203.0.113.77".to_owned()];
    assert_eq!(of(&index, &known), (both.clone(), false), "of its families, and of its Egress");
    assert_eq!(of(&index, &NodeFacts::default()), (both.clone(), true), "not all are known");
    let mut client = |name: &str, of: &str| {
        let mut pod = index.clients.values().next().unwrap().clone();
        (pod.key.name, pod.egresses, pod.addresses) = (name.into(), Ok(vec![egress(of)]), vec![]);
        index.clients.insert(pod.key.clone(), pod);
    };
    client("new-of-other", "six");
    client("new", "nat");
    assert_eq!(of(&index, &known), (both, true), "one is being started");
    assert!(!desired(&index, &known, &pods[..2]).pods[0].new_clients);
}

#[test]
fn a_pod_of_unknown_hardware_address_is_left_to_the_kernel() {
    let unknown = |index, egresses: &[&str], gateway| {
        let mut attached = attached(index, egresses, gateway);
        attached.link.mac = Mac::default();
        attached
    };
    let pods = [unknown(2, &[], false), unknown(3, &["nat"], false), unknown(4, &[], true)];
    let desired = desired(&index(), &NodeFacts::default(), &pods);
    let links: Vec<u32> = desired.pods.iter().map(|pod| pod.ifindex).collect();
    assert_eq!(links, [3, 4], "a client is held to its Egress all the same");
}

#[test]
fn a_deleted_egress_has_no_policy_and_a_kernel_client_is_none_of_the_programs() {
    let mut kernel = attached(2, &["nat"], false);
    kernel.kernel_client = true;
    let gone = attached(3, &["gone"], false);
    let desired = desired(&index(), &NodeFacts::default(), [&gone]);
    assert!(desired.policies.is_empty() && desired.egresses.is_empty() && desired.pods[0].client);
    let desired = super::desired(&index(), &NodeFacts::default(), [&kernel]);
    assert!(!desired.pods[0].client, "its policy tells who may send it FOU, and nothing else");
    assert_eq!(desired.pods[0].policy, policy_id(&[egress("nat")]));
    assert_eq!(policy(&index(), &NodeFacts::default(), &[egress("gone")]), BTreeMap::new());
}

#[test]
fn ranges_of_the_cluster_are_told_from_those_that_are_private_alone() {
    let mut index = index();
    let net = |text: &str| -> IpNet { text.parse().unwrap() };
    index.service_ranges.insert(ObjectKey::new("", "s"), vec![net("10.96.0.0/12"), net("fd96::/108")]);
    let inside = PoolInfo { subnets: vec![net("100.64.8.0/24")], deleting: false };
    index.pools.insert(ObjectKey::new("", "inside"), inside);
    index.nodes.insert(ObjectKey::new("", "n2"), vec!["10.0.0.9".parse().unwrap()]);
    let facts =
        NodeFacts { in_cluster: vec![net("100.64.0.0/10"), net("203.0.113.128/25")], ..NodeFacts::default() };
    let ranges = desired(&index, &facts, []).ranges;
    let expected = [
        ("10.0.0.0/8", false),
        ("10.0.0.9/32", true),
        ("10.96.0.0/12", true),
        ("100.64.0.0/10", true),
        ("172.16.0.0/12", false),
        ("192.0.2.1/32", true),
        ("192.168.0.0/16", false),
        ("203.0.113.0/24", true),
        ("fc00::/7", false),
        ("fd96::/108", true),
    ];
    assert_eq!(ranges, expected.map(|(text, cluster)| (net(text), cluster)).into());
}

#[test]
fn an_egress_says_itself_whether_it_is_originating_only_or_else_the_node() {
    let mut index = index();
    for (of_egress, of_node, expected) in [
        (None, false, false),
        (None, true, true),
        (Some(true), false, true),
        (Some(true), true, true),
        (Some(false), true, false),
        (Some(false), false, false),
    ] {
        let facts = NodeFacts { originating_only: of_node, ..NodeFacts::default() };
        for info in index.egresses.values_mut() {
            info.originating_only = of_egress;
        }
        let desired = desired(&index, &facts, &[attached(2, &["nat"], false)]);
        let nat = &desired.egresses[&egress_id(&egress("nat"))];
        let found = [nat.originating_only, desired.pods[0].originating_only];
        assert_eq!(found, [expected; 2], "{of_egress:?} on a node of {of_node}");
    }
}
