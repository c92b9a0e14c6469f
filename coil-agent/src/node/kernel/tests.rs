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

fn pod(client_of: &[&str], gateway: bool, kernel_client: bool) -> Attached {
    let pod = PodInfo {
        key: ObjectKey::new("apps", "p"),
        uid: "1".into(),
        egresses: Ok(client_of.iter().map(|name| egress(name)).collect()),
        gateway_of: gateway.then(|| egress("other")),
        shaped: false,
        addresses: vec![ip(OWN)],
        ports: BTreeSet::new(),
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
