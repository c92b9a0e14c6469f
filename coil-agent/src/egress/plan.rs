//! From the index and the pods of this node to what the datapath should be. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use coil_api::annotation::EgressRef;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::policy::{Inputs, compile, private_ranges};
use crate::{
    datapath::{Desired, Egress, EgressId, Gateway, LocalPod, PolicyId},
    net::{
        Mac,
        pod::{PodLink, RoutePolicy},
    },
    watch::{
        Index,
        index::{ObjectKey, PodInfo},
    },
};

/// A connected pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its link and addresses.
    pub link: PodLink,
    /// What was last known of the pod; none when it was never seen.
    pub pod: Option<PodInfo>,
    /// It has tunnel links of its own, and does its egress with them.
    pub kernel_client: bool,
    /// It is a gateway whose own kernel translates what the programs do not.
    pub kernel_gateway: bool,
}

/// What the node itself contributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// All addresses of this node.
    pub own_addresses: Vec<IpAddr>,
    /// Links to other nodes and the world.
    pub uplinks: BTreeSet<u32>,
    /// `--in-cluster-cidrs`.
    pub in_cluster: Vec<IpNet>,
    /// Pods of this node may be forwarded past the host stack.
    pub forward: bool,
    /// None of their packets may pass the host stack by, those to and from gateways included.
    pub host_stack: bool,
    /// `--fast-udp`.
    pub fast_udp: bool,
    /// The clients of all nodes are known.
    pub knows_clients: bool,
    /// `--enable-originating-only`: what an Egress does not say of itself.
    pub originating_only: bool,
    /// Pods have their addresses from another plugin: the pools do not tell them.
    pub addresses_of_others: bool,
    /// `--egress-quota`.
    pub quota: u32,
    /// `--egress-port`.
    pub fou_port: u16,
    /// `--mark`.
    pub mark: u32,
    /// Addresses that were clients' when this agent started.
    pub former_clients: BTreeSet<IpAddr>,
    /// What led through which Egress then.
    pub former_destinations: BTreeSet<(EgressId, IpNet)>,
    /// The pools that were known when [`Self::obstacle`] was looked for.
    pub pools: BTreeSet<IpNet>,
    /// What on the node keeps all pods' packets with the kernel, if something does.
    pub obstacle: Option<String>,
    /// Pods' links with queues or filters of others.
    pub foreign_links: BTreeSet<u32>,
}

/// The Egresses of a client, in the order of its annotations; empty when it is none.
#[must_use]
pub fn egresses_of(pod: &PodInfo) -> &[EgressRef] {
    pod.egresses.as_deref().unwrap_or_default()
}

/// Pools, nodes and Services, as far as anybody knows them. What the administrator names may be of Services: before
/// Kubernetes 1.33 there is no other way to say it.
fn of_cluster(index: &Index, node: &NodeFacts) -> BTreeSet<IpNet> {
    let mut ranges = index.pool_subnets();
    ranges.extend(index.nodes.values().flatten().map(|address| IpNet::from(*address)));
    ranges.extend(index.service_ranges.values().flatten());
    ranges.extend(&node.in_cluster);
    ranges
}

/// Ranges that are the cluster's own, private ones among them.
fn in_cluster(index: &Index, node: &NodeFacts) -> BTreeSet<IpNet> {
    let mut ranges = of_cluster(index, node);
    ranges.extend(private_ranges());
    ranges
}

/// The same for the datapath: false for what is private and no more is known of it. Prefixes that say what the next shorter
/// one says are left out.
fn ranges(index: &Index, node: &NodeFacts) -> BTreeMap<IpNet, bool> {
    let cluster: BTreeSet<IpNet> = of_cluster(index, node).iter().map(IpNet::trunc).collect();
    let mut nets: Vec<IpNet> = cluster.iter().copied().chain(private_ranges()).collect();
    nets.sort_by_key(|net| (net.prefix_len(), *net));
    let mut ranges = BTreeMap::new();
    for net in nets {
        let is_cluster = cluster.contains(&net);
        let enclosing = std::iter::successors(net.supernet(), IpNet::supernet).find_map(|n| ranges.get(&n));
        if enclosing != Some(&is_cluster) {
            ranges.insert(net, is_cluster);
        }
    }
    ranges
}

