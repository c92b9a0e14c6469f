//! Requests to nftables: a table of one family, with its chains and rules, in one transaction.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use crate::datapath::netlink::{ACK, NESTED, REQUEST, exchange, message, pack};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
pub(super) const GET_RULE: u16 = SUBSYSTEM | 7;
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

/// `NF_IP_PRI_MANGLE`, `NF_IP_PRI_FILTER` and `NF_IP_PRI_NAT_SRC`.
pub(super) const PRIORITY_MANGLE: i32 = -150;
pub(super) const PRIORITY_FILTER: i32 = 0;
pub(super) const PRIORITY_SRCNAT: i32 = 100;

/// What all expressions here use.
pub(super) const REGISTER: u32 = 1;
/// `NFT_CMP_EQ` and `NFT_CMP_NEQ`.
pub(super) const EQUAL: u32 = 0;
pub(super) const UNEQUAL: u32 = 1;

/// `enum nf_inet_hooks`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
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

/// Goes on where the register is [`EQUAL`] or [`UNEQUAL`] to a value.
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
