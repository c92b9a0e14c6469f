//! The addresses of one block, by their position in it. Pure, no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use coil_api::crd::BlockFields;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The networks of a block. In a dual-stack block both families have the same number of
/// addresses, and a pod gets the same position in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Networks {
    ipv4: Option<Ipv4Net>,
    ipv6: Option<Ipv6Net>,
}

/// An AddressBlock whose fields make no block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NetworksError {
    #[error("{field} {value:?} is not a subnet in CIDR format: {source}")]
    NotANetwork { field: &'static str, value: String, source: ipnet::AddrParseError },
    #[error("it has neither ipv4 nor ipv6")]
    Empty,
    #[error("ipv4 {ipv4} and ipv6 {ipv6} have different numbers of addresses")]
    Uneven { ipv4: Ipv4Net, ipv6: Ipv6Net },
}

fn parse<N>(field: &'static str, value: Option<&String>) -> Result<Option<N>, NetworksError>
where
    N: std::str::FromStr<Err = ipnet::AddrParseError>,
{
    value
        .map(|v| v.parse().map_err(|source| NetworksError::NotANetwork { field, value: v.clone(), source }))
        .transpose()
}

impl Networks {
    pub(super) fn parse(fields: &BlockFields) -> Result<Self, NetworksError> {
        let ipv4 = parse::<Ipv4Net>("ipv4", fields.ipv4.as_ref())?.map(|n| n.trunc());
        let ipv6 = parse::<Ipv6Net>("ipv6", fields.ipv6.as_ref())?.map(|n| n.trunc());
        match (ipv4, ipv6) {
            (None, None) => Err(NetworksError::Empty),
            (Some(ipv4), Some(ipv6)) if 32 - ipv4.prefix_len() != 128 - ipv6.prefix_len() => {
                Err(NetworksError::Uneven { ipv4, ipv6 })
            }
            _ => Ok(Self { ipv4, ipv6 }),
        }
    }

    /// The networks, for the export table.
    pub(super) fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.ipv4.map(IpNet::V4).into_iter().chain(self.ipv6.map(IpNet::V6))
    }

    fn last_position(&self) -> u128 {
        let bits = match (self.ipv4, self.ipv6) {
            (Some(n), _) => u32::from(32 - n.prefix_len()),
            (None, Some(n)) => u32::from(128 - n.prefix_len()),
            (None, None) => 0,
        };
        1u128.checked_shl(bits).map_or(u128::MAX, |n| n - 1)
    }

    /// The addresses at a position; every one of them is usable.
    fn at(&self, position: u128) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        (
            self.ipv4.and_then(|n| {
                let base = u128::from(u32::from(n.network()));
                u32::try_from(base + position).ok().map(Ipv4Addr::from)
            }),
            self.ipv6.and_then(|n| u128::from(n.network()).checked_add(position)).map(Ipv6Addr::from),
        )
    }

    /// Where an address stands; none when it is not of this block.
    fn position(&self, address: IpAddr) -> Option<u128> {
        match address {
            IpAddr::V4(a) => {
                let n = self.ipv4.filter(|n| n.contains(&a))?;
                Some(u128::from(u32::from(a) - u32::from(n.network())))
            }
            IpAddr::V6(a) => {
                let n = self.ipv6.filter(|n| n.contains(&a))?;
                Some(u128::from(a) - u128::from(n.network()))
            }
        }
    }
}

/// Which positions of a block are taken, and the one that was taken last.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    networks: Networks,
    /// Position → number of holders. More than one only after a recovery that found
    /// an address on two veths: it is free when the last of them has gone.
    used: BTreeMap<u128, u32>,
    last: Option<u128>,
}

impl Slots {
    pub(super) fn new(networks: Networks) -> Self {
        Self { networks, used: BTreeMap::new(), last: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.networks.position(address).is_some()
    }

    /// Takes the first free position behind the last one taken, wrapping around once.
    pub(super) fn take(&mut self) -> Option<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
        let end = self.networks.last_position();
        let start = self.last.filter(|l| *l < end).map_or(0, |l| l + 1);
        let position = self.first_free(start, end).or_else(|| self.first_free(0, start))?;
        self.used.insert(position, 1);
        self.last = Some(position);
        Some(self.networks.at(position))
    }

    fn first_free(&self, start: u128, end: u128) -> Option<u128> {
        let mut candidate = start;
        for taken in self.used.range(start..=end).map(|(p, _)| *p) {
            if taken != candidate {
                break;
            }
            candidate = taken.checked_add(1)?;
        }
        (candidate <= end).then_some(candidate)
    }

