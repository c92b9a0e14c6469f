//! What the index takes out of each kind of object. Bad values are left out, with a warning.

use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

use coil_api::{
    annotation::{EgressRef, egresses_of_pod, pool_of_namespace},
    crd::{AddressPool, Egress, EgressSpec, SessionAffinity},
    names::{APP_NAME, COMPONENT_EGRESS, LABEL_APP_COMPONENT, LABEL_APP_INSTANCE, LABEL_APP_NAME},
};
use coil_packet::abi::egress_flag;
use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Resource, ResourceExt};
use tracing::warn;

use super::index::{EgressInfo, Endpoint, ObjectKey, PodInfo, PoolInfo, SliceInfo};

/// Label of an EndpointSlice: its Service.
pub const LABEL_SERVICE: &str = "kubernetes.io/service-name";

/// With one of these annotations the `bandwidth` plugin, which runs after coil, makes an ingress qdisc on
/// the pod's host link.
const ANN_BANDWIDTH: [&str; 2] = ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"];

/// Type of a node's address that other nodes reach it by.
const INTERNAL_IP: &str = "InternalIP";

/// The key of an object.
#[must_use]
pub fn key<K: Resource>(object: &K) -> ObjectKey {
    let meta = object.meta();
    ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// A pod; none when it has the host's network.
#[must_use]
pub fn pod(pod: &Pod) -> Option<PodInfo> {
    if pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default() {
        return None;
    }
    let label = |name: &str| pod.labels().get(name).map(String::as_str);
    let is_gateway =
        label(LABEL_APP_NAME) == Some(APP_NAME) && label(LABEL_APP_COMPONENT) == Some(COMPONENT_EGRESS);
    let key = key(pod);
    let gateway_of = label(LABEL_APP_INSTANCE)
        .filter(|_| is_gateway)
        .map(|name| EgressRef { namespace: key.namespace.clone(), name: name.to_owned() });
    let ports = if gateway_of.is_some() { ports_of(pod) } else { BTreeSet::new() };
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    Some(PodInfo {
        uid: pod.uid().unwrap_or_default(),
        egresses: egresses_of_pod(pod.metadata.annotations.as_ref()),
        gateway_of,
        shaped: ANN_BANDWIDTH.iter().any(|name| pod.annotations().contains_key(*name)),
        addresses: ips.filter_map(|ip| ip.ip.parse().ok()).collect(),
        ports,
        key,
    })
}

/// The ports on which a pod's containers say that they listen, and those that the kubelet looks at.
fn ports_of(pod: &Pod) -> BTreeSet<u16> {
    let spec = pod.spec.iter();
    let containers =
        spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let ports = containers.flat_map(|container| {
        let stated = container.ports.iter().flatten().map(|port| port.container_port);
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        let probed = probes.into_iter().flatten().flat_map(|probe| {
            let http = probe.http_get.as_ref().map(|action| &action.port);
            let tcp = probe.tcp_socket.as_ref().map(|action| &action.port);
            let number = |port: &IntOrString| match port {
                IntOrString::Int(port) => Some(*port),
                // The name of a stated one.
                IntOrString::String(_) => None,
            };
            let grpc = probe.grpc.as_ref().map(|action| action.port);
            [http.and_then(number), tcp.and_then(number), grpc].into_iter().flatten()
        });
        stated.chain(probed).collect::<Vec<_>>()
    });
    ports.filter_map(|port| u16::try_from(port).ok()).collect()
}

/// A pod that is a client of an Egress, or whose annotation is wrong, on some node. One that has ended has its address no more, and one that no node has
/// was never given any.
#[must_use]
pub fn client(pod: &Pod) -> Option<PodInfo> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    if !has_node || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    self::pod(pod).filter(|info| info.egresses.as_ref().map_or(true, |egresses| !egresses.is_empty()))
}

