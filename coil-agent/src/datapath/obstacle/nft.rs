//! Rules of nftables, and of iptables over nftables.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`.

use std::io;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::{
    expressions,
    rules::{self, Base, Effect},
};
use crate::datapath::{
    conntrack::header,
    netlink::{DUMP, REQUEST, exchange, find as attribute, message, pack, text},
};

const SUBSYSTEM: u16 = 10 << 8;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;

/// Families: inet, IPv4, netdev, IPv6.
pub(super) const INET: u8 = 1;
pub(super) const IPV4: u8 = 2;
const NETDEV: u8 = 5;
pub(super) const IPV6: u8 = 10;

/// Hooks of IP.
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
/// Before the others, in tables of the family inet since Linux 5.10.
const INGRESS: u32 = 5;

/// Tables that need not be read: kube-proxy's and the portmap plugin's.
const KNOWN_TABLES: [&str; 2] = ["kube-proxy", "cni_hostport"];

struct Chain {
    family: u8,
    table: String,
    base: Base,
}

/// The first chain that matters.
pub(super) fn find(pools: &[IpNet]) -> io::Result<Option<String>> {
    for chain in base_chains()? {
        let family = match chain.family {
            INET => "inet",
            IPV4 => "ip",
            NETDEV => "netdev",
            _ => "ip6",
        };
        let table = format!("{family} {}", chain.table);
        let effects = |name: &str| effects(chain.family, &chain.table, name, pools);
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
    let passed_by = match family {
        INET if number == INGRESS => true,
        INET | IPV4 | IPV6 => [PREROUTING, FORWARD, POSTROUTING].contains(&number),
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
fn effects(family: u8, table: &str, chain: &str, pools: &[IpNet]) -> io::Result<Vec<Effect>> {
    let zero = |name: &str| [name.as_bytes(), &[0]].concat();
    let of = [pack(1, &zero(table)), pack(2, &zero(chain))].concat();
    let mut effects = vec![];
    exchange(NETLINK_NETFILTER, &message(GET_RULE, REQUEST | DUMP, &header(family), &of), |body| {
        let list = body.get(4..).unwrap_or_default();
        // Kernels that do not know the filter list every chain.
        if attribute(list, 2).map(text).as_deref() == Some(chain)
            && attribute(list, 1).map(text).as_deref() == Some(table)
        {
            effects.push(
                attribute(list, 4).map_or(Effect::None, |list| expressions::effect(list, family, pools)),
            );
        }
    })?;
    Ok(effects)
}
