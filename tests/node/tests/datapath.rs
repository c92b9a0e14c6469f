//! The built coild follows what others do to its node: rules that would treat pods' packets differently keep them with
//! the kernel within one look, and what is taken away comes back, counted.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use coil_node_tests::{Cluster, Plugin, Programs, Sandbox, cluster::WATCH_DELAY, place::ip};
use serde_json::json;

fn run(command: &str) -> Result<String> {
    let mut words = command.split(' ');
    let program = words.next().context("a program")?;
    let output =
        Command::new(program).args(words).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until the last thing that coild said of who forwards is `wanted`.
async fn forwards(cluster: &Cluster, wanted: &str, after: &str) -> Result<()> {
    let check = async || {
        let log = cluster.coild_log()?;
        let said: Vec<&str> = log.lines().filter(|line| line.contains("from pod to pod")).collect();
        let last = said.last().copied().unwrap_or_default();
        Ok((!last.contains(wanted)).then(|| format!("after {after} coild says {last:?}, not {wanted:?}")))
    };
    cluster.wait_for(&format!("coild to notice {after}"), check).await
}

/// A link that comes and goes makes coild look before its half minute is over.
fn poke() -> Result<()> {
    ip("link add poke type veth peer name poked")?;
    ip("link del poke").map(drop)
}

const KERNEL: &str = "the kernel alone forwards";
const EBPF: &str = "eBPF forwards";

#[test]
fn what_others_do_is_noticed_within_one_look() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |cluster| {
        let plugin = Plugin {
            path: cluster.programs.plugin.clone(),
            config: json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "coil", "socket": cluster.socket()}),
        };
        let uid = cluster.create_pod("dual", "pod").await?;
        let sandbox = Sandbox::new("dual", "pod", &uid)?;
        tokio::time::sleep(WATCH_DELAY).await;
        sandbox.call(&plugin, "ADD")?;

        run("ip xfrm policy add src 10.64.0.0/16 dst 10.64.0.0/16 dir fwd action block")?;
        forwards(&cluster, KERNEL, "an XFRM policy").await?;
        run("ip xfrm policy flush")?;
        poke()?;
        forwards(&cluster, EBPF, "the policy's end").await?;
        run("nft add table inet mine")?;
        run("nft add chain inet mine gate { type filter hook forward priority 0 ; }")?;
        run("nft add rule inet mine gate tcp dport 25 drop")?;
        poke()?;
        forwards(&cluster, KERNEL, "a rule of somebody else").await?;
        run("nft delete table inet mine")?;
        poke()?;
        forwards(&cluster, EBPF, "the rule's end").await?;

        // Routes, the rule to them, and programs.
        let routes = ip("route show table 116")?;
        ensure!(!routes.trim().is_empty(), "the pod has no route");
        run("ip route flush table 116")?;
        run("ip rule del priority 2000")?;
        let link = ip("-o link show type veth")?;
        let link = link.lines().find(|line| !line.contains(": uplink@")).context("the pod's link")?;
        let link = link.split([':', '@']).nth(1).context("a name")?.trim();
        run(&format!("tc qdisc del dev {link} clsact"))?;
        poke()?;
        let check = async || {
            let missing = [
                ("a route", ip("route show table 116").unwrap_or_default() == routes),
                ("the rule", ip("rule show priority 2000")?.contains("116")),
                ("a program", run(&format!("tc filter show dev {link} ingress"))?.contains("from_pod")),
                ("its twin", run(&format!("tc filter show dev {link} egress"))?.contains("to_pod")),
            ];
            Ok(missing
                .into_iter()
                .find(|(_, there)| !there)
                .map(|(what, _)| format!("{what} is still missing")))
        };
        cluster.wait_for("what was taken away", check).await?;
        let log = cluster.coild_log()?;
        for kind in ["program", "route", "rule"] {
            ensure!(log.contains(&format!("kind=\"{kind}\"")), "coild counted no {kind}:\n{log}");
        }
        sandbox.remove()?;
        cluster.delete_pod("dual", "pod").await
    })
}

/// One coild owns the node; one that is told to leave takes all programs away, and the kernel's part stays.
#[test]
fn coild_leaves_a_node() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |mut cluster| {
        let coild = cluster.programs.coild.clone();
        let leave = || {
            let output = Command::new(&coild).arg("--cleanup").output().context("cannot run coild")?;
            let text = [output.stdout, output.stderr].concat();
            anyhow::Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
        };
        let (left, said) = leave()?;
        ensure!(!left && said.contains("another coild"), "{said}");
        cluster.stop_coild()?;
        ensure!(std::path::Path::new("/sys/fs/bpf/coil/maps").exists(), "the end of coild is no cleanup");
        let (left, said) = leave()?;
        ensure!(left && said.contains("removed from this node"), "{said}");
        ensure!(!std::path::Path::new("/sys/fs/bpf/coil").exists(), "pins are left");
        ensure!(!run("tc qdisc show")?.contains("clsact"), "a qdisc is left: {}", run("tc qdisc show")?);
        Ok(())
    })
}