/// What of a client's destinations leaves through which Egress.
#[must_use]
pub fn policy(index: &Index, node: &NodeFacts, egresses: &[EgressRef]) -> BTreeMap<IpNet, Option<EgressId>> {
    policy_within(index, node, &in_cluster(index, node), egresses)
}

fn policy_within(
    index: &Index,
    node: &NodeFacts,
    in_cluster: &BTreeSet<IpNet>,
    egresses: &[EgressRef],
) -> BTreeMap<IpNet, Option<EgressId>> {
    let known: Vec<(EgressId, Vec<IpNet>)> = egresses
        .iter()
        .filter_map(|egress| {
            let info = index.egresses.get(&key(egress))?;
            let id = egress_id(egress);
            Some((id, if info.unknown { unknown_destinations(node, id) } else { info.destinations.clone() }))
        })
        .collect();
    if known.is_empty() {
        return BTreeMap::new();
    }
    let known: Vec<(EgressId, &[IpNet])> = known.iter().map(|(id, nets)| (*id, nets.as_slice())).collect();
    compile(&Inputs { egresses: &known, in_cluster, own_addresses: &node.own_addresses })
}

/// What an Egress that nobody understands may have led to: what it led to before this agent started, or else everything.
/// It leads nowhere.
fn unknown_destinations(node: &NodeFacts, id: EgressId) -> Vec<IpNet> {
    let former = node.former_destinations.iter().filter(|(of, _)| *of == id).map(|(_, net)| *net);
    let former: Vec<IpNet> = former.collect();
    if former.is_empty() {
        vec![IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())]
    } else {
        former
    }
}

/// Egresses that are not understood.
#[must_use]
pub fn not_understood(index: &Index) -> BTreeSet<EgressRef> {
    let unknown = index.egresses.iter().filter(|(_, info)| info.unknown);
    unknown.map(|(key, _)| EgressRef { namespace: key.namespace.clone(), name: key.name.clone() }).collect()
}

/// Those of them with clients on this node, which are shut in.
pub fn unknown_egresses<'a>(
    index: &Index,
    attached: impl IntoIterator<Item = &'a Attached>,
) -> BTreeMap<EgressRef, Vec<String>> {
    let mut unknown: BTreeMap<EgressRef, Vec<String>> = BTreeMap::new();
    for pod in attached.into_iter().filter_map(|attached| attached.pod.as_ref()) {
        let of = egresses_of(pod).iter().filter(|e| index.egresses.get(&key(e)).is_some_and(|i| i.unknown));
        for egress in of {
            unknown.entry(egress.clone()).or_default().push(pod.key.to_string());
        }
    }
    unknown
}

/// The same, for the routes inside the pod.
#[must_use]
pub fn route_policy(policy: &BTreeMap<IpNet, Option<EgressId>>) -> RoutePolicy {
    policy.iter().map(|(net, egress)| (*net, egress.is_some())).collect()
}

