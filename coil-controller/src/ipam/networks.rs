//! The networks of all blocks there are, to tell whether another one would share addresses.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

/// A set of networks; one may be in it several times.
#[derive(Debug, Default)]
pub(super) struct Networks(BTreeMap<IpNet, u32>);

impl Networks {
    pub(super) fn insert(&mut self, network: IpNet) {
        *self.0.entry(network).or_default() += 1;
    }

    pub(super) fn remove(&mut self, network: &IpNet) {
        if let Some(count) = self.0.get_mut(network) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(network);
            }
        }
    }

    /// A member that shares addresses with this network: one that contains it, or one inside it.
    pub(super) fn overlapping(&self, network: &IpNet) -> Option<IpNet> {
        let mut outer = Some(network.trunc());
        while let Some(candidate) = outer {
            if self.0.contains_key(&candidate) {
                return Some(candidate);
            }
            outer = candidate.supernet();
        }
        let first = host(network.network())?;
        let last = host(network.broadcast())?;
        // Ordered by address, then prefix length: all that starts inside, the last address alone included.
        let start = IpNet::new(first.addr(), 0).ok()?;
        self.0.range(start..=last).map(|(n, _)| *n).find(|n| network.contains(n))
    }
}

fn host(address: IpAddr) -> Option<IpNet> {
    IpNet::new(address, if address.is_ipv4() { 32 } else { 128 }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_outside_and_beside() {
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        let mut set = Networks::default();
        set.insert(net("10.0.0.32/27"));
        set.insert(net("fd00::20/123"));
        set.insert(net("fd00::20/123"));
        for (query, hit) in [
            ("10.0.0.32/27", true),
            ("10.0.0.40/29", true),
            ("10.0.0.0/24", true),
            ("10.0.0.63/32", true),
            ("0.0.0.0/0", true),
            ("10.0.0.64/27", false),
            ("10.0.0.0/27", false),
            ("fd00::/64", true),
            ("fd00::3f/128", true),
            ("fd00::/123", false),
            ("::/0", true),
        ] {
            assert_eq!(set.overlapping(&net(query)).is_some(), hit, "{query}");
        }
        set.remove(&net("fd00::20/123"));
        assert!(set.overlapping(&net("::/0")).is_some());
        set.remove(&net("fd00::20/123"));
        assert!(set.overlapping(&net("::/0")).is_none());
    }
}
