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
            let mut flags = vec![];
            ruleset::rules(false, TABLE, |_, expressions| {
                let masq = data_of(expressions, "masq").and_then(|masq| find(masq, MASQ_FLAGS));
                flags.extend(masq.map(<[u8]>::to_vec));
            })?;
            assert_eq!(flags, [PROTO_SPECIFIED.to_be_bytes()], "the range counts");
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
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn()?;
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
