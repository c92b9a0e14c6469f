//! Masquerading in a gateway pod, in the calling thread's network namespace, and what its rules counted.
//!
//! ```text
//! table ip coil {
//!     chain postrouting { type nat hook postrouting priority srcnat;
//!         ip saddr != SELF oifname "eth0" counter masquerade [to :61000-65535, beside the programs] }
//!     chain forward { type filter hook forward priority filter;
//!         iifname "coil_ipip4" counter drop
//!         ct state invalid counter drop }
//! }
//! ```
//!
//! The link that takes FOU from any peer is for answers to the pod itself: what it would carry for others is of no client.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`.

use std::{io, net::IpAddr, ops::RangeInclusive};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::tunnel::RECEIVERS;
use crate::datapath::netlink::{ACK, DUMP, NESTED, REQUEST, attributes, exchange, find, message, pack, text};

const TABLE: &[u8] = b"coil\0";
const POSTROUTING: &str = "postrouting";
const FORWARD: &str = "forward";

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NLM_F_CREATE`, with `NLM_F_EXCL` and `NLM_F_APPEND`.
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const APPEND: u16 = 0x800;

const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;
/// `NF_IP_PRI_FILTER` and `NF_IP_PRI_NAT_SRC`.
const PRIORITY_FILTER: u32 = 0;
const PRIORITY_SRCNAT: u32 = 100;
const REGISTER: u32 = 1;

/// What a rule counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the rules of one family counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Masqueraded: the first packet of each connection.
    pub masqueraded: Count,
    /// Invalid, and so dropped.
    pub invalid: Count,
}

/// Makes the table of the address's family; one that is there stays, with its counters, unless it masquerades to other
/// ports. What is translated already stays so in either case. `ports`: what masquerading may use; none for the client's own
/// port where it is free.
///
/// # Errors
/// When the kernel lacks a module or refuses.
pub fn ensure(own: IpAddr, oif: &str, ports: Option<&RangeInclusive<u16>>) -> io::Result<()> {
    match make(own, oif, ports, false) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
            let (mut same, mut seen, mut guarded) = (false, false, false);
            rules(own, |chain, expressions| {
                if chain == POSTROUTING {
                    seen = true;
                    // NFTA_MASQ_REG_PROTO_MIN.
                    let limited = data_of(expressions, "masq").is_some_and(|masq| find(masq, 2).is_some());
                    same |= limited == ports.is_some();
                }
                guarded |= chain == FORWARD && data_of(expressions, "meta").is_some();
            })?;
            if same && guarded || !seen { Ok(()) } else { make(own, oif, ports, true) }
        }
        other => other,
    }
}

fn make(own: IpAddr, oif: &str, ports: Option<&RangeInclusive<u16>>, anew: bool) -> io::Result<()> {
    let family = family(own);
    let batch = |kind, flags| message(kind, flags, &nfgen(0, 10), &[]);
    let item = |kind, flags, list: &[u8]| message(kind, REQUEST | flags, &nfgen(family, 0), list);
    let chain = |name: &str, hook: u32, priority: u32, kind: &[u8]| {
        let hook = [pack(1, &hook.to_be_bytes()), pack(2, &priority.to_be_bytes())].concat();
        [pack(1, TABLE), pack(3, &zero(name)), pack(4 | NESTED, &hook), pack(7, kind)].concat()
    };
    let rule = |chain: &str, expressions: &[Vec<u8>]| {
        [pack(1, TABLE), pack(2, &zero(chain)), pack(4 | NESTED, &expressions.concat())].concat()
    };
    let before = if anew { item(DELETE_TABLE, 0, &pack(1, TABLE)) } else { Vec::new() };
    let request = [
        batch(BATCH_BEGIN, REQUEST),
        before,
        item(NEW_TABLE, CREATE | EXCLUSIVE, &pack(1, TABLE)),
        item(NEW_CHAIN, CREATE, &chain(POSTROUTING, HOOK_POSTROUTING, PRIORITY_SRCNAT, b"nat\0")),
        item(NEW_CHAIN, CREATE, &chain(FORWARD, HOOK_FORWARD, PRIORITY_FILTER, b"filter\0")),
        item(NEW_RULE, CREATE | APPEND, &rule(POSTROUTING, &masquerade(own, oif, ports))),
        item(NEW_RULE, CREATE | APPEND, &rule(FORWARD, &drop_strangers(own))),
        item(NEW_RULE, CREATE | APPEND | ACK, &rule(FORWARD, &drop_invalid())),
        batch(BATCH_END, REQUEST),
    ]
    .concat();
    exchange(NETLINK_NETFILTER, &request, |_| {})
}

/// Reads what the rules counted.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn counts(like: IpAddr) -> io::Result<Counts> {
    let mut counts = Counts::default();
    rules(like, |chain, expressions| {
        let Some(count) = counter(expressions) else { return };
        match chain {
            POSTROUTING => counts.masqueraded = count,
            FORWARD if data_of(expressions, "ct").is_some() => counts.invalid = count,
            _ => {}
        }
    })?;
    Ok(counts)
}

/// Calls `work` with the chain and the expressions of each rule of the family's table.
fn rules(like: IpAddr, mut work: impl FnMut(&str, &[u8])) -> io::Result<()> {
    let request = message(GET_RULE, REQUEST | DUMP, &nfgen(family(like), 0), &pack(1, TABLE));
    exchange(NETLINK_NETFILTER, &request, |body| {
        let list = body.get(4..).unwrap_or_default();
        if find(list, 1).map(text).as_deref() == Some("coil")
            && let (Some(chain), Some(expressions)) = (find(list, 2).map(text), find(list, 4))
        {
            work(&chain, expressions);
        }
    })
}

/// What an expression of a rule says, by its name.
fn data_of<'a>(expressions: &'a [u8], name: &str) -> Option<&'a [u8]> {
    attributes(expressions).find_map(|(_, element)| {
        (find(element, 1).map(text).as_deref() == Some(name)).then(|| find(element, 2)).flatten()
    })
}

/// The counter among the expressions of a rule.
fn counter(expressions: &[u8]) -> Option<Count> {
    let data = data_of(expressions, "counter")?;
    let number = |kind| Some(u64::from_be_bytes(*find(data, kind)?.first_chunk()?));
    Some(Count { bytes: number(1)?, packets: number(2)? })
}

fn family(address: IpAddr) -> u8 {
    // NFPROTO_IPV4 and NFPROTO_IPV6.
    if address.is_ipv4() { 2 } else { 10 }
}

/// `struct nfgenmsg`.
fn nfgen(family: u8, resource: u16) -> [u8; 4] {
    let [a, b] = resource.to_be_bytes();
    [family, 0, a, b]
}

fn zero(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    pack(1 | NESTED, &[pack(1, &zero(name)), pack(2 | NESTED, data)].concat())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    pack(kind, &value.to_be_bytes())
}

/// Compares the register: 0 for equal, 1 for different.
fn compare(operation: u32, value: &[u8]) -> Vec<u8> {
    let data = [number(1, REGISTER), number(2, operation), pack(3 | NESTED, &pack(1, value))].concat();
    expression("cmp", &data)
}

fn masquerade(own: IpAddr, oif: &str, ports: Option<&RangeInclusive<u16>>) -> Vec<Vec<u8>> {
    let (offset, own) = match own {
        IpAddr::V4(v4) => (12, v4.octets().to_vec()),
        IpAddr::V6(v6) => (8, v6.octets().to_vec()),
    };
    let len = u32::try_from(own.len()).unwrap_or_default();
    // The network header is base 1.
    let source = [number(1, REGISTER), number(2, 1), number(3, offset), number(4, len)].concat();
    let mut expressions = vec![
        expression("payload", &source),
        compare(1, &own),
        // NFT_META_OIFNAME.
        expression("meta", &[number(1, REGISTER), number(2, 7)].concat()),
        compare(0, &link(oif)),
        expression("counter", &[]),
    ];
    let mut limits = Vec::new();
    for (kind, register, port) in
        ports.into_iter().flat_map(|ports| [(2, REGISTER, ports.start()), (3, REGISTER + 1, ports.end())])
    {
        let value = pack(2 | NESTED, &pack(1, &port.to_be_bytes()));
        expressions.push(expression("immediate", &[number(1, register), value].concat()));
        limits.extend(number(kind, register));
    }
    expressions.push(expression("masq", &limits));
    expressions
}

/// The name of a link, as it is compared.
fn link(name: &str) -> Vec<u8> {
    let mut name = name.as_bytes().to_vec();
    name.resize(libc::IF_NAMESIZE, 0);
    name
}

/// `NF_DROP` in `NFT_REG_VERDICT`.
fn drop_it() -> Vec<u8> {
    let verdict = [number(1, 0), pack(2 | NESTED, &pack(2 | NESTED, &number(1, 0)))].concat();
    expression("immediate", &verdict)
}

/// What comes out of the link for any peer.
fn drop_strangers(like: IpAddr) -> [Vec<u8>; 4] {
    let (name, _) = RECEIVERS[usize::from(like.is_ipv6())];
    [
        // NFT_META_IIFNAME.
        expression("meta", &[number(1, REGISTER), number(2, 6)].concat()),
        compare(0, &link(name)),
        expression("counter", &[]),
        drop_it(),
    ]
}

fn drop_invalid() -> [Vec<u8>; 5] {
    // NFT_CT_STATE, and NF_CT_STATE_INVALID_BIT in the machine's byte order.
    let invalid = 1_u32.to_ne_bytes();
    let mask = [
        number(1, REGISTER),
        number(2, REGISTER),
        number(3, 4),
        pack(4 | NESTED, &pack(1, &invalid)),
        pack(5 | NESTED, &pack(1, &[0; 4])),
    ]
    .concat();
    [
        expression("ct", &[number(1, REGISTER), number(2, 0)].concat()),
        expression("bitwise", &mask),
        compare(1, &[0; 4]),
        expression("counter", &[]),
        drop_it(),
    ]
}

#[cfg(test)]
mod tests {
    use coil_netns::NetNs;

    use super::*;

    #[test]
    fn the_rules_are_made_once_and_counted() {
        let path = std::env::temp_dir().join(format!("coil-nft-{}", std::process::id()));
        let ns = NetNs::create(&path).expect("a network namespace, which needs root");
        let made = ns.run(|| {
            let mut listed = String::new();
            for own in ["10.64.0.3", "fd64::3"] {
                let own: IpAddr = own.parse().unwrap();
                ensure(own, "eth0", None)?;
                ensure(own, "eth0", None)?;
                assert_eq!(counts(own)?, Counts::default());
            }
            let own: IpAddr = "10.64.0.3".parse().unwrap();
            let list = || {
                let output =
                    std::process::Command::new("nft").args(["list", "table", "ip", "coil"]).output()?;
                Ok::<_, io::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
            };
            ensure(own, "eth0", Some(&(61000..=65535)))?;
            for _ in 0..2 {
                let listed = list()?;
                assert!(listed.contains("bytes 0 masquerade to :61000-65535"), "{listed}");
                assert_eq!(listed.matches("masquerade").count(), 1, "{listed}");
                ensure(own, "eth0", Some(&(61000..=65535)))?;
            }
            ensure(own, "eth0", None)?;
            let output = std::process::Command::new("nft").args(["list", "ruleset"]).output()?;
            listed.push_str(&String::from_utf8_lossy(&output.stdout));
            Ok::<_, io::Error>(listed)
        });
        NetNs::remove(&path).unwrap();
        let listed = made.unwrap().unwrap();
        for part in [
            "table ip coil",
            "table ip6 coil",
            "type nat hook postrouting priority srcnat",
            "ip saddr != 10.64.0.3 oifname \"eth0\" counter packets 0 bytes 0 masquerade",
            "ip6 saddr != fd64::3 oifname \"eth0\" counter packets 0 bytes 0 masquerade",
            "type filter hook forward priority filter",
            "iifname \"coil_ipip4\" counter packets 0 bytes 0 drop",
            "iifname \"coil_ipip6\" counter packets 0 bytes 0 drop",
            "ct state invalid counter packets 0 bytes 0 drop",
        ] {
            assert!(listed.contains(part), "{part} is missing in:\n{listed}");
        }
        assert_eq!(listed.matches("masquerade").count(), 2);
    }
}
