//! Rules of iptables as it was before nftables.
//!
//! The kernel hands out a table as one block of entries (`linux/netfilter/x_tables.h`,
//! `linux/netfilter_ipv4/ip_tables.h` and its IPv6 twin), in machine byte order.

use std::{collections::BTreeMap, fs, io, os::fd::AsRawFd as _};

use ipnet::IpNet;
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::rules::{self, Base, Effect, Scope};

/// What differs between the families.
struct Family {
    /// The file that lists the tables in use, of the thread: a process has no namespace of its own.
    names: &'static str,
    socket: AddressFamily,
    level: libc::c_int,
    /// Length of an entry's fixed part, and in it the offset of the length up to the target.
    entry: usize,
    target_offset: usize,
    label: &'static str,
    /// Length of an address, and the offset of the flags that turn conditions into their opposites.
    address: usize,
    inverted: usize,
}

const V4: Family = Family {
    names: "/proc/thread-self/net/ip_tables_names",
    socket: AddressFamily::Inet,
    level: libc::SOL_IP,
    entry: 112,
    target_offset: 88,
    label: "iptables",
    address: 4,
    inverted: 83,
};

const V6: Family = Family {
    names: "/proc/thread-self/net/ip6_tables_names",
    socket: AddressFamily::Inet6,
    level: libc::SOL_IPV6,
    entry: 168,
    target_offset: 140,
    label: "ip6tables",
    address: 16,
    inverted: 132,
};

