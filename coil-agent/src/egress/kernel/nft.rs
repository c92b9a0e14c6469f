//! What a gateway pod's kernel carries for its clients, and masquerades, in the calling thread's network namespace; and what
//! its rules counted.
//!
//! ```text
//! table ip coil {
//!     set clients { type ifname . ipv4_addr; elements = { "fou4_0a400102" . 10.64.1.2, … } }
//!     set own { type ifname; elements = { "coil_ipip4", … } }
//!     chain prerouting { type filter hook prerouting priority raw;
//!         iifname "fou6_*" ip6 daddr ff00::/8 drop     [in IPv6 alone]
//!         iifname "fou4_*" iifname . ip saddr != @clients iifname != @own counter drop }
//!     chain postrouting { type nat hook postrouting priority srcnat;
//!         ip saddr != SELF oifname "eth0" counter masquerade [to :61000-65535, beside the programs] }
//!     chain forward { type filter hook forward priority filter;
//!         iifname @own counter drop
//!         ct state invalid counter drop }
//! }
//! ```
//!
//! What comes out of the link to a client has the client's address: the outer one, by which the kernel chose the link, is the
//! inner one, too. Links of the pod's own (the one that takes FOU from any peer, and, where the gateway is a client itself,
//! those to its gateways) are for answers to the pod: what they would carry for others is of no client.

use std::{collections::BTreeSet, io, net::IpAddr, ops::RangeInclusive};

use nix::libc;

use super::{
    peers,
    plan::PREFIXES,
    ruleset::{
        self, Count, DROP, EQUAL, FILTER, Hook, META_IIFNAME, META_OIFNAME, NAT, PRIORITY_FILTER,
        PRIORITY_RAW, PRIORITY_SRCNAT, REGISTER, UNEQUAL, bits, compare, count, counter, data_of,
        destination_begins, expression, link, lookup, meta, number, source, verdict,
    },
    set::{self, Kind, Set, octets},
    tunnel::RECEIVERS,
};
use crate::datapath::netlink::{NESTED, find, pack};

const TABLE: &str = "coil";
const PREROUTING: &str = "prerouting";
const POSTROUTING: &str = "postrouting";
const FORWARD: &str = "forward";
const CLIENTS: &str = "clients";
const OWN: &str = "own";

/// A gateway's tunnels, of one family or both: links with the clients behind them, and links for its own packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// To clients.
    pub clients: BTreeSet<(String, IpAddr)>,
    /// To its own gateways, besides the one for any peer.
    pub own: BTreeSet<String>,
}

impl Links {
    fn sets(&self, v6: bool) -> [Set; 2] {
        let clients = self.clients.iter().filter(|(_, client)| client.is_ipv6() == v6);
        let clients = clients.map(|(name, client)| [link(name), octets(*client)].concat()).collect();
        let of_family = self.own.iter().filter(|name| name.starts_with(PREFIXES[usize::from(v6)]));
        let receiver = RECEIVERS[usize::from(v6)].0;
        let own = of_family.map(String::as_str).chain([receiver]).map(link).collect();
        [
            Set { name: CLIENTS, kind: Kind::links_with_addresses(v6), elements: clients },
            Set { name: OWN, kind: Kind::LINKS, elements: own },
        ]
    }
}

/// What the rules of one family counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Masqueraded: the first packet of each connection.
    pub masqueraded: Count,
    /// Invalid, and so dropped.
    pub invalid: Count,
    /// Dropped as no client's: FOU from others, and what a client sent in another's name.
    pub forged: Count,
}

/// Makes the table of the address's family; one that is there stays, with its counters, unless it masquerades to other
/// ports or is an older Coil's. What is translated already stays so in either case. `ports`: what masquerading may use; none for
/// the client's own port where it is free.
///
/// # Errors
/// When the kernel lacks a module or refuses.
pub fn ensure(own: IpAddr, oif: &str, ports: Option<&RangeInclusive<u16>>, links: &Links) -> io::Result<()> {
    let v6 = own.is_ipv6();
    match make(own, oif, ports, links, false) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
            let (mut same, mut guarded) = (false, false);
            ruleset::rules(v6, TABLE, |chain, expressions| {
                let limits = data_of(expressions, "masq")
                    .map(|masq| [MASQ_FLAGS, MASQ_FIRST].map(|kind| find(masq, kind).is_some()));
                same |= chain == POSTROUTING && limits == Some([ports.is_some(); 2]);
                guarded |= chain == PREROUTING;
            })?;
            if same && guarded {
                set::sync(v6, TABLE, &links.sets(v6))
            } else {
                make(own, oif, ports, links, true)
            }
        }
        other => other,
    }
}