/// Cluster addresses of a Service.
#[must_use]
pub fn service(service: &Service) -> Option<Vec<IpAddr>> {
    let spec = service.spec.as_ref()?;
    let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut addresses: Vec<IpAddr> = addresses.filter_map(|address| address.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Some(addresses)
}

/// The same on a node that does no egress: the pod is neither client nor gateway, whatever it says.
#[must_use]
pub fn pod_without_egress(pod: &Pod) -> Option<PodInfo> {
    self::pod(pod).map(|info| PodInfo { egresses: Ok(Vec::new()), gateway_of: None, ..info })
}

/// The pool that a namespace's pods get addresses of.
#[must_use]
pub fn namespace(namespace: &Namespace) -> Option<String> {
    Some(pool_of_namespace(namespace.metadata.annotations.as_ref()).to_owned())
}

/// An Egress.
#[must_use]
pub fn egress(egress: &Egress) -> Option<EgressInfo> {
    let spec = &egress.spec;
    let what = || format!("destination of Egress {}", key(egress));
    Some(EgressInfo {
        destinations: parse_all(spec.destinations.iter().map(String::as_str), what)
            .map(|n: IpNet| n.trunc())
            .collect(),
        sport_auto: spec.fou_source_port_auto,
        affinity: (spec.session_affinity == SessionAffinity::ClientIP).then(|| seconds_of_affinity(spec)),
        originating_only: spec.originating_only,
        unknown: false,
    })
}

/// The longest affinity that a Service may have, in seconds.
const LONGEST_AFFINITY: u32 = 86_400;

/// How long a client keeps its gateway.
fn seconds_of_affinity(spec: &EgressSpec) -> u32 {
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let said = config.and_then(|of| of.timeout_seconds).and_then(|seconds| u32::try_from(seconds).ok());
    // The API server refuses all others for the Service.
    said.filter(|seconds| (1..=LONGEST_AFFINITY).contains(seconds)).unwrap_or(egress_flag::DEFAULT_AFFINITY)
}

/// An EndpointSlice; none when it belongs to no Service.
#[must_use]
pub fn slice(slice: &EndpointSlice) -> Option<SliceInfo> {
    let key = key(slice);
    let name = slice.labels().get(LABEL_SERVICE)?.clone();
    let mut endpoints = Vec::new();
    for endpoint in &slice.endpoints {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        // A missing `ready` means yes, says its API documentation.
        let ready = conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or_default();
        let what = || format!("address of EndpointSlice {key}");
        let addresses = parse_all(endpoint.addresses.iter().map(String::as_str), what);
        endpoints.extend(addresses.map(|address| Endpoint { address, ready }));
    }
    Some(SliceInfo { egress: EgressRef { namespace: key.namespace, name }, endpoints })
}

/// A pool.
#[must_use]
pub fn pool(pool: &AddressPool) -> Option<PoolInfo> {
    let subnets = pool.spec.subnets.iter().flat_map(|s| s.ipv4.iter().chain(&s.ipv6)).map(String::as_str);
    Some(PoolInfo {
        subnets: parse_all(subnets, || format!("subnet of AddressPool {}", key(pool)))
            .map(|n: IpNet| n.trunc())
            .collect(),
        deleting: pool.metadata.deletion_timestamp.is_some(),
    })
}

/// The addresses by which other nodes reach a node.
#[must_use]
pub fn node(node: &Node) -> Option<Vec<IpAddr>> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = addresses.filter(|a| a.type_ == INTERNAL_IP).map(|a| a.address.as_str());
    Some(parse_all(internal, || format!("InternalIP of Node {}", node.name_any())).collect())
}

/// A range of Services.
#[must_use]
pub fn service_range(range: &ServiceCIDR) -> Option<Vec<IpNet>> {
    let cidrs = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()).map(String::as_str);
    Some(parse_all(cidrs, || format!("range of ServiceCIDR {}", range.name_any())).collect())
}

