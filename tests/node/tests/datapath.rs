//! The built coild follows what others do to its node: rules that would treat pods' packets differently keep them with
//! the kernel within one look, and what is taken away comes back, counted.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use coil_node_tests::{
    Cluster, Pair, Plugin, Programs, Sandbox,
    cluster::WATCH_DELAY,
    place::{ip, run},
};
use serde_json::json;

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
        let metrics = cluster.metrics()?;
        for (kind, least) in [("program", 2), ("route", 1), ("rule", 1)] {
            let name = format!("coil_datapath_drift_total{{kind=\"{kind}\"}} ");
            let count = metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_default();
            ensure!(count.parse().is_ok_and(|count: u32| count >= least), "{kind}: {count:?} counted");
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
            // The capabilities that deploy/cleanup gives it.
            let output = Command::new("setpriv")
                .args(["--inh-caps=-all", "--bounding-set=-all,+net_admin,+bpf"])
                .arg(&coild)
                .arg("--cleanup")
                .output()
                .context("cannot run coild by setpriv (package util-linux)")?;
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

/// The link of the pod with an address, as the node has it.
fn link_to(address: &str) -> Result<String> {
    let route = ip(&format!("route get {address}"))?;
    Ok(route.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next()).context("a route")?.to_owned())
}

const PAST_THE_STACK: (bool, u64) = (true, 0);
const BY_THE_STACK: (bool, u64) = (true, 2);
const REFUSED: (bool, u64) = (false, 1);

/// What the bandwidth plugin puts on a pod's veth holds its packets back, and a policy of somebody else in the forward
/// hook decides about all: within one look of coild's.
#[test]
fn limits_and_policies_of_others_hold() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |cluster| {
        let pair = Pair::new(&cluster, "v4").await?;
        pair.pings(&cluster, PAST_THE_STACK, "the start").await?;
        let link = link_to(&pair.addresses[1])?;
        run(&format!("tc qdisc add dev {link} root tbf rate 10mbit burst 32kbit latency 400ms"))?;
        poke()?;
        pair.pings(&cluster, BY_THE_STACK, "a limit").await?;
        run(&format!("tc qdisc del dev {link} root"))?;
        poke()?;
        pair.pings(&cluster, PAST_THE_STACK, "the limit's end").await?;
        run("nft chain inet watch gate { policy drop ; }")?;
        poke()?;
        pair.pings(&cluster, REFUSED, "a policy").await?;
        run("nft chain inet watch gate { policy accept ; }")?;
        poke()?;
        pair.pings(&cluster, PAST_THE_STACK, "the policy's end").await
    })
}

/// `--host-stack`: nothing goes past it.
#[test]
fn the_host_stack_sees_everything() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &["--host-stack"], async |cluster| {
        let pair = Pair::new(&cluster, "v4").await?;
        pair.pings(&cluster, BY_THE_STACK, "the start").await
    })
}

/// `auto` takes the programs on every kernel that has what they need, and attaches them as that kernel can: uplinks by TCX
/// links since Linux 6.6, else by filters.
#[test]
fn auto_picks_what_the_kernel_has() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |cluster| {
        let pair = Pair::new(&cluster, "v4").await?;
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            anyhow::bail!("what version is {release:?}?");
        };
        let tcx = (major, minor) >= (6, 6);
        let said = if tcx { "uplinks=\"TCX links\"" } else { "uplinks=\"clsact filters\"" };
        let log = cluster.coild_log()?;
        ensure!(log.contains(said), "{release}: coild does not say {said}:\n{log}");
        let pinned = std::fs::read_dir("/sys/fs/bpf/coil/links")?.count();
        ensure!(pinned == if tcx { 2 } else { 0 }, "{release}: {pinned} links");
        for (side, of_uplink, of_pod) in [("ingress", "from_net", "from_pod"), ("egress", "to_net", "to_pod")]
        {
            let filters = run(&format!("tc filter show dev uplink {side}"))?;
            ensure!(filters.contains(of_uplink) != tcx, "{release}: the uplink has {filters:?}");
            let filters = run(&format!("tc filter show dev {} {side}", link_to(&pair.addresses[1])?))?;
            ensure!(filters.contains(of_pod), "{release}: the pod's link has {filters:?}");
        }
        pair.pings(&cluster, PAST_THE_STACK, "the start").await
    })
}