/// The whole wanted state of the datapath.
#[must_use]
pub fn desired<'a>(
    index: &Index,
    node: &NodeFacts,
    attached: impl IntoIterator<Item = &'a Attached>,
) -> Desired {
    let in_cluster = in_cluster(index, node);
    let pools = index.pool_subnets();
    // What is in the way of a new pool's addresses is not known yet.
    let looked = pools.is_subset(&node.pools);
    let mut desired = Desired {
        pools,
        uplinks: node.uplinks.clone(),
        forward: node.forward && node.obstacle.is_none() && looked,
        host_stack: node.host_stack,
        fast_udp: node.fast_udp,
        fou_port: node.fou_port,
        mark: node.mark,
        ..Desired::default()
    };
    desired.all_gateways = index.slices.values().flat_map(|s| &s.endpoints).map(|e| e.address).collect();
    desired.all_gateways.extend(index.services.values().flatten());
    desired.any_sender = node.addresses_of_others;
    desired.ranges = ranges(index, node);
    desired.quota = node.quota;
    let attached: Vec<&Attached> = attached.into_iter().collect();
    let gateways = attached.iter().filter_map(|a| a.pod.as_ref().filter(|pod| pod.gateway_of.is_some()));
    desired.own_ports = gateways.flat_map(|pod| pod.ports.iter().copied().chain([node.fou_port])).collect();
    let senders = Senders::of(index, node, &attached);
    let mut sets: BTreeSet<&[EgressRef]> = BTreeSet::new();
    for attached in attached {
        let egresses = attached.pod.as_ref().map(egresses_of).unwrap_or_default();
        let shut = is_shut(attached, node);
        let client = (!egresses.is_empty() || shut) && !attached.kernel_client;
        let gateway = attached.pod.as_ref().is_some_and(|p| p.gateway_of.is_some());
        let shaped = attached.pod.as_ref().is_some_and(|p| p.shaped);
        // Nothing can be delivered past the host's stack to whom nobody knows the hardware address of. What a
        // client sends must be looked at all the same.
        let unknown = attached.link.mac == Mac::default();
        if unknown && !client && !gateway {
            continue;
        }
        // Of a client by the kernel, the programs know its gateways alone.
        let some_client = client || attached.kernel_client && !egresses.is_empty();
        if shut {
            shut_policy(&mut desired, index, node, &in_cluster);
        } else if some_client {
            sets.insert(egresses);
        }
        desired.pods.push(LocalPod {
            name: attached
                .pod
                .as_ref()
                .map_or_else(|| attached.link.host.name.clone(), |p| p.key.to_string()),
            addresses: attached.link.addresses(),
            ifindex: attached.link.host.index,
            mac: attached.link.mac.0,
            host_mac: attached.link.host.mac.0,
            mtu: attached.link.host.mtu,
            policy: if some_client || shut { policy_id(egresses) } else { 0 },
            client,
            originating_only: client && egresses.iter().any(|egress| originating_only(index, node, egress)),
            kernel_client: attached.kernel_client,
            kernel_gateway: attached.kernel_gateway,
            gateway,
            new_clients: gateway && senders.more_may_come(attached),
            by_kernel: unknown || shaped || node.foreign_links.contains(&attached.link.host.index),
            shaped: shaped || node.foreign_links.contains(&attached.link.host.index),
        });
    }
    desired.clients = senders.known;
    for egresses in sets {
        let id = policy_id(egresses);
        let compiled = policy_within(index, node, &in_cluster, egresses);
        desired.policies.extend(compiled.into_iter().map(|(net, egress)| ((id, net), egress)));
        for egress in egresses {
            let info = index.egresses.get(&key(egress)).filter(|info| !info.unknown);
            let Some(info) = info else { continue };
            desired.egresses.entry(egress_id(egress)).or_insert_with(|| Egress {
                name: egress.to_string(),
                gateways: index
                    .gateways(egress)
                    .into_iter()
                    .map(|e| Gateway { address: e.address, ready: e.ready })
                    .collect(),
                services: index.services.get(&key(egress)).cloned().unwrap_or_default(),
                sport_auto: info.sport_auto,
                affinity: info.affinity,
                originating_only: originating_only(index, node, egress),
            });
        }
    }
    desired
}

/// True for a client of a run before whose Egresses nobody knows: its annotation has become wrong, or the API has the pod no
/// more while its containers still run.
fn is_shut(attached: &Attached, node: &NodeFacts) -> bool {
    let unknown = attached.pod.as_ref().is_none_or(|pod| pod.egresses.is_err());
    unknown && attached.link.addresses().iter().any(|address| node.former_clients.contains(address))
}

