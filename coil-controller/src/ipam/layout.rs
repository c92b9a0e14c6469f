//! How a pool's subnets are cut into blocks. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use coil_api::crd::{AddressPoolSpec, SubnetSet};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A pool that no block can be cut from. The text names the field and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Out of the range that an address has bits for.
    #[error("spec.blockSizeBits is {0}: it must be between 0 and 128")]
    Bits(i32),
    /// No subnets.
    #[error("spec.subnets is empty: add a subnet")]
    Empty,
    /// An entry with no family.
    #[error("spec.subnets[{0}] has neither ipv4 nor ipv6: set one or both")]
    NoFamily(usize),
    /// A field that is not a subnet of its family.
    #[error("spec.subnets[{entry}].{family} is {value:?}: write an {family} subnet in CIDR format")]
    Subnet {
        /// Position of the entry.
        entry: usize,
        /// Name of the field.
        family: &'static str,
        /// What is there.
        value: String,
    },
    /// A subnet smaller than a block.
    #[error(
        "spec.subnets[{entry}] {subnet} is smaller than a block of 2^{bits} addresses: use a larger subnet"
    )]
    TooSmall {
        /// Position of the entry.
        entry: usize,
        /// The subnet.
        subnet: IpNet,
        /// `spec.blockSizeBits`.
        bits: u8,
    },
    /// Families of one entry with different sizes.
    #[error("spec.subnets[{entry}]: {ipv4} and {ipv6} have different numbers of host bits: make them equal")]
    Uneven {
        /// Position of the entry.
        entry: usize,
        /// The IPv4 subnet.
        ipv4: Ipv4Net,
        /// The IPv6 subnet.
        ipv6: Ipv6Net,
    },
}

/// The networks of one block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockNetworks {
    /// The IPv4 part.
    pub ipv4: Option<Ipv4Net>,
    /// The IPv6 part.
    pub ipv6: Option<Ipv6Net>,
}

impl BlockNetworks {
    /// Both, as far as there are any.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.ipv4.map(IpNet::V4).into_iter().chain(self.ipv6.map(IpNet::V6))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    ipv4: Option<Ipv4Net>,
    ipv6: Option<Ipv6Net>,
    blocks: u64,
}

impl Segment {
    fn networks(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.ipv4.map(IpNet::V4).into_iter().chain(self.ipv6.map(IpNet::V6))
    }
}

/// A pool's blocks: index 0 is the first of the first subnet, and appended subnets follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    bits: u8,
    segments: Vec<Segment>,
}

impl Layout {
    /// Reads a pool's specification.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(spec: &AddressPoolSpec) -> Result<Self, LayoutError> {
        let bits = u8::try_from(spec.block_size_bits)
            .ok()
            .filter(|b| *b <= 128)
            .ok_or(LayoutError::Bits(spec.block_size_bits))?;
        if spec.subnets.is_empty() {
            return Err(LayoutError::Empty);
        }
        let mut segments: Vec<Segment> = Vec::new();
        for (entry, subnet) in spec.subnets.iter().enumerate() {
            // Entries that share addresses, which Coil v2 takes, are no reason to give none: an index whose
            // addresses are in a block already is passed over.
            let segment = segment(entry, subnet, bits)?;
            segments.push(segment);
        }
        Ok(Self { bits, segments })
    }

    /// How many blocks the pool has. An AddressBlock's index is an int32: that many can be used.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        let all = self.segments.iter().fold(0u64, |n, s| n.saturating_add(s.blocks));
        all.min(1 << 31)
    }

    /// The networks of the block at an index.
    #[must_use]
    pub fn block(&self, index: u64) -> Option<BlockNetworks> {
        let mut offset = index;
        for segment in &self.segments {
            if offset >= segment.blocks {
                offset -= segment.blocks;
                continue;
            }
            let distance = u128::from(offset).checked_shl(u32::from(self.bits)).unwrap_or(0);
            let ipv4 = segment.ipv4.and_then(|n| {
                let base = u128::from(u32::from(n.network())) + distance;
                let address = Ipv4Addr::from(u32::try_from(base).ok()?);
                Ipv4Net::new(address, 32 - self.bits).ok()
            });
            let ipv6 = segment.ipv6.and_then(|n| {
                let address = Ipv6Addr::from(u128::from(n.network()).checked_add(distance)?);
                Ipv6Net::new(address, 128 - self.bits).ok()
            });
            return Some(BlockNetworks { ipv4, ipv6 });
        }
        None
    }

    /// Whether two pools share addresses.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let networks = |l: &Self| l.segments.iter().flat_map(Segment::networks).collect::<Vec<_>>();
        let others = networks(other);
        networks(self).iter().any(|a| others.iter().any(|b| overlap(a, b)))
    }
}

