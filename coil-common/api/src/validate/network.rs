//! Subnets as Kubernetes reads them.

use std::{fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Two networks that share addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// The one that is judged.
    pub network: IpNet,
    /// The one that was there.
    pub other: IpNet,
}

impl Overlap {
    /// Whether two networks share addresses. Networks of different families never do.
    #[must_use]
    pub fn between(network: IpNet, other: IpNet) -> Option<Self> {
        let (network, other) = (network.trunc(), other.trunc());
        (network.contains(&other) || other.contains(&network)).then_some(Self { network, other })
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, other } = self;
        if network == other { write!(f, "is the same as {other}") } else { write!(f, "overlaps {other}") }
    }
}

/// Number of bits of a network's addresses that are free.
pub(super) fn host_bits(network: &IpNet) -> u8 {
    network.max_prefix_len() - network.prefix_len()
}

pub(super) fn ipv4(text: &str) -> Result<Ipv4Net, String> {
    match either(text)? {
        IpNet::V4(net) => Ok(net),
        IpNet::V6(_) => Err("is an IPv6 subnet; move it to the field ipv6".into()),
    }
}

pub(super) fn ipv6(text: &str) -> Result<Ipv6Net, String> {
    match either(text)? {
        IpNet::V6(net) => Ok(net),
        IpNet::V4(_) => Err("is an IPv4 subnet; move it to the field ipv4".into()),
    }
}

/// A network of any family. The error says what is wrong with the text, and the fix.
pub(super) fn either(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        return Err(format!("has no prefix length; write {address}/{bits} for this one address"));
    }
    let network = parse(text)
        .ok_or("is not a network in CIDR format; write one such as 10.2.0.0/16 or fd00:2::/112")?;
    match network {
        IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some() => {
            Err("is an IPv4-mapped IPv6 network; write it as an IPv4 network".into())
        }
        _ => Ok(network),
    }
}

/// As Kubernetes reads one: ipnet alone would take leading zeros, which others read as octal.
fn parse(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    let canonical = prefix == "0" || !prefix.starts_with(['0', '+']);
    let prefix = prefix.parse().ok().filter(|_| canonical)?;
    IpNet::new(address.parse().ok()?, prefix).ok()
}

/// What to tell about address bits behind the prefix. Coil v2 takes such networks and ignores these bits.
pub(super) fn host_bits_warning(field: &str, network: IpNet) -> Option<String> {
    let canonical = network.trunc();
    (network != canonical)
        .then(|| format!("{field}: {network} has bits set behind its prefix; it is taken as {canonical}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts() {
        assert_eq!(ipv4("10.2.0.0/16").unwrap().to_string(), "10.2.0.0/16");
        assert_eq!(ipv6("fd02::/112").unwrap().to_string(), "fd02::/112");
        for (text, says) in [
            ("127.0.0.1", "write 127.0.0.1/32"),
            ("fd02::1", "write fd02::1/128"),
            ("a.b.c.d/24", "not a network in CIDR format"),
            ("10.02.0.0/16", "not a network in CIDR format"),
            ("10.2.0.0/016", "not a network in CIDR format"),
            ("10.2.0.0/+16", "not a network in CIDR format"),
            ("10.2.0.0/", "not a network in CIDR format"),
            ("fe80::%eth0/64", "not a network in CIDR format"),
            ("10.2.0.0/33", "not a network in CIDR format"),
            ("fd02::/129", "not a network in CIDR format"),
            ("", "not a network in CIDR format"),
            ("::ffff:10.2.0.0/112", "IPv4-mapped"),
        ] {
            let error = either(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        assert!(ipv4("fd02::/112").unwrap_err().contains("field ipv6"));
        assert!(ipv6("10.2.0.0/16").unwrap_err().contains("field ipv4"));
    }

    #[test]
    fn bits_behind_the_prefix() {
        let warning = host_bits_warning("spec.subnets[0].ipv4", "10.2.0.7/24".parse().unwrap()).unwrap();
        assert!(warning.contains("taken as 10.2.0.0/24"), "{warning}");
        assert_eq!(host_bits_warning("x", "fd02::/112".parse().unwrap()), None);
    }

    fn network() -> impl Strategy<Value = IpNet> {
        // Few distinct bits, so that networks meet often.
        prop_oneof![
            (0u32..16, 24u8..=32)
                .prop_map(|(a, p)| IpNet::new(IpAddr::from((a << 4).to_be_bytes()), p).unwrap()),
            (0u128..16, 120u8..=128)
                .prop_map(|(a, p)| IpNet::new(IpAddr::from((a << 4).to_be_bytes()), p).unwrap()),
        ]
    }

    proptest! {
        /// Overlap means that some address is in both: looked for one by one.
        #[test]
        fn overlap_is_a_shared_address(a in network(), b in network()) {
            let shared = a.hosts().chain([a.network(), a.broadcast()]).any(|ip| b.contains(&ip));
            prop_assert_eq!(Overlap::between(a, b).is_some(), shared, "{} {}", a, b);
            prop_assert_eq!(Overlap::between(a, b).is_some(), Overlap::between(b, a).is_some());
        }
    }
}