/// `IPT_INV_SRCIP`, `IPT_INV_DSTIP`.
const NOT_SOURCE: u8 = 8;
const NOT_DESTINATION: u8 = 0x10;

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`; the same numbers for IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: name, valid hooks, entry and underflow of each hook, number and size of entries.
const INFO: usize = 32 + 4 + 20 + 20 + 4 + 4;
/// `struct ipt_get_entries`: name, size, entries aligned to 8.
const ENTRIES: usize = 40;
/// `struct xt_entry_target`: size, name, revision.
const TARGET: usize = 32;
/// `IPTC_RETURN`, and drop, accept, queue as verdicts (`-NF_… - 1`).
const RETURN: i32 = -5;
const ACCEPT: i32 = -2;
const DROP: i32 = -1;

/// Hooks, and the tables whose chain there is passed by.
const HOOKS: [(usize, &str, &[&str]); 3] = [
    (0, "PREROUTING", &["raw", "mangle", "nat"]),
    (2, "FORWARD", &["filter", "mangle", "security"]),
    (4, "POSTROUTING", &["mangle", "nat"]),
];

/// The first chain of IPv4 that matters.
pub(super) fn find4(pools: &[IpNet]) -> io::Result<Option<String>> {
    find(&V4, pools)
}

/// The first chain of IPv6 that matters.
pub(super) fn find6(pools: &[IpNet]) -> io::Result<Option<String>> {
    find(&V6, pools)
}

fn find(family: &Family, pools: &[IpNet]) -> io::Result<Option<String>> {
    let names = match fs::read_to_string(family.names) {
        // A kernel without iptables.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        names => names?,
    };
    for name in names.lines() {
        if !HOOKS.iter().any(|(_, _, tables)| tables.contains(&name)) {
            continue;
        }
        let table = read(family, name)?;
        for (hook, chain, tables) in HOOKS {
            let Some(start) = table.hooks[hook].filter(|_| tables.contains(&name)) else { continue };
            let chains = table.chains(family);
            // The policy is the last rule of a built-in chain.
            let base_rules = table.effects(family, start, &chains, pools);
            let drops = base_rules.last() == Some(&Effect::Other("drop".to_owned()));
            let kept = base_rules.len().saturating_sub(1);
            let by_name: BTreeMap<&str, usize> =
                chains.iter().map(|(at, name)| (name.as_str(), *at)).collect();
            let effects = |wanted: &str| {
                Ok(match by_name.get(wanted) {
                    None => base_rules[..kept].to_vec(),
                    Some(at) => table.effects(family, *at, &chains, pools),
                })
            };
            let base = Base { name: chain.to_owned(), drops };
            if let Some(found) = rules::obstacle(&format!("{} {name}", family.label), &base, effects)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// A table's block of entries.
struct Table {
    /// Where the chain of each hook begins.
    hooks: [Option<usize>; 5],
    entries: Vec<u8>,
}

impl Table {
    /// Offsets of the first rules of chains that are not built in, with their names.
    fn chains(&self, family: &Family) -> BTreeMap<usize, String> {
        let mut chains = BTreeMap::new();
        for entry in self.walk(family, 0) {
            // A chain begins behind an entry with the target ERROR, which carries its name.
            if entry.target == "ERROR" {
                chains.insert(entry.next, until_zero(entry.data));
            }
        }
        chains
    }

    /// What the rules of the chain at `start` do, the policy of a built-in chain last.
    fn effects(
        &self,
        family: &Family,
        start: usize,
        chains: &BTreeMap<usize, String>,
        pools: &[IpNet],
    ) -> Vec<Effect> {
        let mut effects = vec![];
        for entry in self.walk(family, start) {
            if entry.at != start && self.begins_chain(&entry, chains) {
                break;
            }
            effects.push(if entry.scope.meets(pools) { entry.effect(chains) } else { Effect::None });
        }
        effects
    }

    fn begins_chain(&self, entry: &Entry<'_>, chains: &BTreeMap<usize, String>) -> bool {
        entry.target == "ERROR" || chains.contains_key(&entry.at) || self.hooks.contains(&Some(entry.at))
    }

    fn walk<'a>(&'a self, family: &'a Family, start: usize) -> impl Iterator<Item = Entry<'a>> {
        let mut at = start;
        std::iter::from_fn(move || {
            let entry = Entry::read(&self.entries, at, family)?;
            at = entry.next;
            Some(entry)
        })
    }
}

/// One rule.
struct Entry<'a> {
    at: usize,
    next: usize,
    scope: Scope,
    target: String,
    data: &'a [u8],
}

impl<'a> Entry<'a> {
    fn read(block: &'a [u8], at: usize, family: &Family) -> Option<Self> {
        let entry = block.get(at..)?;
        let half = |at: usize| Some(usize::from(u16::from_ne_bytes(*entry.get(at..)?.first_chunk()?)));
        let (target_at, len) = (half(family.target_offset)?, half(family.target_offset + 2)?);
        if len < family.entry + TARGET || target_at < family.entry || target_at + TARGET > len {
            return None;
        }
        let entry = entry.get(..len)?;
        let target = until_zero(entry.get(target_at + 2..target_at + 31)?);
        Some(Self {
            at,
            next: at + len,
            scope: scope(entry, family),
            target,
            data: entry.get(target_at + TARGET..)?,
        })
    }

    fn effect(&self, chains: &BTreeMap<usize, String>) -> Effect {
        match self.target.as_str() {
            "" => match self.data.first_chunk().map(|verdict| i32::from_ne_bytes(*verdict)) {
                Some(ACCEPT | RETURN) => Effect::None,
                Some(DROP) => Effect::Other("drop".to_owned()),
                // A jump to the next rule is a rule without a target.
                Some(to) if usize::try_from(to) == Ok(self.next) => Effect::None,
                Some(to) => match usize::try_from(to).ok().and_then(|to| chains.get(&to)) {
                    Some(chain) => Effect::Chain(chain.clone()),
                    None => Effect::Other("a verdict".to_owned()),
                },
                None => Effect::Other("a verdict".to_owned()),
            },
            "LOG" | "NFLOG" => Effect::None,
            other => Effect::Other(other.to_owned()),
        }
    }
}

/// What `struct ipt_ip` or `struct ip6t_ip6`, with which an entry begins, demands of addresses: source, destination,
/// their masks, and further on which of them is turned into its opposite.
fn scope(entry: &[u8], family: &Family) -> Scope {
    let (size, inverted) = (family.address, entry.get(family.inverted).copied().unwrap_or(u8::MAX));
    let part = |number: usize| entry.get(number * size..(number + 1) * size);
    let net = |number: usize, opposite: u8| {
        let (address, mask) = (part(number)?, part(number + 2)?);
        if inverted & opposite != 0 {
            return None;
        }
        match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
            (Ok(v4), _) => IpNet::with_netmask(v4.into(), <[u8; 4]>::try_from(mask).ok()?.into()).ok(),
            (_, Ok(v6)) => IpNet::with_netmask(v6.into(), <[u8; 16]>::try_from(mask).ok()?.into()).ok(),
            _ => None,
        }
    };
    Scope { source: net(0, NOT_SOURCE), destination: net(1, NOT_DESTINATION) }
}

fn until_zero(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn read(family: &Family, name: &str) -> io::Result<Table> {
    let socket = socket(family.socket, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .or_else(|_| socket(family.socket, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None))?;
    let mut info = vec![0; INFO];
    info[..name.len()].copy_from_slice(name.as_bytes());
    ask(socket.as_raw_fd(), family.level, GET_INFO, &mut info)?;
    let word = |at: usize| info[at..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    let (valid, size) = (word(32), word(INFO - 4) as usize);
    let mut hooks = [None; 5];
    for (number, hook) in hooks.iter_mut().enumerate() {
        if valid & 1 << number != 0 {
            *hook = Some(word(36 + 4 * number) as usize);
        }
    }
    let mut block = vec![0; ENTRIES + size];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[32..36].copy_from_slice(&word(INFO - 4).to_ne_bytes());
    ask(socket.as_raw_fd(), family.level, GET_ENTRIES, &mut block)?;
    Ok(Table { hooks, entries: block.split_off(ENTRIES) })
}

/// `getsockopt` with a buffer that holds the question and takes the answer.
fn ask(
    socket: std::os::fd::RawFd,
    level: libc::c_int,
    option: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut len = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the buffer is valid for `len` bytes, and the kernel writes no more than that.
    let code = unsafe { libc::getsockopt(socket, level, option, buffer.as_mut_ptr().cast(), &raw mut len) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
