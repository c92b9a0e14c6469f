//! Chains of packet filter rules, whoever keeps them, and whether they matter.

use std::{collections::BTreeSet, io};

use ipnet::IpNet;

/// What a rule does with a packet that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing that could be missed: it counts, or lets the packet go on.
    None,
    /// The rules of another chain decide.
    Chain(String),
    /// Something else: its name.
    Other(String),
}

/// A chain that the kernel begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// Its name.
    pub(super) name: String,
    /// Packets that no rule takes are dropped.
    pub(super) drops: bool,
}

/// What a rule demands of a packet's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) source: Option<IpNet>,
    pub(super) destination: Option<IpNet>,
}

impl Scope {
    /// False when no packet from a pool address to another is meant.
    pub(super) fn meets(&self, pools: &[IpNet]) -> bool {
        let overlaps = |net: IpNet| pools.iter().any(|pool| pool.contains(&net) || net.contains(pool));
        [self.source, self.destination].into_iter().flatten().all(overlaps)
    }
}

/// Chains of kube-proxy (iptables, IPVS), of the kubelet, and of the portmap plugin. They act on translated connections
/// alone, or for them. Others with such a beginning do not: policies of kube-router and of k3s are in `KUBE-…`
/// chains, those of the firewall plugin in `CNI-…` chains.
const KNOWN_CHAINS: [&str; 20] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FIREWALL",
    "KUBE-FORWARD",
    "KUBE-IPTABLES-HINT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-KUBELET-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-MARK-DROP",
    "KUBE-MARK-MASQ",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "CNI-HOSTPORT-DNAT",
    "CNI-HOSTPORT-MASQ",
    "CNI-HOSTPORT-SETMARK",
];

/// The same of chains that each service, endpoint or port has of its own.
const KNOWN_PREFIXES: [&str; 9] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-SEP-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-XLB-",
    "CNI-DN-",
    "CNI-SN-",
    "COIL-",
];

/// True for a chain whose rules need not be read.
fn is_known(chain: &str) -> bool {
    KNOWN_CHAINS.contains(&chain) || KNOWN_PREFIXES.iter().any(|known| chain.starts_with(known))
}

/// Says what in a base chain and in those that it leads to matters. `rules`: the effects of a chain's rules.
pub(super) fn obstacle(
    table: &str,
    base: &Base,
    mut rules: impl FnMut(&str) -> io::Result<Vec<Effect>>,
) -> io::Result<Option<String>> {
    if base.drops {
        return Ok(Some(format!("chain {} of table {table} drops by default", base.name)));
    }
    let mut read = BTreeSet::new();
    let mut ahead = vec![base.name.clone()];
    while let Some(chain) = ahead.pop() {
        if !read.insert(chain.clone()) {
            continue;
        }
        for effect in rules(&chain)? {
            match effect {
                Effect::None => {}
                Effect::Chain(next) if is_known(&next) => {}
                Effect::Chain(next) => ahead.push(next),
                Effect::Other(what) => {
                    return Ok(Some(format!("chain {chain} of table {table} has a rule with {what}")));
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(drops: bool, chains: &[(&str, &[Effect])]) -> Option<String> {
        let base = Base { name: "FORWARD".into(), drops };
        let rules = |chain: &str| {
            let found = chains.iter().find(|(name, _)| *name == chain);
            Ok(found.unwrap_or_else(|| panic!("{chain} was read")).1.to_vec())
        };
        obstacle("ip filter", &base, rules).unwrap()
    }

    fn chain(name: &str) -> Effect {
        Effect::Chain(name.into())
    }

    #[test]
    fn known_chains_are_no_obstacle_and_are_not_read() {
        assert_eq!(
            found(
                false,
                &[("FORWARD", &[chain("KUBE-FORWARD"), chain("KUBE-SVC-ABC"), chain("CNI-HOSTPORT-DNAT")])]
            ),
            None
        );
    }

    #[test]
    fn foreign_rules_are() {
        let drop = Effect::Other("drop".into());
        let direct = found(false, &[("FORWARD", std::slice::from_ref(&drop))]);
        assert!(direct.unwrap().contains("drop"));
        let by_chain = found(false, &[("FORWARD", &[chain("USER")]), ("USER", &[Effect::None, drop])]);
        assert!(by_chain.unwrap().contains("USER"));
        assert!(found(true, &[]).unwrap().contains("by default"));
    }

    #[test]
    fn chains_of_policies_are_read_whatever_they_are_called() {
        for name in ["KUBE-ROUTER-FORWARD", "KUBE-POD-FW-ABC", "KUBE-NWPLCY-ABC", "CNI-FORWARD", "CNI-ADMIN"]
        {
            let drop = Effect::Other("drop".into());
            assert!(found(false, &[("FORWARD", &[chain(name)]), (name, &[drop])]).is_some(), "{name}");
            assert_eq!(found(false, &[("FORWARD", &[chain(name)]), (name, &[])]), None, "{name}");
        }
    }

    #[test]
    fn a_rule_for_others_than_pods_does_not_meet_them() {
        let net = |text: &str| Some(text.parse().unwrap());
        let pools = ["10.64.0.0/16", "fd64::/112"].map(|pool| pool.parse().unwrap());
        let meets = |source, destination| Scope { source, destination }.meets(&pools);
        assert!(meets(None, None));
        assert!(meets(net("10.0.0.0/8"), net("10.64.3.0/24")));
        assert!(meets(net("fd64::1/128"), None));
        assert!(!meets(net("127.0.0.11/32"), None));
        assert!(!meets(net("10.64.0.0/16"), net("172.18.0.1/32")));
        assert!(!meets(net("fd00::/16"), None));
    }

    #[test]
    fn a_loop_of_harmless_chains_ends() {
        let chains: &[(&str, &[Effect])] =
            &[("FORWARD", &[chain("A"), chain("B")]), ("A", &[chain("B")]), ("B", &[chain("A")])];
        assert_eq!(found(false, chains), None);
    }
}
