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

use std::{io, net::IpAddr, ops::RangeInclusive};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::{
    ruleset::{
        self, EQUAL, GET_RULE, Hook, PRIORITY_FILTER, PRIORITY_SRCNAT, REGISTER, UNEQUAL, bits, compare,
        expression, family, link, nfgen, number, zero,
    },
    tunnel::RECEIVERS,
};
use crate::datapath::netlink::{DUMP, NESTED, REQUEST, attributes, exchange, find, message, pack, text};

const TABLE: &str = "coil";
const POSTROUTING: &str = "postrouting";
const FORWARD: &str = "forward";

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
                    let masq = data_of(expressions, "masq").unwrap_or_default();
                    same |= [MASQ_FLAGS, MASQ_FIRST].map(|kind| find(masq, kind).is_some())
                        == [ports.is_some(); 2];
                }
                guarded |= chain == FORWARD && data_of(expressions, "meta").is_some();
            })?;
            if same && guarded || !seen { Ok(()) } else { make(own, oif, ports, true) }
        }
        other => other,
    }
}

fn make(own: IpAddr, oif: &str, ports: Option<&RangeInclusive<u16>>, anew: bool) -> io::Result<()> {
    let chains = [
        (POSTROUTING, ruleset::NAT, Hook::Postrouting, PRIORITY_SRCNAT),
        (FORWARD, ruleset::FILTER, Hook::Forward, PRIORITY_FILTER),
    ];
    let rules = [
        (POSTROUTING, masquerade(own, oif, ports)),
        (FORWARD, drop_strangers(own).into()),
        (FORWARD, drop_invalid().into()),
    ];
    ruleset::make(own.is_ipv6(), TABLE, &chains, &rules, anew)
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
    let request =
        message(GET_RULE, REQUEST | DUMP, &nfgen(family(like.is_ipv6()), 0), &pack(1, &zero(TABLE)));
    exchange(NETLINK_NETFILTER, &request, |body| {
        let list = body.get(4..).unwrap_or_default();
        if find(list, 1).map(text).as_deref() == Some(TABLE)
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

/// `NFTA_MASQ_FLAGS`, `NFTA_MASQ_REG_PROTO_MIN` and `NFTA_MASQ_REG_PROTO_MAX`.
const MASQ_FLAGS: u16 = 1;
const MASQ_FIRST: u16 = 2;
const MASQ_LAST: u16 = 3;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`: the port has to be in the range.
const PROTO_SPECIFIED: u32 = 2;

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
        compare(UNEQUAL, &own),
        // NFT_META_OIFNAME.
        expression("meta", &[number(1, REGISTER), number(2, 7)].concat()),
        compare(EQUAL, &link(oif)),
        expression("counter", &[]),
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
        compare(EQUAL, &link(name)),
        expression("counter", &[]),
        drop_it(),
    ]
}

fn drop_invalid() -> [Vec<u8>; 5] {
    // NFT_CT_STATE, and NF_CT_STATE_INVALID_BIT.
    [
        expression("ct", &[number(1, REGISTER), number(2, 0)].concat()),
        bits(1, 0),
        compare(UNEQUAL, &[0; 4]),
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
                let mut flags = vec![];
                rules(own, |_, expressions| {
                    let masq = data_of(expressions, "masq").and_then(|masq| find(masq, MASQ_FLAGS));
                    flags.extend(masq.map(<[u8]>::to_vec));
                })?;
                assert_eq!(flags, [PROTO_SPECIFIED.to_be_bytes()], "the range counts");
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
