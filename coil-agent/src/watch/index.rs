//! The index: what the node knows of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use coil_api::annotation::{AnnotationError, EgressRef};
use coil_packet::abi::egress_flag;
use ipnet::IpNet;

/// Namespace and name of an object; the namespace is empty where there is none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// A key of its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A pod, as far as its network goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID: another pod of the same name has another.
    pub uid: String,
    /// The Egresses that it is a client of.
    pub egresses: Result<Vec<EgressRef>, AnnotationError>,
    /// The Egress that it is a gateway of.
    pub gateway_of: Option<EgressRef>,
    /// The `bandwidth` plugin limits its traffic.
    pub shaped: bool,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// Of a gateway: the ports of its containers, which it has for itself.
    pub ports: BTreeSet<u16>,
}

/// An Egress, as far as clients go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressInfo {
    /// Its destinations; those that are no networks are left out.
    pub destinations: Vec<IpNet>,
    /// `fouSourcePortAuto`.
    pub sport_auto: bool,
    /// Of `sessionAffinity: ClientIP`: the seconds that an idle client keeps its gateway.
    pub affinity: Option<u32>,
    /// `originatingOnly`; none to do as the node does.
    pub originating_only: Option<bool>,
    /// It is not understood, and was never seen before: what its destinations are nobody knows.
    pub unknown: bool,
}

impl EgressInfo {
    /// An Egress of which it is known that it exists, and nothing else.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            destinations: Vec::new(),
            sport_auto: false,
            affinity: Some(egress_flag::DEFAULT_AFFINITY),
            originating_only: None,
            unknown: true,
        }
    }
}

/// One address of an EndpointSlice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The gateway pod's address.
    pub address: IpAddr,
    /// It takes new clients: ready, and not terminating.
    pub ready: bool,
}

/// The endpoints of one EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceInfo {
    /// The Egress whose Service it belongs to.
    pub egress: EgressRef,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An AddressPool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its subnets; those that are no networks are left out.
    pub subnets: Vec<IpNet>,
    /// It is being deleted.
    pub deleting: bool,
}

/// Objects of one kind.
pub type Store<T> = BTreeMap<ObjectKey, T>;

/// All that the node knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// Pods of this node.
    pub pods: Store<PodInfo>,
    /// Namespaces: the pool of their pods.
    pub namespaces: Store<String>,
    /// Egresses.
    pub egresses: Store<EgressInfo>,
    /// EndpointSlices of the Egresses' Services.
    pub slices: Store<SliceInfo>,
    /// Cluster addresses of the Egresses' Services: what clients by the kernel dial.
    pub services: Store<Vec<IpAddr>>,
    /// Pods of all nodes that are clients of an Egress, where the kernel is a gateway.
    pub clients: Store<PodInfo>,
    /// AddressPools.
    pub pools: Store<PoolInfo>,
    /// Addresses of nodes.
    pub nodes: Store<Vec<IpAddr>>,
    /// Ranges of Services, where the cluster tells them (Kubernetes 1.33).
    pub service_ranges: Store<Vec<IpNet>>,
}

impl Index {
    /// Subnets of all pools.
    #[must_use]
    pub fn pool_subnets(&self) -> BTreeSet<IpNet> {
        self.pools.values().flat_map(|pool| &pool.subnets).copied().collect()
    }

    /// Names of the pools that are being deleted.
    #[must_use]
    pub fn draining_pools(&self) -> BTreeSet<String> {
        self.pools.iter().filter(|(_, pool)| pool.deleting).map(|(key, _)| key.name.clone()).collect()
    }

    /// The gateways of an Egress, each once.
    #[must_use]
    pub fn gateways(&self, egress: &EgressRef) -> Vec<Endpoint> {
        let mut gateways: BTreeMap<IpAddr, bool> = BTreeMap::new();
        let slices = self.slices.values().filter(|slice| slice.egress == *egress);
        for endpoint in slices.flat_map(|slice| &slice.endpoints) {
            // While slices are rewritten an address can be in two.
            *gateways.entry(endpoint.address).or_default() |= endpoint.ready;
        }
        gateways.into_iter().map(|(address, ready)| Endpoint { address, ready }).collect()
    }

    /// The clients of an Egress, once for each of their addresses.
    #[must_use]
    pub fn clients_of(&self, egress: &EgressRef) -> Vec<(ObjectKey, IpAddr)> {
        let is_client =
            |pod: &&PodInfo| pod.egresses.as_ref().is_ok_and(|egresses| egresses.contains(egress));
        let clients = self.clients.values().filter(is_client);
        clients.flat_map(|pod| pod.addresses.iter().map(|address| (pod.key.clone(), *address))).collect()
    }

    /// Whether a client of an Egress is being started: it will have an address that nobody knows yet.
    #[must_use]
    pub fn is_starting_clients(&self, egress: &EgressRef) -> bool {
        let starts = |pod: &PodInfo| {
            pod.addresses.is_empty() && pod.egresses.as_ref().is_ok_and(|e| e.contains(egress))
        };
        self.clients.values().any(starts)
    }

    /// The pod with a UID.
    #[must_use]
    pub fn pod_by_uid(&self, uid: &str) -> Option<&PodInfo> {
        self.pods.values().find(|pod| pod.uid == uid)
    }

    /// The pod with one of these addresses.
    #[must_use]
    pub fn pod_by_address(&self, addresses: &[IpAddr]) -> Option<&PodInfo> {
        self.pods.values().find(|pod| pod.addresses.iter().any(|a| addresses.contains(a)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_of_all_slices_once() {
        let egress = EgressRef { namespace: "internet".into(), name: "nat".into() };
        let endpoint = |a: &str, ready| Endpoint { address: a.parse().unwrap(), ready };
        let slice =
            |endpoints: &[Endpoint]| SliceInfo { egress: egress.clone(), endpoints: endpoints.to_vec() };
        let mut index = Index::default();
        index.slices.insert(
            ObjectKey::new("internet", "nat-1"),
            slice(&[endpoint("10.0.0.2", false), endpoint("10.0.0.1", true)]),
        );
        index.slices.insert(
            ObjectKey::new("internet", "nat-2"),
            slice(&[endpoint("10.0.0.2", true), endpoint("fd00::1", false)]),
        );
        let mut other = slice(&[endpoint("10.0.0.9", true)]);
        other.egress.name = "other".into();
        index.slices.insert(ObjectKey::new("internet", "other-1"), other);
        assert_eq!(
            index.gateways(&egress),
            [endpoint("10.0.0.1", true), endpoint("10.0.0.2", true), endpoint("fd00::1", false)]
        );
    }
}