fn make(
    own: IpAddr,
    oif: &str,
    ports: Option<&RangeInclusive<u16>>,
    links: &Links,
    anew: bool,
) -> io::Result<()> {
    let v6 = own.is_ipv6();
    let chains = [
        // Before connection tracking hears of it.
        (PREROUTING, FILTER, Hook::Prerouting, PRIORITY_RAW),
        (POSTROUTING, NAT, Hook::Postrouting, PRIORITY_SRCNAT),
        (FORWARD, FILTER, Hook::Forward, PRIORITY_FILTER),
    ];
    let mut rules = vec![
        (PREROUTING, drop_forged(v6).into()),
        (POSTROUTING, masquerade(own, oif, ports)),
        (FORWARD, drop_strangers().into()),
        (FORWARD, drop_invalid().into()),
    ];
    if v6 {
        rules.insert(0, (PREROUTING, drop_multicast().into()));
    }
    ruleset::make(v6, TABLE, &links.sets(v6), &chains, &rules, anew)
}

/// Reads what the rules counted, and those against FOU from others.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn counts(like: IpAddr) -> io::Result<Counts> {
    let v6 = like.is_ipv6();
    let mut counts = Counts { forged: peers::dropped(v6)?, ..Counts::default() };
    ruleset::rules(v6, TABLE, |chain, expressions| {
        let Some(count) = counter(expressions) else { return };
        match chain {
            POSTROUTING => counts.masqueraded = count,
            FORWARD if data_of(expressions, "ct").is_some() => counts.invalid = count,
            FORWARD | PREROUTING => counts.forged += count,
            _ => {}
        }
    })?;
    Ok(counts)
}

/// `NFTA_MASQ_FLAGS`, `NFTA_MASQ_REG_PROTO_MIN` and `NFTA_MASQ_REG_PROTO_MAX`.
const MASQ_FLAGS: u16 = 1;
const MASQ_FIRST: u16 = 2;
const MASQ_LAST: u16 = 3;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`: the port has to be in the range.
const PROTO_SPECIFIED: u32 = 2;

fn masquerade(own: IpAddr, oif: &str, ports: Option<&RangeInclusive<u16>>) -> Vec<Vec<u8>> {
    let mut expressions = vec![
        source(own.is_ipv6(), REGISTER),
        compare(UNEQUAL, &octets(own)),
        meta(META_OIFNAME),
        compare(EQUAL, &link(oif)),
        count(),
    ];
    // Without the flag the kernel takes no notice of the ports.
    let mut limits = ports.map(|_| number(MASQ_FLAGS, PROTO_SPECIFIED)).unwrap_or_default();
    for (kind, register, port) in ports
        .into_iter()
        .flat_map(|ports| [(MASQ_FIRST, REGISTER, ports.start()), (MASQ_LAST, REGISTER + 1, ports.end())])
    {
        let value = pack(2 | NESTED, &pack(1, &port.to_be_bytes()));
        expressions.push(expression("immediate", &[number(1, register), value].concat()));
        limits.extend(number(kind, register));
    }
    expressions.push(expression("masq", &limits));
    expressions
}

/// What a client's kernel says to those next to it on its own link, in the link's name: no forgery, and nobody's.
fn drop_multicast() -> [Vec<u8>; 5] {
    let from_tunnel = compare(EQUAL, PREFIXES[1].as_bytes());
    [meta(META_IIFNAME), from_tunnel, destination_begins(), compare(EQUAL, &[0xff]), verdict(DROP)]
}

/// What comes out of the link to a client without its address. The set comes first: it has almost all of it.
fn drop_forged(v6: bool) -> [Vec<u8>; 8] {
    [
        meta(META_IIFNAME),
        // Without the byte that ends the name: all that begin so.
        compare(EQUAL, PREFIXES[usize::from(v6)].as_bytes()),
        source(v6, REGISTER + 1),
        lookup(CLIENTS, true),
        meta(META_IIFNAME),
        lookup(OWN, true),
        count(),
        verdict(DROP),
    ]
}

/// What comes out of a link of the pod's own for somebody else.
fn drop_strangers() -> [Vec<u8>; 4] {
    [meta(META_IIFNAME), lookup(OWN, false), count(), verdict(DROP)]
}

fn drop_invalid() -> [Vec<u8>; 5] {
    // NFT_CT_STATE, and NF_CT_STATE_INVALID_BIT.
    [
        expression("ct", &[number(1, REGISTER), number(2, 0)].concat()),
        bits(1, 0),
        compare(UNEQUAL, &[0; 4]),
        count(),
        verdict(DROP),
    ]
}

#[cfg(test)]
mod tests;
