//! Requests to nftables: a table of one family, with its sets, chains and rules, in one transaction; and what its rules say.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::set::Set;
use crate::datapath::netlink::{ACK, DUMP, NESTED, REQUEST, attributes, exchange, find, message, pack, text};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
pub(super) const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NLM_F_CREATE`, with `NLM_F_EXCL` and `NLM_F_APPEND`.
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const APPEND: u16 = 0x800;

/// Types of chains.
pub(super) const FILTER: &str = "filter";
pub(super) const NAT: &str = "nat";
pub(super) const ROUTE: &str = "route";

/// `NF_IP_PRI_RAW`, `NF_IP_PRI_MANGLE`, `NF_IP_PRI_FILTER` and `NF_IP_PRI_NAT_SRC`.
pub(super) const PRIORITY_RAW: i32 = -300;
pub(super) const PRIORITY_MANGLE: i32 = -150;
pub(super) const PRIORITY_FILTER: i32 = 0;
pub(super) const PRIORITY_SRCNAT: i32 = 100;

/// What all expressions here use: `NFT_REG_1`, and behind its 16 bytes `NFT_REG_2`.
pub(super) const REGISTER: u32 = 1;
/// `NFT_CMP_EQ`, `NFT_CMP_NEQ` and `NFT_CMP_GTE`.
pub(super) const EQUAL: u32 = 0;
pub(super) const UNEQUAL: u32 = 1;
pub(super) const AT_LEAST: u32 = 5;
/// `NF_DROP` and `NF_ACCEPT`.
pub(super) const DROP: u32 = 0;
pub(super) const ACCEPT: u32 = 1;

/// `enum nf_inet_hooks`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A chain: its name, type, hook and priority.
pub(super) type Chain<'a> = (&'a str, &'a str, Hook, i32);
/// A rule: its chain, and expressions.
pub(super) type Rule<'a> = (&'a str, Vec<Vec<u8>>);

/// Makes a table, which must not exist, or is made `anew`.
pub(super) fn make(
    v6: bool,
    table: &str,
    sets: &[Set],
    chains: &[Chain<'_>],
    rules: &[Rule<'_>],
    anew: bool,
) -> io::Result<()> {
    let name = || pack(1, &zero(table));
    let mut request = batch(BATCH_BEGIN);
    if anew {
        request.extend(item(v6, DELETE_TABLE, 0, &name()));
    }
    request.extend(item(v6, NEW_TABLE, CREATE | EXCLUSIVE, &name()));
    for (n, set) in (1..).zip(sets) {
        let parts = [name(), pack(2, &zero(set.name)), set.kind.attributes(), number(10, n)];
        request.extend(item(v6, NEW_SET, CREATE, &parts.concat()));
        for list in set.lists(table) {
            request.extend(item(v6, NEW_ELEMENTS, CREATE, &list));
        }
    }
    for (chain, kind, hook, priority) in chains {
        let hook = [number(1, *hook as u32), pack(2, &priority.to_be_bytes())].concat();
        let parts = [name(), pack(3, &zero(chain)), pack(4 | NESTED, &hook), pack(7, &zero(kind))];
        request.extend(item(v6, NEW_CHAIN, CREATE, &parts.concat()));
    }
    for (n, (chain, expressions)) in rules.iter().enumerate() {
        let parts = [name(), pack(2, &zero(chain)), pack(4 | NESTED, &expressions.concat())];
        // One answer is for all.
        let last = if n + 1 == rules.len() { ACK } else { 0 };
        request.extend(item(v6, NEW_RULE, CREATE | APPEND | last, &parts.concat()));
    }
    request.extend(batch(BATCH_END));
    exchange(NETLINK_NETFILTER, &request, |_| {})
}

/// Changes what is in sets of a table: takes out of each what comes first, and puts in what comes second.
pub(super) fn change(v6: bool, table: &str, changes: &[(Set, Set)]) -> io::Result<()> {
    let mut items: Vec<(u16, Vec<u8>)> = Vec::new();
    for (out, into) in changes {
        items.extend(out.lists(table).map(|list| (DELETE_ELEMENTS, list)));
        items.extend(into.lists(table).map(|list| (NEW_ELEMENTS, list)));
    }
    let Some(last) = items.len().checked_sub(1) else { return Ok(()) };
    let mut request = batch(BATCH_BEGIN);
    for (n, (kind, list)) in items.iter().enumerate() {
        let create = if *kind == NEW_ELEMENTS { CREATE } else { 0 };
        request.extend(item(v6, *kind, create | if n == last { ACK } else { 0 }, list));
    }
    request.extend(batch(BATCH_END));
    exchange(NETLINK_NETFILTER, &request, |_| {})
}

/// Calls `work` with the chain and the expressions of each rule of a table; of none where there is no such table.
pub(super) fn rules(v6: bool, table: &str, mut work: impl FnMut(&str, &[u8])) -> io::Result<()> {
    let request = message(GET_RULE, REQUEST | DUMP, &nfgen(family(v6), 0), &pack(1, &zero(table)));
    exchange(NETLINK_NETFILTER, &request, |body| {
        let list = body.get(4..).unwrap_or_default();
        if find(list, 1).map(text).as_deref() == Some(table)
            && let (Some(chain), Some(expressions)) = (find(list, 2).map(text), find(list, 4))
        {
            work(&chain, expressions);
        }
    })
}

/// What an expression of a rule says, by its name.
pub(super) fn data_of<'a>(expressions: &'a [u8], name: &str) -> Option<&'a [u8]> {
    attributes(expressions).find_map(|(_, element)| {
        (find(element, 1).map(text).as_deref() == Some(name)).then(|| find(element, 2)).flatten()
    })
}

/// What a rule counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// The counter among the expressions of a rule.
pub(super) fn counter(expressions: &[u8]) -> Option<Count> {
    let data = data_of(expressions, "counter")?;
    let number = |kind| Some(u64::from_be_bytes(*find(data, kind)?.first_chunk()?));
    Some(Count { bytes: number(1)?, packets: number(2)? })
}

/// Removes a table; one that is not there, or cannot be on this kernel, is as good as removed.
pub(super) fn remove(v6: bool, table: &str) -> io::Result<()> {
    let item = item(v6, DELETE_TABLE, ACK, &pack(1, &zero(table)));
    let request = [batch(BATCH_BEGIN), item, batch(BATCH_END)].concat();
    const ABSENT: [i32; 4] = [libc::ENOENT, libc::EOPNOTSUPP, libc::EINVAL, libc::EPROTONOSUPPORT];
    match exchange(NETLINK_NETFILTER, &request, |_| {}) {
        Err(e) if e.raw_os_error().is_some_and(|code| ABSENT.contains(&code)) => Ok(()),
        other => other,
    }
}

fn batch(kind: u16) -> Vec<u8> {
    message(kind, REQUEST, &nfgen(0, 10), &[])
}

fn item(v6: bool, kind: u16, flags: u16, list: &[u8]) -> Vec<u8> {
    message(kind, REQUEST | flags, &nfgen(family(v6), 0), list)
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
pub(super) const fn family(v6: bool) -> u8 {
    if v6 { 10 } else { 2 }
}

/// `struct nfgenmsg`.
pub(super) fn nfgen(family: u8, resource: u16) -> [u8; 4] {
    let [a, b] = resource.to_be_bytes();
    [family, 0, a, b]
}

pub(super) fn zero(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

pub(super) fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    pack(1 | NESTED, &[pack(1, &zero(name)), pack(2 | NESTED, data)].concat())
}

pub(super) fn number(kind: u16, value: u32) -> Vec<u8> {
    pack(kind, &value.to_be_bytes())
}

/// `NFT_META_L4PROTO`, `NFT_META_IIFNAME` and `NFT_META_OIFNAME`.
pub(super) const META_L4PROTO: u32 = 16;
pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;

/// Loads a fact about the packet.
pub(super) fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)].concat())
}

/// Loads bytes of a header (`NFT_PAYLOAD_NETWORK_HEADER` or `NFT_PAYLOAD_TRANSPORT_HEADER`) to a register.
fn payload(register: u32, header: u32, offset: u32, len: u32) -> Vec<u8> {
    let parts = [number(1, register), number(2, header), number(3, offset), number(4, len)];
    expression("payload", &parts.concat())
}

/// Loads the source address to a register.
pub(super) fn source(v6: bool, register: u32) -> Vec<u8> {
    let (offset, len) = if v6 { (8, 16) } else { (12, 4) };
    payload(register, 1, offset, len)
}

/// Loads the first byte of IPv6's destination address.
pub(super) fn destination_begins() -> Vec<u8> {
    payload(REGISTER, 1, 24, 1)
}

/// Loads the destination port.
pub(super) fn destination_port() -> Vec<u8> {
    payload(REGISTER, 2, 2, 2)
}

/// Goes on where what the register begins is in a set, or is `absent`.
pub(super) fn lookup(set: &str, absent: bool) -> Vec<u8> {
    // NFT_LOOKUP_F_INV.
    let parts = [pack(1, &zero(set)), number(2, REGISTER), number(5, u32::from(absent))];
    expression("lookup", &parts.concat())
}

/// Counts.
pub(super) fn count() -> Vec<u8> {
    expression("counter", &[])
}

/// Ends with [`DROP`] or [`ACCEPT`], in `NFT_REG_VERDICT`.
pub(super) fn verdict(code: u32) -> Vec<u8> {
    let verdict = [number(1, 0), pack(2 | NESTED, &pack(2 | NESTED, &number(1, code)))].concat();
    expression("immediate", &verdict)
}

/// Goes on where the register is [`EQUAL`], [`UNEQUAL`] or [`AT_LEAST`] to a value.
pub(super) fn compare(operation: u32, value: &[u8]) -> Vec<u8> {
    let data = [number(1, REGISTER), number(2, operation), pack(3 | NESTED, &pack(1, value))].concat();
    expression("cmp", &data)
}

/// Takes the bits of `mask` of the register, and turns those of `flip` over.
pub(super) fn bits(mask: u32, flip: u32) -> Vec<u8> {
    // Numbers in registers are in the machine's byte order.
    let value = |kind, value: u32| pack(kind | NESTED, &pack(1, &value.to_ne_bytes()));
    let parts = [number(1, REGISTER), number(2, REGISTER), number(3, 4), value(4, mask), value(5, flip)];
    expression("bitwise", &parts.concat())
}

/// The name of a link, as it is compared.
pub(super) fn link(name: &str) -> Vec<u8> {
    let mut name = name.as_bytes().to_vec();
    name.resize(libc::IF_NAMESIZE, 0);
    name
}