/// What any Egress takes leads nowhere: no Egress has the number of no name.
fn shut_policy(desired: &mut Desired, index: &Index, node: &NodeFacts, in_cluster: &BTreeSet<IpNet>) {
    let nowhere = number("");
    let all: Vec<IpNet> = index.egresses.values().flat_map(|egress| &egress.destinations).copied().collect();
    let inputs = Inputs { egresses: &[(nowhere, &all)], in_cluster, own_addresses: &node.own_addresses };
    let policy = compile(&inputs).into_iter().map(|(net, egress)| ((policy_id(&[]), net), egress));
    desired.policies.extend(policy);
}

/// Most pairs of a gateway and a client: what `coil_clients4` holds, with room for those who come before others go.
const MOST_SENDERS: usize = 131_072;

/// Who may send FOU to the gateways of this node.
struct Senders<'a> {
    /// Gateway and client, by address.
    known: BTreeSet<(IpAddr, IpAddr)>,
    /// Egresses of gateways with clients that are not known by address yet; none when that holds for all.
    waiting: Option<BTreeSet<&'a EgressRef>>,
}

impl<'a> Senders<'a> {
    fn of(index: &'a Index, node: &NodeFacts, attached: &[&'a Attached]) -> Self {
        let mut senders = Self { known: BTreeSet::new(), waiting: node.knows_clients.then(BTreeSet::new) };
        for gateway in attached {
            let Some(egress) = gateway.pod.as_ref().and_then(|pod| pod.gateway_of.as_ref()) else { continue };
            let own = gateway.link.addresses();
            // This node knows its own pods before the API server does.
            let here =
                attached.iter().filter(|a| a.pod.as_ref().is_some_and(|p| egresses_of(p).contains(egress)));
            let here = here.flat_map(|client| client.link.addresses());
            let there = index.clients_of(egress).into_iter().map(|(_, address)| address);
            for client in here.chain(there) {
                let same = own.iter().filter(|own| own.is_ipv4() == client.is_ipv4());
                senders.known.extend(same.map(|own| (*own, client)));
            }
            if let Some(waiting) = &mut senders.waiting
                && index.is_starting_clients(egress)
            {
                waiting.insert(egress);
            }
        }
        if senders.known.len() > MOST_SENDERS {
            return Self { known: BTreeSet::new(), waiting: None };
        }
        senders
    }

    /// Whether some clients of a gateway are not known.
    fn more_may_come(&self, gateway: &Attached) -> bool {
        let egress = gateway.pod.as_ref().and_then(|pod| pod.gateway_of.as_ref());
        self.waiting.as_ref().is_none_or(|waiting| egress.is_some_and(|egress| waiting.contains(egress)))
    }
}

/// Whether connections that came in to a client are answered the way they came: as the Egress says, or as the
/// node says of all.
#[must_use]
pub fn originating_only(index: &Index, node: &NodeFacts, egress: &EgressRef) -> bool {
    let of_egress = index.egresses.get(&key(egress)).and_then(|info| info.originating_only);
    of_egress.unwrap_or(node.originating_only)
}

fn key(egress: &EgressRef) -> ObjectKey {
    ObjectKey::new(&egress.namespace, &egress.name)
}

/// The number of an Egress, from its name: a restarted agent finds its maps' numbers unchanged.
#[must_use]
pub fn egress_id(egress: &EgressRef) -> EgressId {
    number(&egress.to_string())
}

/// The number of a list of Egresses.
#[must_use]
pub fn policy_id(egresses: &[EgressRef]) -> PolicyId {
    let names: Vec<String> = egresses.iter().map(ToString::to_string).collect();
    number(&names.join(","))
}

/// 32 bits of SHA-1, never 0. A cluster with a thousand Egresses has two of one number with a
/// probability of one in ten thousand.
fn number(name: &str) -> u32 {
    use sha1::{Digest as _, Sha1};
    let digest = Sha1::digest(name.as_bytes());
    let bytes = [digest[0], digest[1], digest[2], digest[3]];
    u32::from_be_bytes(bytes).max(1)
}

#[cfg(test)]
mod tests;
