//! Chains of packet filter rules, whoever keeps them, and whether they matter.

use std::{collections::BTreeSet, io};

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

/// Prefixes of chains that act on translated connections alone, or for them: kube-proxy's, the portmap
/// plugin's, and Coil's.
const KNOWN_CHAINS: [&str; 3] = ["KUBE-", "CNI-", "COIL-"];

/// True for a chain whose rules need not be read.
fn is_known(chain: &str) -> bool {
    KNOWN_CHAINS.iter().any(|known| chain.starts_with(known))
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
            found(false, &[("FORWARD", &[chain("KUBE-FORWARD"), chain("CNI-X"), Effect::None])]),
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
    fn a_loop_of_harmless_chains_ends() {
        let chains: &[(&str, &[Effect])] =
            &[("FORWARD", &[chain("A"), chain("B")]), ("A", &[chain("B")]), ("B", &[chain("A")])];
        assert_eq!(found(false, chains), None);
    }
}
