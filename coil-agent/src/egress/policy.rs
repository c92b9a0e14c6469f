//! Which destinations of a client leave through which Egress: one order of rules, compiled to prefixes.
//!
//! The order, for a destination address:
//!
//! 1. never egress: link-local, multicast, broadcast, loopback, unspecified, addresses of this node;
//! 2. destinations of an Egress that lie inside a private range (Coil v2's table 117);
//! 3. ranges of the cluster: never egress;
//! 4. all other destinations of an Egress.
//!
//! Within 2 and 4 the longest prefix decides, then the order of the annotations. The datapath looks up
//! the longest prefix only, so [`compile`] gives each prefix the answer of the rules for those of its
//! addresses that no longer prefix covers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::datapath::EgressId;

/// What the rules depend on.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The client's Egresses with their destinations, in the order of the annotations.
    pub egresses: &'a [(EgressId, &'a [IpNet])],
    /// Ranges of the cluster: pools, node addresses, services, and what the administrator adds.
    pub in_cluster: &'a BTreeSet<IpNet>,
    /// Addresses of this node.
    pub own_addresses: &'a [IpAddr],
}

/// RFC 1918 and RFC 4193: private ranges, and by default the cluster's.
#[must_use]
pub fn private_ranges() -> [IpNet; 4] {
    [
        v4([10, 0, 0, 0], 8),
        v4([172, 16, 0, 0], 12),
        v4([192, 168, 0, 0], 16),
        v6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    ]
}

/// Destinations that mean something on the link or the node, so never a gateway.
#[must_use]
pub fn local_ranges() -> [IpNet; 9] {
    [
        v4([169, 254, 0, 0], 16), // link-local, RFC 3927; also the usual node-local DNS
        v4([224, 0, 0, 0], 4),    // multicast, RFC 5771
        v4([255, 255, 255, 255], 32),
        v4([127, 0, 0, 0], 8),
        v4([0, 0, 0, 0], 8), // "this network", RFC 791
        v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
        v6(Ipv6Addr::LOCALHOST, 128),
        v6(Ipv6Addr::UNSPECIFIED, 128),
    ]
}

/// The prefixes and their answers; `None` is "not egress", as is no match. Prefixes that say
/// what the next shorter one says are left out.
#[must_use]
pub fn compile(inputs: &Inputs<'_>) -> BTreeMap<IpNet, Option<EgressId>> {
    let rules = Rules::new(inputs);
    let mut prefixes: Vec<IpNet> = rules.prefixes().collect();
    // Shorter first, so that what encloses a prefix is decided before it.
    prefixes.sort_by_key(|p| (p.prefix_len(), *p));
    prefixes.dedup();
    let mut compiled: BTreeMap<IpNet, Option<EgressId>> = BTreeMap::new();
    for prefix in prefixes {
        let answer = rules.answer(&prefix);
        let enclosing =
            std::iter::successors(prefix.supernet(), IpNet::supernet).find_map(|p| compiled.get(&p));
        if enclosing.copied().flatten() != answer {
            compiled.insert(prefix, answer);
        }
    }
    compiled
}

/// The rules as lists of prefixes.
struct Rules {
    never: Vec<IpNet>,
    private: Vec<(IpNet, EgressId)>,
    in_cluster: Vec<IpNet>,
    rest: Vec<(IpNet, EgressId)>,
}

impl Rules {
    fn new(inputs: &Inputs<'_>) -> Self {
        let ranges = private_ranges();
        let destinations =
            inputs.egresses.iter().flat_map(|(id, nets)| nets.iter().map(|n| (n.trunc(), *id)));
        let (private, rest) =
            destinations.partition(|(net, _)| ranges.iter().any(|range| range.contains(net)));
        let own = inputs.own_addresses.iter().map(|a| IpNet::from(*a));
        Self {
            never: local_ranges().into_iter().chain(own).collect(),
            private,
            in_cluster: inputs.in_cluster.iter().map(IpNet::trunc).collect(),
            rest,
        }
    }

    fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let egress = self.private.iter().chain(&self.rest).map(|(net, _)| *net);
        self.never.iter().chain(&self.in_cluster).copied().chain(egress)
    }

    /// The answer for addresses that match exactly the rules whose prefixes contain this one.
    fn answer(&self, prefix: &IpNet) -> Option<EgressId> {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(prefix));
        if within(&self.never) {
            None
        } else if let Some(id) = longest(&self.private, prefix) {
            Some(id)
        } else if within(&self.in_cluster) {
            None
        } else {
            longest(&self.rest, prefix)
        }
    }
}

/// The first of the longest destinations that contain the prefix.
fn longest(destinations: &[(IpNet, EgressId)], prefix: &IpNet) -> Option<EgressId> {
    let matching = destinations.iter().filter(|(net, _)| net.contains(prefix));
    let first_of_longest =
        matching.reduce(|best, d| if d.0.prefix_len() > best.0.prefix_len() { d } else { best });
    first_of_longest.map(|(_, id)| *id)
}

fn v4(octets: [u8; 4], len: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::from(octets), len).into()
}

fn v6(address: Ipv6Addr, len: u8) -> IpNet {
    Ipv6Net::new_assert(address, len).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn lookup(compiled: &BTreeMap<IpNet, Option<EgressId>>, address: &str) -> Option<EgressId> {
        let address: IpAddr = address.parse().unwrap();
        longest_match(compiled, address)
    }

    fn longest_match(compiled: &BTreeMap<IpNet, Option<EgressId>>, address: IpAddr) -> Option<EgressId> {
        let matching = compiled.iter().filter(|(net, _)| net.contains(&address));
        matching.max_by_key(|(net, _)| net.prefix_len()).and_then(|(_, answer)| *answer)
    }

    #[test]
    fn the_world_leaves_and_the_cluster_stays() {
        let world = nets(&["0.0.0.0/0", "::/0"]);
        let mut in_cluster: BTreeSet<IpNet> = private_ranges().into();
        in_cluster.extend(nets(&["203.0.113.0/24", "2001:db8:113::/112", "100.64.0.0/10"]));
        let own = ["198.51.100.77".parse().unwrap(), "2001:db8:77::1".parse().unwrap()];
        let compiled =
            compile(&Inputs { egresses: &[(7, &world)], in_cluster: &in_cluster, own_addresses: &own });
        for address in ["198.51.100.9", "9.9.9.9", "2001:db8:9::9", "2606:4700:4700::9999"] {
            assert_eq!(lookup(&compiled, address), Some(7), "{address}");
        }
        for address in [
            "10.1.2.3",
            "172.18.0.1",
            "192.168.0.1",
            "fd64::1",
            "203.0.113.9",
            "2001:db8:113::9",
            "100.64.0.1",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.251",
            "ff02::1",
            "255.255.255.255",
            "127.0.0.1",
            "::1",
            "::",
            "0.0.0.0",
            "198.51.100.77",
            "2001:db8:77::1",
        ] {
            assert_eq!(lookup(&compiled, address), None, "{address}");
        }
    }

    #[test]
    fn a_private_destination_beats_the_cluster_and_a_wider_one_does_not() {
        let (inside, wider) = (nets(&["10.9.0.0/16", "fd09::/16"]), nets(&["8.0.0.0/6", "fc00::/6"]));
        let in_cluster: BTreeSet<IpNet> =
            private_ranges().into_iter().chain(nets(&["10.9.1.0/24", "fd09:1::/64"])).collect();
        let compiled = compile(&Inputs {
            egresses: &[(1, &wider), (2, &inside)],
            in_cluster: &in_cluster,
            own_addresses: &["10.9.0.7".parse().unwrap()],
        });
        assert_eq!(lookup(&compiled, "10.9.1.1"), Some(2), "even where a pool lies inside the destination");
        assert_eq!(lookup(&compiled, "fd09:1::1"), Some(2));
        assert_eq!(lookup(&compiled, "10.9.0.7"), None, "this node's address");
        assert_eq!(lookup(&compiled, "10.8.0.1"), None, "8.0.0.0/6 is not inside a private range");
        assert_eq!(lookup(&compiled, "9.9.9.9"), Some(1));
        assert_eq!(lookup(&compiled, "fd08::1"), None);
    }

    #[test]
    fn longest_prefix_then_order_of_annotations() {
        let (a, b) = (nets(&["198.51.100.0/24", "192.0.2.0/24"]), nets(&["198.51.100.0/25", "192.0.2.0/24"]));
        let in_cluster = BTreeSet::new();
        let first =
            compile(&Inputs { egresses: &[(1, &a), (2, &b)], in_cluster: &in_cluster, own_addresses: &[] });
        let second =
            compile(&Inputs { egresses: &[(2, &b), (1, &a)], in_cluster: &in_cluster, own_addresses: &[] });
        for (address, in_first, in_second) in
            [("198.51.100.1", 2, 2), ("198.51.100.200", 1, 1), ("192.0.2.1", 1, 2)]
        {
            assert_eq!(lookup(&first, address), Some(in_first), "{address}");
            assert_eq!(lookup(&second, address), Some(in_second), "{address}");
        }
        assert_eq!(lookup(&first, "203.0.113.1"), None);
        assert!(first.values().all(Option::is_some), "no entry repeats what no match says: {first:?}");
    }

    /// Prefixes that often contain one another, in few enough addresses for matches to be common.
    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (prop::sample::select(vec![10u8, 172, 8, 198, 224, 169]), 0u8..4, 0u8..=32)
            .prop_map(|(a, b, len)| IpNet::new(Ipv4Addr::new(a, 16 + b, b, b).into(), len).unwrap().trunc());
        let v6 = (prop::sample::select(vec![0xfd00u16, 0xfe80, 0x2001, 0xff02]), 0u16..4, 0u8..=128)
            .prop_map(|(a, b, len)| {
                IpNet::new(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, b).into(), len).unwrap().trunc()
            });
        prop_oneof![v4, v6]
    }

    /// The rules as they are written, for one address.
    fn model(
        egresses: &[(EgressId, Vec<IpNet>)],
        in_cluster: &BTreeSet<IpNet>,
        address: IpAddr,
    ) -> Option<EgressId> {
        let local = match address {
            IpAddr::V4(a) => {
                a.is_link_local()
                    || a.is_multicast()
                    || a.is_broadcast()
                    || a.is_loopback()
                    || a.octets()[0] == 0
            }
            IpAddr::V6(a) => {
                a.is_unicast_link_local() || a.is_multicast() || a.is_loopback() || a.is_unspecified()
            }
        };
        if local {
            return None;
        }
        let choose = |private: bool| {
            let inside = |n: &IpNet| private_ranges().iter().any(|range| range.contains(n));
            let mut best: Option<(u8, EgressId)> = None;
            for (id, nets) in egresses {
                for net in nets.iter().filter(|n| inside(n) == private && n.contains(&address)) {
                    if best.is_none_or(|(len, _)| net.prefix_len() > len) {
                        best = Some((net.prefix_len(), *id));
                    }
                }
            }
            best.map(|(_, id)| id)
        };
        choose(true).or_else(|| {
            if in_cluster.iter().any(|net| net.contains(&address)) { None } else { choose(false) }
        })
    }

    proptest! {
        #[test]
        fn compiled_prefixes_answer_as_the_rules(
            lists in prop::collection::vec(prop::collection::vec(prefix(), 1..6), 1..4),
            in_cluster in prop::collection::btree_set(prefix(), 0..6),
            probes in prop::collection::vec(prefix(), 1..40),
        ) {
            let egresses: Vec<(EgressId, Vec<IpNet>)> = (1..).zip(lists).collect();
            let borrowed: Vec<(EgressId, &[IpNet])> = egresses.iter().map(|(id, n)| (*id, n.as_slice())).collect();
            let compiled = compile(&Inputs { egresses: &borrowed, in_cluster: &in_cluster, own_addresses: &[] });
            for probe in &probes {
                for address in [probe.network(), probe.broadcast()] {
                    prop_assert_eq!(
                        longest_match(&compiled, address),
                        model(&egresses, &in_cluster, address),
                        "{} in {:?}", address, compiled
                    );
                }
            }
        }
    }
}