fn segment(entry: usize, subnet: &SubnetSet, bits: u8) -> Result<Segment, LayoutError> {
    let bad = |family, value: &String| LayoutError::Subnet { entry, family, value: value.clone() };
    let ipv4 = subnet.ipv4.as_ref().map(|v| v.parse::<Ipv4Net>().map_err(|_| bad("ipv4", v))).transpose()?;
    let ipv6 = subnet.ipv6.as_ref().map(|v| v.parse::<Ipv6Net>().map_err(|_| bad("ipv6", v))).transpose()?;
    let (ipv4, ipv6) = (ipv4.map(|n| n.trunc()), ipv6.map(|n| n.trunc()));
    let host_bits = match (ipv4, ipv6) {
        (None, None) => return Err(LayoutError::NoFamily(entry)),
        (Some(ipv4), Some(ipv6)) if 32 - ipv4.prefix_len() != 128 - ipv6.prefix_len() => {
            return Err(LayoutError::Uneven { entry, ipv4, ipv6 });
        }
        (Some(n), _) => 32 - n.prefix_len(),
        (None, Some(n)) => 128 - n.prefix_len(),
    };
    let mut segment = Segment { ipv4, ipv6, blocks: 0 };
    let Some(block_bits) = host_bits.checked_sub(bits) else {
        let subnet = segment.networks().next().unwrap_or_default();
        return Err(LayoutError::TooSmall { entry, subnet, bits });
    };
    segment.blocks = 1u64.checked_shl(u32::from(block_bits)).unwrap_or(u64::MAX);
    Ok(segment)
}

/// Two subnets share addresses when one contains the other.
fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(bits: i32, subnets: &[(&str, &str)]) -> Result<Layout, LayoutError> {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let subnets = subnets.iter().map(|(a, b)| SubnetSet { ipv4: some(a), ipv6: some(b) }).collect();
        Layout::parse(&AddressPoolSpec { block_size_bits: bits, subnets })
    }

    fn show(b: Option<BlockNetworks>) -> String {
        b.map_or("-".into(), |b| {
            let text = |n: Option<String>| n.unwrap_or_default();
            format!("{} {}", text(b.ipv4.map(|n| n.to_string())), text(b.ipv6.map(|n| n.to_string())))
        })
    }

    #[test]
    fn blocks_follow_each_other_through_the_subnets() {
        let l = pool(5, &[("10.2.0.0/26", ""), ("10.9.0.0/27", "")]).unwrap();
        assert_eq!(l.blocks(), 3);
        let all: Vec<_> = (0..4).map(|i| show(l.block(i))).collect();
        assert_eq!(all, ["10.2.0.0/27 ", "10.2.0.32/27 ", "10.9.0.0/27 ", "-"]);
    }

    #[test]
    fn dual_stack_and_ipv6() {
        let l = pool(3, &[("10.2.0.0/24", "fd00:2::/120")]).unwrap();
        assert_eq!(l.blocks(), 32);
        assert_eq!(show(l.block(31)), "10.2.0.248/29 fd00:2::f8/125");
        let l = pool(5, &[("", "fd00::/16")]).unwrap();
        assert_eq!(l.blocks(), 1 << 31, "as many as an int32 counts");
        assert_eq!(show(l.block(1)), " fd00::20/123");
        assert_eq!(show(pool(0, &[("10.0.0.1/32", "")]).unwrap().block(0)), "10.0.0.1/32 ");
        assert_eq!(show(pool(128, &[("", "::/0")]).unwrap().block(0)), " ::/0");
        assert_eq!(show(pool(32, &[("0.0.0.0/0", "")]).unwrap().block(0)), "0.0.0.0/0 ");
    }

    #[test]
    fn malformed_pools_name_the_field() {
        for (bits, subnets, part) in [
            (-1, &[("10.0.0.0/8", "")][..], "blockSizeBits"),
            (129, &[("10.0.0.0/8", "")], "blockSizeBits"),
            (5, &[], "subnets is empty"),
            (5, &[("10.0.0.0/8", ""), ("", "")], "subnets[1] has neither"),
            (5, &[("fd00::/64", "")], "subnets[0].ipv4"),
            (5, &[("", "10.0.0.0/8")], "subnets[0].ipv6"),
            (5, &[("10.0.0.0/30", "")], "smaller than a block"),
            (5, &[("10.0.0.0/24", "fd00::/64")], "host bits"),
        ] {
            let error = pool(bits, subnets).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn pools_that_share_addresses() {
        let a = pool(5, &[("10.0.0.0/24", "fd00::/120")]).unwrap();
        assert!(a.overlaps(&pool(3, &[("", "fd00::/64")]).unwrap()));
        assert!(!a.overlaps(&pool(3, &[("10.0.1.0/24", "")]).unwrap()));
    }

    proptest::proptest! {
        /// Blocks of a pool never share an address, in either family.
        #[test]
        fn blocks_are_disjoint(bits in 0..6i32, a in 0..200u64, b in 0..200u64) {
            let l = pool(bits, &[("10.0.0.0/24", "fd00::/120"), ("10.7.0.0/25", "fd07::/121")]).unwrap();
            if let (true, Some(x), Some(y)) = (a != b, l.block(a), l.block(b)) {
                let (x4, y4) = (x.ipv4.unwrap(), y.ipv4.unwrap());
                proptest::prop_assert!(!x4.contains(&y4) && !y4.contains(&x4));
                let (x6, y6) = (x.ipv6.unwrap(), y.ipv6.unwrap());
                proptest::prop_assert!(!x6.contains(&y6) && !y6.contains(&x6));
            }
        }
    }
}
