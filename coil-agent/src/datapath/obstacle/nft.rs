//! Rules of nftables, and of iptables over nftables.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::rules::{self, Base, Effect};
use crate::datapath::{
    conntrack::header,
    netlink::{DUMP, REQUEST, attributes, exchange, find as attribute, message, pack, text},
};

const SUBSYSTEM: u16 = 10 << 8;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;

/// Families: inet, IPv4, netdev, IPv6.
const INET: u8 = 1;
const IPV4: u8 = 2;
const NETDEV: u8 = 5;
const IPV6: u8 = 10;

/// Hooks of IP.
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;

/// Verdicts that let a packet go on: accept, continue, break, return.
const HARMLESS: [i32; 4] = [1, -1, -2, -5];
const JUMP: i32 = -3;
const GOTO: i32 = -4;

/// Expressions that look, count or log.
const LOOKS: [&str; 19] = [
    "bitwise",
    "byteorder",
    "cmp",
    "connlimit",
    "counter",
    "exthdr",
    "fib",
    "hash",
    "last",
    "limit",
    "log",
    "lookup",
    "match",
    "numgen",
    "osf",
    "payload",
    "range",
    "rt",
    "socket",
];

/// Tables that need not be read: kube-proxy's and the portmap plugin's.
const KNOWN_TABLES: [&str; 2] = ["kube-proxy", "cni_hostport"];

struct Chain {
    family: u8,
    table: String,
    base: Base,
}

/// The first chain that matters.
pub(super) fn find() -> io::Result<Option<String>> {
    for chain in base_chains()? {
        let family = match chain.family {
            INET => "inet",
            IPV4 => "ip",
            NETDEV => "netdev",
            _ => "ip6",
        };
        let table = format!("{family} {}", chain.table);
        let effects = |name: &str| effects(chain.family, &chain.table, name);
        if let Some(found) = rules::obstacle(&table, &chain.base, effects)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Base chains of the hooks that the programs pass by.
fn base_chains() -> io::Result<Vec<Chain>> {
    let mut chains = vec![];
    let request = message(GET_CHAIN, REQUEST | DUMP, &header(0), &[]);
    let done = exchange(NETLINK_NETFILTER, &request, |body| chains.extend(base_chain(body)));
    match done {
        // A kernel without nftables has no rules of it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(vec![]),
        done => done.map(|()| chains),
    }
}

fn base_chain(body: &[u8]) -> Option<Chain> {
    let (family, list) = (*body.first()?, body.get(4..)?);
    let hook = attribute(list, 4)?;
    let number = u32::from_be_bytes(*attribute(hook, 1)?.first_chunk()?);
    let table = text(attribute(list, 1)?);
    let nat = attribute(list, 7).map(text).as_deref() == Some("nat");
    let passed_by = match family {
        INET | IPV4 | IPV6 => match number {
            PREROUTING => !nat,
            FORWARD | POSTROUTING => true,
            _ => false,
        },
        NETDEV => true,
        _ => false,
    };
    if !passed_by || KNOWN_TABLES.contains(&table.as_str()) {
        return None;
    }
    let drops = attribute(list, 5).is_some_and(|policy| policy == [0; 4]);
    Some(Chain { family, table, base: Base { name: text(attribute(list, 3)?), drops } })
}

/// What the rules of a chain do.
fn effects(family: u8, table: &str, chain: &str) -> io::Result<Vec<Effect>> {
    let zero = |name: &str| [name.as_bytes(), &[0]].concat();
    let of = [pack(1, &zero(table)), pack(2, &zero(chain))].concat();
    let mut effects = vec![];
    exchange(NETLINK_NETFILTER, &message(GET_RULE, REQUEST | DUMP, &header(family), &of), |body| {
        let list = body.get(4..).unwrap_or_default();
        // Kernels that do not know the filter list every chain.
        if attribute(list, 2).map(text).as_deref() == Some(chain)
            && attribute(list, 1).map(text).as_deref() == Some(table)
        {
            effects.push(attribute(list, 4).map_or(Effect::None, effect_of));
        }
    })?;
    Ok(effects)
}

/// What the expressions of a rule do, together.
fn effect_of(expressions: &[u8]) -> Effect {
    let mut effect = Effect::None;
    for (_, element) in attributes(expressions) {
        let name = attribute(element, 1).map(text).unwrap_or_default();
        let data = attribute(element, 2).unwrap_or_default();
        match name.as_str() {
            "immediate" => match verdict(data) {
                Effect::None => {}
                other => effect = other,
            },
            // With a source register they write.
            "meta" if attribute(data, 3).is_none() => {}
            "ct" if attribute(data, 4).is_none() => {}
            looks if LOOKS.contains(&looks) => {}
            "target" => return Effect::Other(attribute(data, 1).map(text).unwrap_or(name)),
            _ => return Effect::Other(name),
        }
    }
    effect
}

/// The verdict of an immediate expression; its data may be a plain value, too.
fn verdict(data: &[u8]) -> Effect {
    let Some(verdict) = attribute(data, 2).and_then(|value| attribute(value, 2)) else { return Effect::None };
    let code = attribute(verdict, 1).and_then(<[u8]>::first_chunk).map(|code| i32::from_be_bytes(*code));
    match code {
        Some(code) if HARMLESS.contains(&code) => Effect::None,
        Some(JUMP | GOTO) => match attribute(verdict, 2) {
            Some(chain) => Effect::Chain(text(chain)),
            None => Effect::Other("a jump".to_owned()),
        },
        Some(0) => Effect::Other("drop".to_owned()),
        _ => Effect::Other("a verdict".to_owned()),
    }
}
