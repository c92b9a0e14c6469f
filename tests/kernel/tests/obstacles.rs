//! What keeps pods' packets with the kernel is found, and what does not is let be.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use coil_agent::datapath::obstacle;
use coil_kernel_tests::rules::{self, Front, Service, Writer};
use coil_netns::NetNs;

/// Runs something in a network namespace of its own.
fn alone(name: &str, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let path: PathBuf = std::env::temp_dir().join(format!("coil-{name}-{}", std::process::id()));
    let ns = NetNs::create(&path)?;
    let done = ns.run(work);
    NetNs::remove(&path)?;
    done?
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let program = words.next().context("a program")?;
    let output =
        Command::new(program).args(words).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn expect(what: Option<&[&str]>, after: &str) -> Result<()> {
    let pools = ["10.64.0.0/16".parse()?, "fd64::/112".parse()?];
    let found = obstacle::find(&pools);
    match (what, &found) {
        (None, None) => Ok(()),
        (Some(words), Some(found)) if words.iter().all(|word| found.contains(word)) => Ok(()),
        _ => anyhow::bail!("after {after}: found {found:?}, expected {what:?}"),
    }
}

/// kube-proxy's rules and the portmap plugin's are no obstacle, however they are written.
#[test]
fn services_are_no_obstacle() -> Result<()> {
    for writer in Writer::ALL {
        alone("services", || {
            for v4 in [true, false] {
                let endpoint: SocketAddr = if v4 { "10.64.0.1:80" } else { "[fd64::1]:80" }.parse()?;
                let cluster = if v4 { "10.96.0.1" } else { "fd96::1" }.parse()?;
                let service = |front, port| Service { front, port, protocol: "tcp", endpoint };
                let services = [
                    service(Front::Cluster(cluster), 80),
                    service(Front::NodePort, 30080),
                    service(Front::NodePortLocal, 8088),
                ];
                rules::install(writer, v4, &services)?;
                expect(None, &format!("{writer:?}"))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn rules_of_others_are() -> Result<()> {
    for tool in ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"] {
        alone("foreign", || {
            expect(None, "nothing")?;
            // What lets everything go on is none.
            for harmless in ["-N USER", "-A USER -j RETURN", "-A FORWARD -j USER", "-A FORWARD -j ACCEPT"] {
                run(&format!("{tool} {harmless}"))?;
            }
            expect(None, "chains that do nothing")?;
            // What the programs do not pass by is none.
            for elsewhere in ["-A INPUT -p tcp --dport 22 -j DROP", "-t nat -A OUTPUT -p tcp -j RETURN"] {
                run(&format!("{tool} {elsewhere}"))?;
            }
            expect(None, "rules of other hooks")?;
            for (rule, words) in [
                ("FORWARD -p tcp --dport 25 -j DROP", &["FORWARD", "drop"][..]),
                ("USER -p tcp -j DROP", &["USER", "drop"]),
                ("POSTROUTING -t nat -j MASQUERADE", &["POSTROUTING"]),
                ("FORWARD -t mangle -p tcp -j MARK --set-mark 1", &["FORWARD", "mangle"]),
                ("PREROUTING -t raw -p tcp -j DROP", &["PREROUTING", "raw"]),
                ("PREROUTING -t nat -p tcp --dport 80 -j REDIRECT --to-ports 8080", &["PREROUTING", "nat"]),
            ] {
                run(&format!("{tool} -A {rule}"))?;
                expect(Some(words), &format!("{tool} -A {rule}"))?;
                run(&format!("{tool} -D {rule}"))?;
                expect(None, &format!("{tool} -D {rule}"))?;
            }
            // kind's nodes send their own resolver's packets another way; pods' are not meant.
            let (pods, other) = if tool.starts_with("ip6") {
                ("fd64::/112", "fd00:172::1/128")
            } else {
                ("10.64.0.0/16", "172.18.0.1/32")
            };
            for others in [
                format!("PREROUTING -t nat -d {other} -p udp --dport 53 -j REDIRECT --to-ports 5353"),
                format!("POSTROUTING -t nat -s {other} -j MASQUERADE"),
                format!("FORWARD -s {pods} -d {other} -j DROP"),
            ] {
                run(&format!("{tool} -A {others}"))?;
                expect(None, &format!("{tool} -A {others}"))?;
            }
            for pods in [
                format!("FORWARD -s {pods} -j DROP"),
                format!("FORWARD ! -d {other} -j DROP"),
                format!("FORWARD -s {pods} -d {pods} -j DROP"),
            ] {
                run(&format!("{tool} -A {pods}"))?;
                expect(Some(&["FORWARD", "drop"]), &format!("{tool} -A {pods}"))?;
                run(&format!("{tool} -D {pods}"))?;
            }
            // Policies of kube-router and of k3s, and of the firewall plugin.
            for chain in ["KUBE-ROUTER-FORWARD", "CNI-FORWARD"] {
                for command in [format!("-N {chain}"), format!("-A FORWARD -j {chain}")] {
                    run(&format!("{tool} {command}"))?;
                }
                expect(None, &format!("{tool}: {chain}, which is empty"))?;
                run(&format!("{tool} -A {chain} -p tcp -j DROP"))?;
                expect(Some(&[chain, "drop"]), &format!("{tool}: a rule in {chain}"))?;
                run(&format!("{tool} -F {chain}"))?;
            }
            run(&format!("{tool} -P FORWARD DROP"))?;
            expect(Some(&["FORWARD", "by default"]), "a policy")
        })?;
    }
    Ok(())
}

#[test]
fn tables_of_nftables_are() -> Result<()> {
    alone("nft", || {
        run("nft add table inet mine")?;
        run("nft add chain inet mine gate { type filter hook forward priority 0 ; }")?;
        run("nft add rule inet mine gate ip saddr 10.0.0.0/8 counter")?;
        expect(None, "a counter")?;
        run("nft add rule inet mine gate tcp dport 25 drop")?;
        expect(Some(&["gate", "inet mine", "drop"]), "a drop")?;
        let found = |rule: &str, what: Option<&[&str]>| -> Result<()> {
            run("nft flush chain inet mine gate")?;
            run(&format!("nft add rule inet mine gate {rule}"))?;
            expect(what, rule)
        };
        let gate = |what: &'static str| -> [&'static str; 2] { ["gate", what] };
        found("meta mark set 1", Some(&gate("meta")))?;
        found("ip dscp set 10", Some(&gate("payload")))?;
        found("tcp option maxseg size set 1000", Some(&gate("exthdr")))?;
        found("ct state vmap { established : accept, invalid : drop }", Some(&gate("verdict map")))?;
        found("ip saddr vmap { 10.64.0.0/16 : drop }", Some(&gate("verdict map")))?;
        found("ct state established tcp dport { 25, 26 } accept", None)?;
        for (rule, meets) in [
            ("ip saddr 10.0.0.0/8 drop", true),
            ("ip saddr 10.64.0.1 drop", true),
            ("ip saddr 10.64.0.0/13 ip daddr 10.64.1.0/24 drop", true),
            ("ip saddr != 192.0.2.1 drop", true),
            ("ip saddr { 192.0.2.1, 192.0.2.2 } drop", true),
            ("ip6 saddr fd64::/64 drop", true),
            ("ip6 daddr fd64::1 drop", true),
            ("ip daddr 192.0.2.1 drop", false),
            ("ip daddr 192.0.0.0/12 drop", false),
            ("ip saddr 10.64.0.0/16 ip daddr 10.65.0.0/16 tcp dport 80 drop", false),
            ("ip6 saddr fd65::/64 drop", false),
            ("ip6 daddr 2001:db8::1 drop", false),
            // What is done before the address is looked at is done to all.
            ("meta mark set 1 ip daddr 192.0.2.1 drop", true),
        ] {
            let what: Option<&[&str]> = meets.then_some(&["gate"]);
            found(rule, what)?;
        }
        run("nft flush chain inet mine gate")?;
        run("nft add counter inet mine seen")?;
        found("counter name seen", None)?;
        run("nft flush chain inet mine gate")?;
        // Redirections before the routing decision.
        run("nft add table ip mine")?;
        run("nft add chain ip mine entry { type nat hook prerouting priority dstnat ; }")?;
        run("nft add rule ip mine entry tcp dport 80 redirect to :8080")?;
        expect(Some(&["entry", "ip mine"]), "a redirection")?;
        run("nft delete table ip mine")?;
        // The hook of a link's way in, in a table of the family inet.
        run("nft add chain inet mine early { type filter hook ingress device lo priority 0 ; }")?;
        run("nft add rule inet mine early tcp dport 25 drop")?;
        expect(Some(&["early", "drop"]), "a rule at the ingress hook")
    })
}

#[test]
fn policies_of_ipsec_are() -> Result<()> {
    alone("xfrm", || {
        run("ip xfrm policy add src 10.64.0.0/16 dst 10.64.0.0/16 dir fwd action block")?;
        expect(Some(&["XFRM"]), "an XFRM policy")?;
        run("ip xfrm policy flush")?;
        expect(None, "none any more")
    })
}

/// A pod with a bandwidth limit, or with a filter of somebody else, is left to the kernel; others are not.
#[test]
fn links_with_queues_and_filters() -> Result<()> {
    alone("links", || {
        for link in [11, 12, 13] {
            run(&format!("ip link add name veth{link} index {link} type veth peer name peer{link}"))?;
            run(&format!("ip link set veth{link} up"))?;
        }
        let links = [11, 12, 13].into();
        ensure!(obstacle::foreign_links(&links)?.is_empty(), "veths as they are made");
        run("tc qdisc add dev veth12 root tbf rate 10mbit burst 32kbit latency 400ms")?;
        run("tc qdisc add dev veth13 clsact")?;
        ensure!(
            obstacle::foreign_links(&links)? == [12].into(),
            "a limit: {:?}",
            obstacle::foreign_links(&links)?
        );
        run("tc filter add dev veth13 ingress prio 7 protocol ip u32 match u32 0 0 classid 1:1")?;
        ensure!(
            obstacle::foreign_links(&links)? == [12, 13].into(),
            "a filter: {:?}",
            obstacle::foreign_links(&links)?
        );
        Ok(())
    })
}
