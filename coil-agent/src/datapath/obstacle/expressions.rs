//! The expressions of a rule of nftables: what they do, and to which addresses.
//!
//! A rule is a program for registers: one expression loads a part of the packet, another compares it, another acts. Numbers
//! are those of `linux/netfilter/nf_tables.h`.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    nft::{INET, IPV4, IPV6},
    rules::{Effect, Scope},
};
use crate::datapath::netlink::{attributes, find, text};

/// Verdicts that let a packet go on: accept, continue, break, return.
const HARMLESS: [i32; 4] = [1, -1, -2, -5];
const JUMP: i32 = -3;
const GOTO: i32 = -4;
/// The register of verdicts.
const VERDICT: u32 = 0;

/// Expressions that look, count or log.
const LOOKS: [&str; 16] = [
    "bitwise",
    "byteorder",
    "cmp",
    "connlimit",
    "counter",
    "fib",
    "hash",
    "last",
    "limit",
    "log",
    "match",
    "numgen",
    "osf",
    "range",
    "rt",
    "socket",
];

/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_META_NFPROTO`, `NFT_CMP_EQ`, `NFT_OBJECT_COUNTER`.
const NETWORK_HEADER: u32 = 1;
const NFPROTO: u32 = 15;
const EQUAL: u32 = 0;
const OBJECT_COUNTER: u32 = 1;

/// What a register holds.
enum Loaded {
    /// The family of the packet.
    Family,
    /// The beginning of an address, and the bits of it that count.
    Address { source: bool, v4: bool, mask: Vec<u8> },
}

/// What the expressions of a rule do, together, to packets from a pool's address to another.
pub(super) fn effect(expressions: &[u8], family: u8, pools: &[IpNet]) -> Effect {
    let mut rule = Rule { family, registers: BTreeMap::new(), scope: Scope::default() };
    let mut effect = Effect::None;
    for (_, element) in attributes(expressions) {
        let name = find(element, 1).map(text).unwrap_or_default();
        let data = find(element, 2).unwrap_or_default();
        match rule.step(&name, data) {
            Effect::None => {}
            // What stands before it has already sorted out others' packets.
            _ if !rule.scope.meets(pools) => return Effect::None,
            other @ Effect::Other(_) => return other,
            chain @ Effect::Chain(_) => effect = chain,
        }
    }
    effect
}

struct Rule {
    family: u8,
    registers: BTreeMap<u32, Loaded>,
    scope: Scope,
}

impl Rule {
    fn step(&mut self, name: &str, data: &[u8]) -> Effect {
        let harmless = match name {
            "immediate" => {
                self.registers.clear();
                return verdict(data);
            }
            // With a source register they write.
            "meta" => find(data, 3).is_none(),
            "ct" => find(data, 4).is_none(),
            "payload" => find(data, 5).is_none(),
            "exthdr" => find(data, 1).is_some(),
            // A map of verdicts: each may be another.
            "lookup" => number(data, 3) != Some(VERDICT),
            "objref" => number(data, 1) == Some(OBJECT_COUNTER),
            "target" => return Effect::Other(find(data, 1).map_or_else(|| name.to_owned(), text)),
            looks => LOOKS.contains(&looks),
        };
        if !harmless {
            return Effect::Other(if name == "lookup" {
                "a verdict map".to_owned()
            } else {
                name.to_owned()
            });
        }
        self.follow(name, data);
        Effect::None
    }

    /// Keeps track of addresses in registers; what is not understood narrows nothing.
    fn follow(&mut self, name: &str, data: &[u8]) {
        let loaded = match name {
            "payload" => number(data, 1).map(|register| (register, self.address(data))),
            "meta" => {
                let family = (number(data, 2) == Some(NFPROTO)).then_some(Loaded::Family);
                number(data, 1).map(|register| (register, family))
            }
            "bitwise" => number(data, 2).map(|register| (register, self.masked(data))),
            "cmp" => {
                self.compare(data);
                None
            }
            // Whatever it loads, or loads to.
            _ => {
                self.registers.clear();
                None
            }
        };
        match loaded {
            Some((register, Some(loaded))) => drop(self.registers.insert(register, loaded)),
            Some((register, None)) => drop(self.registers.remove(&register)),
            None => {}
        }
    }

    fn address(&self, data: &[u8]) -> Option<Loaded> {
        let (base, offset, len) = (number(data, 2)?, number(data, 3)?, number(data, 4)?);
        let (source, v4) = match (base, offset) {
            (NETWORK_HEADER, 12) if self.family == IPV4 => (true, true),
            (NETWORK_HEADER, 16) if self.family == IPV4 => (false, true),
            (NETWORK_HEADER, 8) if self.family == IPV6 => (true, false),
            (NETWORK_HEADER, 24) if self.family == IPV6 => (false, false),
            _ => return None,
        };
        let mask = vec![u8::MAX; usize::try_from(len).ok().filter(|len| *len <= if v4 { 4 } else { 16 })?];
        Some(Loaded::Address { source, v4, mask })
    }

    fn masked(&self, data: &[u8]) -> Option<Loaded> {
        let value = |kind| find(data, kind).and_then(|value| find(value, 1));
        let (Loaded::Address { source, v4, .. }, mask) = (self.registers.get(&number(data, 1)?)?, value(4)?)
        else {
            return None;
        };
        let plain = value(5)?.iter().all(|byte| *byte == 0);
        plain.then(|| Loaded::Address { source: *source, v4: *v4, mask: mask.to_vec() })
    }

    fn compare(&mut self, data: &[u8]) {
        let value = find(data, 3).and_then(|value| find(value, 1));
        let (Some(register), Some(EQUAL), Some(value)) = (number(data, 1), number(data, 2), value) else {
            return;
        };
        match self.registers.get(&register) {
            // From here on the packet has this family, and its addresses are where that one has them.
            Some(Loaded::Family) if self.family == INET && matches!(value, [IPV4 | IPV6]) => {
                self.family = value[0];
            }
            Some(Loaded::Address { source, v4, mask }) => {
                let net = net(*v4, value, mask);
                if *source {
                    self.scope.source = net.or(self.scope.source);
                } else {
                    self.scope.destination = net.or(self.scope.destination);
                }
            }
            _ => {}
        }
    }
}

/// The addresses that begin so; what is not loaded does not count.
fn net(v4: bool, value: &[u8], mask: &[u8]) -> Option<IpNet> {
    fn filled<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
        let mut whole = [0; N];
        whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(whole)
    }
    let (address, mask): (IpAddr, IpAddr) = if v4 {
        (filled::<4>(value)?.into(), filled::<4>(mask)?.into())
    } else {
        (filled::<16>(value)?.into(), filled::<16>(mask)?.into())
    };
    IpNet::with_netmask(address, mask).ok()
}

fn number(data: &[u8], kind: u16) -> Option<u32> {
    find(data, kind).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_be_bytes(*bytes))
}

/// The verdict of an immediate expression; its data may be a plain value, too.
fn verdict(data: &[u8]) -> Effect {
    let Some(verdict) = find(data, 2).and_then(|value| find(value, 2)) else { return Effect::None };
    let code = find(verdict, 1).and_then(<[u8]>::first_chunk).map(|code| i32::from_be_bytes(*code));
    match code {
        Some(code) if HARMLESS.contains(&code) => Effect::None,
        Some(JUMP | GOTO) => match find(verdict, 2) {
            Some(chain) => Effect::Chain(text(chain)),
            None => Effect::Other("a jump".to_owned()),
        },
        Some(0) => Effect::Other("drop".to_owned()),
        _ => Effect::Other("a verdict".to_owned()),
    }
}