fn parse_all<'a, T: FromStr>(
    texts: impl Iterator<Item = &'a str>,
    what: impl Fn() -> String,
) -> impl Iterator<Item = T> {
    texts.filter_map(move |text| {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            warn!("{}: {text:?} is ignored, it is not understood", what());
        }
        parsed
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn pods() {
        let client = pod(&from(json!({
            "metadata": {"namespace": "a", "name": "p", "uid": "1",
                "annotations": {"egress.coil.cybozu.com/internet": "nat"}},
            "status": {"podIPs": [{"ip": "10.64.0.1"}, {"ip": "fd64::1"}]},
        })))
        .unwrap();
        assert_eq!(client.egresses.unwrap()[0].to_string(), "internet/nat");
        assert_eq!((client.gateway_of, client.addresses.len()), (None, 2));
        let labels = |component: &str| {
            json!({"app.kubernetes.io/name": "coil",
            "app.kubernetes.io/component": component, "app.kubernetes.io/instance": "nat"})
        };
        let gateway = |component: &str| {
            pod(&from(
                json!({"metadata": {"namespace": "internet", "name": "g", "labels": labels(component)}}),
            ))
            .unwrap()
            .gateway_of
        };
        assert_eq!(gateway("egress").unwrap().to_string(), "internet/nat");
        assert_eq!(gateway("ipam"), None);
        assert!(client.ports.is_empty(), "only a gateway's count");
        let sidecars = pod(&from(json!({
            "metadata": {"namespace": "internet", "name": "g", "labels": labels("egress")},
            "spec": {
                "initContainers": [{"name": "i", "ports": [{"containerPort": 2000}]}],
                "containers": [{"name": "egress", "ports": [{"containerPort": 8080}]}, {
                    "name": "exporter", "ports": [{"name": "http", "containerPort": 9090}],
                    "readinessProbe": {"httpGet": {"port": "http"}}, "livenessProbe": {"tcpSocket": {"port": 9091}},
                    "startupProbe": {"grpc": {"port": 9092}},
                }],
            },
        })));
        assert_eq!(sidecars.unwrap().ports, [2000, 8080, 9090, 9091, 9092].into());
        assert_eq!(
            pod(&from(json!({"metadata": {"name": "h"}, "spec": {"hostNetwork": true, "containers": []}}))),
            None
        );
        let bad = from(json!({"metadata": {"annotations": {"egress.coil.cybozu.com/internet": ","}}}));
        assert!(pod(&bad).unwrap().egresses.is_err());
        assert_eq!(pod_without_egress(&bad).unwrap().egresses, Ok(Vec::new()));
    }

    #[test]
    fn clients_have_a_node_and_have_not_ended() {
        let of = |annotation: &str, spec: serde_json::Value, phase: &str| {
            client(&from(json!({
                "metadata": {"namespace": "a", "name": "p", "annotations": {"egress.coil.cybozu.com/internet": annotation}},
                "spec": spec, "status": {"phase": phase},
            })))
        };
        let placed = || json!({"containers": [], "nodeName": "n"});
        let starting = of("nat", placed(), "Pending").unwrap();
        let nat = EgressRef { namespace: "internet".into(), name: "nat".into() };
        let mut index = super::super::Index::default();
        index.clients.insert(starting.key.clone(), starting.clone());
        assert!(index.is_starting_clients(&nat) && index.clients_of(&nat).is_empty());
        let started = PodInfo { addresses: vec!["10.64.0.1".parse().unwrap()], ..starting };
        index.clients.insert(started.key.clone(), started);
        assert!(!index.is_starting_clients(&nat) && index.clients_of(&nat).len() == 1);
        assert_eq!(of("nat", json!({"containers": []}), "Pending"), None);
        assert_eq!(of("nat", placed(), "Succeeded"), None);
        assert!(of(",", placed(), "Running").unwrap().egresses.is_err());
    }

    #[test]
    fn slices() {
        let info = slice(&from(json!({
            "metadata": {"namespace": "internet", "name": "nat-x", "labels": {"kubernetes.io/service-name": "nat"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"]},
                {"addresses": ["example.com"]},
            ],
        })))
        .unwrap();
        assert_eq!(info.egress.to_string(), "internet/nat");
        let ready: Vec<_> = info.endpoints.iter().map(|e| (e.address.to_string(), e.ready)).collect();
        assert_eq!(ready, [("10.0.0.1".into(), true), ("10.0.0.2".into(), false), ("10.0.0.3".into(), true)]);
        assert_eq!(slice(&from(json!({"addressType": "IPv4", "endpoints": []}))), None);
    }

    #[test]
    fn networks_and_addresses() {
        let info = egress(&from(json!({"metadata": {"name": "nat"},
            "spec": {"destinations": ["198.51.100.7/24", "nonsense", "::/0"], "sessionAffinity": "None"}})))
        .unwrap();
        assert_eq!(info.destinations, ["198.51.100.0/24".parse::<IpNet>().unwrap(), "::/0".parse().unwrap()]);
        assert!(info.affinity.is_none() && !info.sport_auto);
        let of = |seconds: i32| {
            egress(&from(json!({"metadata": {"name": "nat"}, "spec": {"destinations": [],
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}})))
            .unwrap()
        };
        assert_eq!(
            [60, 86_400, 0, -1, 86_401].map(|n| of(n).affinity.unwrap()),
            [60, 86_400, 10_800, 10_800, 10_800]
        );
        let nets = pool(&from(json!({"metadata": {"name": "default"},
            "spec": {"subnets": [{"ipv4": "10.64.0.0/16", "ipv6": "fd64::/112"}]}})))
        .unwrap();
        assert_eq!((nets.subnets.len(), nets.deleting), (2, false));
        let addresses = node(&from(json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "172.18.0.1"},
            {"type": "InternalIP", "address": "fd00:18::1"}, {"type": "ExternalIP", "address": "192.0.2.1"}]}})))
        .unwrap();
        assert_eq!(addresses.len(), 2);
    }
}
