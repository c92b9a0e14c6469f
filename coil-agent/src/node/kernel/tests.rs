use std::sync::Arc;

use coil_api::annotation::EgressRef;

use super::*;
use crate::{
    cni::fixture,
    net::{Link, Mac, pod::PodLink},
    node::Settings,
    watch::index::{EgressInfo, Endpoint, PodInfo, SliceInfo},
};

const OWN: &str = "10.64.0.1";
const SERVICE: &str = "10.96.0.7";
/// One is ready, the other is not, or not any more.
const GATEWAYS: [(&str, bool); 2] = [("10.64.7.7", true), ("10.64.7.8", false)];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn egress(name: &str) -> EgressRef {
    EgressRef { namespace: "internet".into(), name: name.into() }
}

/// A node by the kernel that knows of an Egress, and not of the clients of all nodes.
fn node() -> Arc<Node> {
    let node = fixture::node_with(Settings { egress: true, ..Settings::default() });
    node.feed.update(|index| {
        let key = ObjectKey::new("internet", "nat");
        let destinations = vec!["0.0.0.0/0".parse().unwrap()];
        index
            .egresses
            .insert(key.clone(), EgressInfo { destinations, unknown: false, ..EgressInfo::unknown() });
        index.services.insert(key.clone(), vec![ip(SERVICE)]);
        let endpoints = GATEWAYS.map(|(address, ready)| Endpoint { address: ip(address), ready }).into();
        index.slices.insert(key, SliceInfo { egress: egress("nat"), endpoints });
        true
    });
    node
}

/// A pod that has nothing to do with any Egress.
fn of(name: &str) -> PodInfo {
    PodInfo {
        key: ObjectKey::new("apps", name),
        uid: "1".into(),
        egresses: Ok(Vec::new()),
        gateway_of: None,
        shaped: false,
        addresses: vec![ip(OWN)],
        ports: BTreeSet::new(),
    }
}

fn pod(client_of: &[&str], gateway: bool, kernel_client: bool) -> Attached {
    let pod = PodInfo {
        egresses: Ok(client_of.iter().map(|name| egress(name)).collect()),
        gateway_of: gateway.then(|| egress("other")),
        ..of("p")
    };
    let link = PodLink { host: Link::default(), mac: Mac::default(), ipv4: OWN.parse().ok(), ipv6: None };
    Attached { link, pod: Some(pod), kernel_client, kernel_gateway: false }
}

#[tokio::test]
async fn all_gateways_of_a_client_may_send_to_it() {
    let wanted = node().kernel_wanted(&pod(&["nat"], false, false), "eth0").unwrap().unwrap();
    assert_eq!(wanted.tunnels.len(), 1);
    let peers = [SERVICE, GATEWAYS[0].0, GATEWAYS[1].0].map(ip);
    assert_eq!(wanted.peers, peers.into());
}

#[tokio::test]
async fn links_to_clients_stay_until_all_clients_are_known() {
    let node = node();
    assert!(!node.feed.knows_clients());
    let wanted = |client_of: &[&str], kernel_client| {
        node.kernel_wanted(&pod(client_of, true, kernel_client), "eth0").unwrap()
    };
    for found in [false, true] {
        assert_eq!(wanted(&[], found), None, "a gateway");
    }
    assert_eq!(wanted(&["nat"], true), None, "a gateway and client that was there before");
    let new = wanted(&["nat"], false).expect("a new client is shut in before all");
    assert!(!new.closed.is_empty() && new.clients.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_does_not_wait_for_an_egress_that_it_uses_itself() {
    let node = node();
    let client = PodInfo { addresses: vec![ip("10.64.3.3")], egresses: Ok(vec![egress("other")]), ..of("c") };
    node.feed.update(|index| {
        index.egresses.insert(ObjectKey::new("internet", "strange"), EgressInfo::unknown());
        index.clients.insert(client.key.clone(), client.clone());
        true
    });
    let path = std::env::temp_dir().join(format!("coil-alone-{}", std::process::id()));
    let ns = NetNs::create(&path).expect("a network namespace, which needs root");
    for troubled in ["strange", "noservice"] {
        node.feed.update(|index| {
            index
                .egresses
                .entry(ObjectKey::new("internet", "noservice"))
                .or_insert(EgressInfo { unknown: false, ..EgressInfo::unknown() });
            true
        });
        let pod = pod(&["nat", troubled], true, true);
        // It is not followed as a client, which a new one waits for.
        assert!(!node.feed.knows_clients() && !node.goes_on(&pod, true));
        let as_client = Attached { kernel_client: false, ..pod.clone() };
        assert!(node.kernel_wanted(&as_client, "eth0").unwrap_err().contains(troubled));
        let wanted = node.gateway_alone(&pod, "eth0", &path).await.unwrap();
        assert_eq!(wanted.clients, client.addresses.iter().copied().collect());
        assert_eq!(wanted.gateway, [ip(OWN)]);
        let peers = [GATEWAYS[0].0, GATEWAYS[1].0, "10.64.3.3"].map(ip);
        assert_eq!(wanted.peers, peers.into(), "gateways of its Egresses, and its clients");
    }
    drop(ns);
    NetNs::remove(&path).unwrap();
}
