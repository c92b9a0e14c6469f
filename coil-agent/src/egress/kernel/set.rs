//! Sets of nftables' tables: what is in them, and making that what is wanted.

use std::{collections::BTreeSet, io, net::IpAddr};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::ruleset::{self, GET_ELEMENTS, family, nfgen, number, zero};
use crate::datapath::netlink::{
    DUMP, NESTED, REQUEST, attributes, consistent, exchange, find, message, pack,
};

/// Elements of one message: the length of an attribute has 16 bits.
const AT_ONCE: usize = 1000;
/// Bits of each part of a type of several.
const PART: u32 = 6;
/// Types as `nft` shows them: `ipv4_addr`, `ipv6_addr`, `inet_service`, `ifname`.
const IPV4: u32 = 7;
const IPV6: u32 = 8;
const SERVICE: u32 = 13;
const IFNAME: u32 = 41;

/// What the elements of a set are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    number: u32,
    len: u32,
}

impl Kind {
    /// Ports.
    pub(super) const PORTS: Self = Self { number: SERVICE, len: 2 };
    /// Names of links.
    pub(super) const LINKS: Self = Self { number: IFNAME, len: 16 };

    /// Addresses of a family.
    pub(super) const fn addresses(v6: bool) -> Self {
        if v6 { Self { number: IPV6, len: 16 } } else { Self { number: IPV4, len: 4 } }
    }

    /// Names of links, each with an address.
    pub(super) const fn links_with_addresses(v6: bool) -> Self {
        let (link, address) = (Self::LINKS, Self::addresses(v6));
        Self { number: link.number << PART | address.number, len: link.len + address.len }
    }

    /// `NFTA_SET_KEY_TYPE` and `NFTA_SET_KEY_LEN`; and for `nft`, to show names as such, in `NFTA_SET_USERDATA` that a key is in
    /// the machine's byte order (`NFTNL_UDATA_SET_KEYBYTEORDER`, `BYTEORDER_HOST_ENDIAN`).
    pub(super) fn attributes(self) -> Vec<u8> {
        let order = [&[0, 4][..], &1_u32.to_ne_bytes()].concat();
        let shown = if self.number == IFNAME { pack(13, &order) } else { Vec::new() };
        [number(4, self.number), number(5, self.len), shown].concat()
    }
}

/// A set, and what is in it: bytes as packets have them.
#[derive(Debug, Clone)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) elements: BTreeSet<Vec<u8>>,
}

impl Set {
    /// The elements as lists that each fit a message.
    pub(super) fn lists(&self, table: &str) -> impl Iterator<Item = Vec<u8>> {
        let elements: Vec<Vec<u8>> = self
            .elements
            .iter()
            .map(|element| pack(1 | NESTED, &pack(1 | NESTED, &pack(1, element))))
            .collect();
        let names = [pack(1, &zero(table)), pack(2, &zero(self.name))].concat();
        let lists: Vec<Vec<u8>> = elements
            .chunks(AT_ONCE)
            .map(|some| [names.clone(), pack(3 | NESTED, &some.concat())].concat())
            .collect();
        lists.into_iter()
    }

    /// The same set with what is here and not there.
    fn without(&self, others: &BTreeSet<Vec<u8>>) -> Self {
        Self { elements: self.elements.difference(others).cloned().collect(), ..*self }
    }
}

/// The bytes of an address.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The address of these bytes.
pub(super) fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4().or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// Makes sets of a table hold what is wanted, at once; what stays is not touched.
pub(super) fn sync(v6: bool, table: &str, wanted: &[Set]) -> io::Result<()> {
    let mut changes = Vec::new();
    for set in wanted {
        let there = consistent(|| list(v6, table, set.name))?;
        let found = Set { elements: there, ..*set };
        changes.push((found.without(&set.elements), set.without(&found.elements)));
    }
    ruleset::change(v6, table, &changes)
}

/// Puts into a set of a table what is not there yet.
pub(super) fn add(v6: bool, table: &str, wanted: &Set) -> io::Result<()> {
    let there = consistent(|| list(v6, table, wanted.name))?;
    let none = Set { elements: BTreeSet::new(), ..*wanted };
    ruleset::change(v6, table, &[(none, wanted.without(&there))])
}

/// What is in a set.
pub(super) fn list(v6: bool, table: &str, set: &str) -> io::Result<BTreeSet<Vec<u8>>> {
    let names = [pack(1, &zero(table)), pack(2, &zero(set))].concat();
    let request = message(GET_ELEMENTS, REQUEST | DUMP, &nfgen(family(v6), 0), &names);
    let mut found = BTreeSet::new();
    exchange(NETLINK_NETFILTER, &request, |body| {
        let elements = body.get(4..).and_then(|list| find(list, 3)).unwrap_or_default();
        let key = |element| find(find(element, 1)?, 1).map(<[u8]>::to_vec);
        found.extend(attributes(elements).filter_map(|(_, element)| key(element)));
    })?;
    Ok(found)
}
