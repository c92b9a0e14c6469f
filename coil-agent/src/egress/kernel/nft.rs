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
                // NFTA_MASQ_REG_PROTO_MIN.
                let limited = data_of(expressions, "masq").map(|masq| find(masq, 2).is_some());
                same |= chain == POSTROUTING && limited == Some(ports.is_some());
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

fn masquerade(own: IpAddr, oif: &str, ports: Option<&RangeInclusive<u16>>) -> Vec<Vec<u8>> {
    let mut expressions = vec![
        source(own.is_ipv6(), REGISTER),
        compare(UNEQUAL, &octets(own)),
        meta(META_OIFNAME),
        compare(EQUAL, &link(oif)),
        count(),
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
mod tests {
    use std::{io::Write as _, process::Command};

    use coil_netns::NetNs;

    use super::*;

    const OWN: [&str; 2] = ["10.64.0.3", "fd64::3"];

    fn own() -> [IpAddr; 2] {
        OWN.map(|own| own.parse().unwrap())
    }

    /// A client of each family, and a gateway of the gateway's.
    fn links() -> Links {
        let clients = [("fou4_0a400102", "10.64.1.2"), ("fou6_01020304", "fd64:1::2")];
        let clients = clients.map(|(name, client)| (name.to_owned(), client.parse().unwrap())).into();
        Links { clients, own: ["fou4_0a600007".to_owned()].into() }
    }

    /// Runs a test inside a namespace of its own.
    fn inside<T: Send>(name: &str, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        let path = std::env::temp_dir().join(format!("coil-nft-{name}-{}", std::process::id()));
        let ns = NetNs::create(&path).expect("a network namespace, which needs root");
        let done = ns.run(work);
        NetNs::remove(&path).unwrap();
        done.unwrap().unwrap()
    }

    fn listed() -> io::Result<String> {
        let output = Command::new("nft").args(["list", "ruleset"]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn the_rules_are_made_once_and_counted() {
        let listed = inside("rules", || {
            for own in own() {
                ensure(own, "eth0", None, &links())?;
                ensure(own, "eth0", None, &links())?;
                assert_eq!(counts(own)?, Counts::default());
            }
            let [own, _] = own();
            ensure(own, "eth0", Some(&(61000..=65535)), &links())?;
            for _ in 0..2 {
                let listed = listed()?;
                assert!(listed.contains("bytes 0 masquerade to :61000-65535"), "{listed}");
                assert_eq!(listed.matches("masquerade").count(), 2, "{listed}");
                ensure(own, "eth0", Some(&(61000..=65535)), &links())?;
            }
            ensure(own, "eth0", None, &links())?;
            listed()
        });
        for part in [
            "table ip coil",
            "table ip6 coil",
            "type ifname . ipv4_addr",
            "elements = { \"fou4_0a400102\" . 10.64.1.2 }",
            "elements = { \"fou6_01020304\" . fd64:1::2 }",
            "elements = { \"coil_ipip6\" }",
            "type filter hook prerouting priority raw",
            "iifname \"fou4_*\" iifname . ip saddr != @clients iifname != @own counter packets 0 bytes 0 drop",
            "iifname \"fou6_*\" ip6 daddr ff00::/8 drop",
            "iifname \"fou6_*\" iifname . ip6 saddr != @clients iifname != @own counter packets 0 bytes 0 drop",
            "type nat hook postrouting priority srcnat",
            "ip saddr != 10.64.0.3 oifname \"eth0\" counter packets 0 bytes 0 masquerade",
            "ip6 saddr != fd64::3 oifname \"eth0\" counter packets 0 bytes 0 masquerade",
            "type filter hook forward priority filter",
            "iifname @own counter packets 0 bytes 0 drop",
            "ct state invalid counter packets 0 bytes 0 drop",
        ] {
            assert!(listed.contains(part), "{part} is missing in:\n{listed}");
        }
        assert!(listed.contains("\"fou4_0a600007\"") && listed.contains("\"coil_ipip4\""), "{listed}");
        assert_eq!(listed.matches("masquerade").count(), 2);
    }

    #[test]
    fn the_table_of_an_earlier_version_is_replaced() {
        const EARLIER: &str = "table ip coil {
            chain postrouting { type nat hook postrouting priority srcnat;
                ip saddr != 10.64.0.3 oifname \"eth0\" counter masquerade; }
            chain forward { type filter hook forward priority filter;
                iifname \"coil_ipip4\" counter drop; ct state invalid counter drop; }
        }";
        let listed = inside("earlier", || {
            let mut nft =
                Command::new("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn()?;
            nft.stdin.take().expect("a pipe").write_all(EARLIER.as_bytes())?;
            assert!(nft.wait()?.success());
            let [own, _] = own();
            ensure(own, "eth0", None, &links())?;
            listed()
        });
        assert!(listed.contains("@clients") && !listed.contains("iifname \"coil_ipip4\""), "{listed}");
        assert_eq!(listed.matches("masquerade").count(), 1, "{listed}");
    }

    #[test]
    fn sets_follow_the_links() {
        inside("sets", || {
            let [own, _] = own();
            ensure(own, "eth0", None, &links())?;
            // More than one message takes.
            let many = |first: u32| -> BTreeSet<(String, IpAddr)> {
                let client = |n: u32| (format!("fou4_{n:08x}"), IpAddr::from(n.to_be_bytes()));
                (first..first + 3000).map(client).collect()
            };
            for first in [0x0a80_0000, 0x0a80_0800] {
                let wanted = Links { clients: many(first), own: BTreeSet::new() };
                ensure(own, "eth0", None, &wanted)?;
                let listed = listed()?;
                assert_eq!(listed.matches("\" . 10.128.").count(), 3000);
                assert!(listed.contains(&format!("\"fou4_{first:08x}\"")), "{first:x}");
            }
            ensure(own, "eth0", None, &Links::default())?;
            assert!(!listed()?.contains("fou4_0"), "no client is left");
            Ok(())
        });
    }
}
