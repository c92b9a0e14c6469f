//! Who may send FOU to a pod whose kernel takes it off: the gateways of a client's Egresses, and a gateway's clients. In the
//! calling thread's network namespace.
//!
//! ```text
//! table ip6 coil_peers {
//!     set ports { type inet_service; elements = { 5555 } }
//!     set peers { type ipv6_addr; elements = { … } }
//!     chain input { type filter hook input priority raw;
//!         udp dport @ports ip6 saddr != @peers counter drop
//!         meta l4proto ipv6 ip6 saddr != @peers counter drop      [ipip in IPv4]
//!         meta l4proto >= 0 accept                                [these two in IPv6 alone]
//!         ip6 saddr != @peers counter drop }
//! }
//! ```
//!
//! The links take packets in packets without UDP, too.
//!
//! At this hook IPv4 is in one piece. IPv6 comes in fragments, of which the first has the port in it, or else is one whose
//! headers nftables cannot follow to their end; the kernel would put the pieces together behind this hook.

use std::{collections::BTreeSet, io, net::IpAddr};

use nix::libc;

use super::{
    ruleset::{
        self, ACCEPT, AT_LEAST, Count, DROP, EQUAL, FILTER, Hook, META_L4PROTO, PRIORITY_RAW, REGISTER,
        compare, count, counter, destination_port, lookup, meta, source, verdict,
    },
    set::{self, Kind, Set, octets},
    tunnel::INNER,
};
use crate::datapath::netlink::consistent;

const TABLE: &str = "coil_peers";
const INPUT: &str = "input";
const PORTS: &str = "ports";
const PEERS: &str = "peers";
const UDP: u8 = 17;

/// Lets these addresses, of one family, send FOU to `port`, and no others. The table stays, with its counters, and so do
/// other ports: an earlier coild had tunnels there, which go on.
///
/// # Errors
/// When the kernel lacks a module or refuses.
pub fn allow(v6: bool, port: u16, peers: &BTreeSet<IpAddr>) -> io::Result<()> {
    let ports = Set { name: PORTS, kind: Kind::PORTS, elements: [port.to_be_bytes().to_vec()].into() };
    let sets = [ports, peers_of(v6, peers)];
    let chains = [(INPUT, FILTER, Hook::Input, PRIORITY_RAW)];
    let strange = || [source(v6, REGISTER), lookup(PEERS, true), count(), verdict(DROP)];
    let mut fou = vec![meta(META_L4PROTO), compare(EQUAL, &[UDP]), destination_port(), lookup(PORTS, false)];
    fou.extend(strange());
    let mut bare = vec![meta(META_L4PROTO), compare(EQUAL, &[INNER[usize::from(v6)]])];
    bare.extend(strange());
    let mut rules = vec![(INPUT, fou), (INPUT, bare)];
    if v6 {
        // A fact that is not there ends a rule.
        let known = vec![meta(META_L4PROTO), compare(AT_LEAST, &[0]), verdict(ACCEPT)];
        rules.extend([(INPUT, known), (INPUT, strange().into())]);
    }
    match ruleset::make(v6, TABLE, &sets, &chains, &rules, false) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
            let mut there = 0;
            ruleset::rules(v6, TABLE, |_, _| there += 1)?;
            // Somebody took some away.
            if there != rules.len() {
                return ruleset::make(v6, TABLE, &sets, &chains, &rules, true);
            }
            let [ports, peers] = sets;
            set::add(v6, TABLE, &ports)?;
            set::sync(v6, TABLE, &[peers])
        }
        other => other,
    }
}

/// Lets these, of one family, send as well; where there is no table everybody may.
///
/// # Errors
/// When the kernel refuses.
pub fn admit(v6: bool, more: &BTreeSet<IpAddr>) -> io::Result<()> {
    match set::add(v6, TABLE, &peers_of(v6, more)) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Those of a family that may send; none where there is no table.
///
/// # Errors
/// When the kernel cannot be asked.
pub(super) fn allowed(v6: bool) -> io::Result<BTreeSet<IpAddr>> {
    match consistent(|| set::list(v6, TABLE, PEERS)) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(BTreeSet::new()),
        other => Ok(other?.iter().filter_map(|octets| set::address(octets)).collect()),
    }
}

fn peers_of(v6: bool, peers: &BTreeSet<IpAddr>) -> Set {
    let of_family = peers.iter().filter(|peer| peer.is_ipv6() == v6);
    Set { name: PEERS, kind: Kind::addresses(v6), elements: of_family.map(|peer| octets(*peer)).collect() }
}

/// What was dropped; nothing where there is no table.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn dropped(v6: bool) -> io::Result<Count> {
    let mut dropped = Count::default();
    ruleset::rules(v6, TABLE, |_, expressions| dropped += counter(expressions).unwrap_or_default())?;
    Ok(dropped)
}