    /// Marks the positions of addresses that a pod has already.
    pub(super) fn hold(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        for position in self.positions(addresses) {
            *self.used.entry(position).or_default() += 1;
            self.last = self.last.max(Some(position));
        }
    }

    /// Gives positions back. Whether one of them was of this block.
    pub(super) fn release(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        let positions = self.positions(addresses);
        for position in &positions {
            if let Some(holders) = self.used.get_mut(position) {
                *holders -= 1;
                if *holders == 0 {
                    self.used.remove(position);
                }
            }
        }
        !positions.is_empty()
    }

    /// Both addresses of a dual-stack pod stand at one position and count once.
    fn positions(&self, addresses: impl IntoIterator<Item = IpAddr>) -> BTreeSet<u128> {
        addresses.into_iter().filter_map(|a| self.networks.position(a)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(ipv4: Option<&str>, ipv6: Option<&str>) -> Slots {
        Slots::new(
            Networks::parse(&BlockFields {
                index: 0,
                ipv4: ipv4.map(str::to_owned),
                ipv6: ipv6.map(str::to_owned),
            })
            .unwrap(),
        )
    }

    fn v4(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn every_address_is_given_once_and_the_freed_one_last() {
        let mut s = slots(Some("10.1.2.4/30"), None);
        let all: Vec<_> = std::iter::from_fn(|| s.take()).map(|(a, _)| a.unwrap().to_string()).collect();
        assert_eq!(all, ["10.1.2.4", "10.1.2.5", "10.1.2.6", "10.1.2.7"]);
        assert!(s.release([v4("10.1.2.5"), v4("192.0.2.1")]));
        assert!(!s.release([v4("192.0.2.1")]));
        assert_eq!(s.take().unwrap().0, Some("10.1.2.5".parse().unwrap()));
        assert_eq!(s.take(), None);
    }

    #[test]
    fn next_after_last() {
        let mut s = slots(Some("10.1.2.4/30"), None);
        s.take();
        s.release([v4("10.1.2.4")]);
        assert_eq!(s.take().unwrap().0, Some("10.1.2.5".parse().unwrap()), "not the one just freed");
        s.hold([v4("10.1.2.7")]);
        assert_eq!(s.take().unwrap().0, Some("10.1.2.4".parse().unwrap()), "wraps around");
    }

    #[test]
    fn dual_stack_has_one_position() {
        let mut s = slots(Some("10.1.0.0/31"), Some("fd00::10/127"));
        s.take();
        let (a, b) = s.take().unwrap();
        assert_eq!((a.unwrap().to_string(), b.unwrap().to_string()), ("10.1.0.1".into(), "fd00::11".into()));
        assert_eq!(s.take(), None);
        s.release([IpAddr::V4(a.unwrap()), IpAddr::V6(b.unwrap())]);
        assert_eq!(s.take(), Some((a, b)));
    }

    #[test]
    fn huge_blocks_and_single_addresses() {
        let mut s = slots(None, Some("::/0"));
        s.hold(["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()]);
        assert_eq!(s.take().unwrap().1, Some(Ipv6Addr::UNSPECIFIED));
        let mut s = slots(Some("255.255.255.255/32"), None);
        assert_eq!(s.take().unwrap().0, Some(Ipv4Addr::BROADCAST));
        assert_eq!(s.take(), None);
        assert!(slots(None, Some("fd00::/64")).take().is_some());
    }

    #[test]
    fn an_address_recovered_twice_is_freed_twice() {
        let mut s = slots(Some("10.0.0.0/32"), None);
        s.hold([v4("10.0.0.0")]);
        s.hold([v4("10.0.0.0")]);
        s.release([v4("10.0.0.0")]);
        assert_eq!(s.take(), None);
        s.release([v4("10.0.0.0")]);
        assert!(s.take().is_some());
    }

    #[test]
    fn malformed_blocks_say_what_is_wrong() {
        let error = |ipv4: Option<&str>, ipv6: Option<&str>| {
            Networks::parse(&BlockFields {
                index: 0,
                ipv4: ipv4.map(str::to_owned),
                ipv6: ipv6.map(str::to_owned),
            })
            .unwrap_err()
            .to_string()
        };
        assert!(error(Some("10.0.0.1"), None).contains("ipv4 \"10.0.0.1\""));
        assert!(error(None, Some("10.0.0.0/8")).contains("ipv6"));
        assert!(error(None, None).contains("neither"));
        assert!(error(Some("10.0.0.0/24"), Some("fd00::/64")).contains("different"));
    }
}
