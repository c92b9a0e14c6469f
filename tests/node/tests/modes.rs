//! What the built coild says of its datapath, and when it does not start.

use anyhow::{Context as _, Result, ensure};
use coil_api::gateway::SOCKET;
use coil_node_tests::{
    Cluster, Pair, Programs,
    place::{ip, run},
};

/// A rule that pods' packets would miss on their way past the stack.
fn foreign_rule() -> Result<()> {
    run("nft add table inet mine")?;
    run("nft add chain inet mine gate { type filter hook forward priority 0 ; }")?;
    run("nft add rule inet mine gate tcp dport 25 drop").map(drop)
}

/// Waits until the metric says so.
async fn says(cluster: &Cluster, wanted: &str) -> Result<()> {
    let check = async || {
        let metrics = cluster.metrics()?;
        let line = metrics.lines().find(|line| line.starts_with("coil_datapath_info{")).unwrap_or_default();
        Ok((!line.contains(wanted)).then(|| format!("{line:?} has no {wanted}")))
    };
    cluster.wait_for("coil_datapath_info", check).await
}

#[test]
fn a_fallback_is_said_in_metric_and_event() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |cluster| {
        says(&cluster, "mode=\"ebpf\",reason=\"\"").await?;
        foreign_rule()?;
        says(&cluster, "mode=\"ebpf\",reason=\"chain gate of table inet mine").await?;
        let told = async |reason: &'static str, note: &'static str| {
            let check = async || {
                let events = cluster.events().await?;
                let there = events.iter().any(|(r, n)| r == reason && n.contains(note));
                Ok((!there).then(|| format!("{events:?}")))
            };
            cluster.wait_for(&format!("the Event {reason}"), check).await
        };
        told("DatapathByKernel", "chain gate of table inet mine").await?;
        run("nft delete table inet mine")?;
        ip("link add poke type veth peer name poked")?;
        ip("link del poke")?;
        says(&cluster, "mode=\"ebpf\",reason=\"\"").await?;
        told("DatapathByEbpf", "again").await
    })
}

#[test]
fn the_kernel_alone_by_choice() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &["--datapath", "kernel"], async |cluster| {
        says(&cluster, "mode=\"kernel\"").await?;
        ensure!(!std::path::Path::new("/sys/fs/bpf/coil").exists(), "pins of programs");
        ensure!(cluster.events().await?.is_empty(), "a choice is no fallback: {:?}", cluster.events().await?);
        Ok(())
    })
}

/// `--datapath ebpf` starts only where pods' packets may pass the stack by.
#[test]
fn ebpf_or_no_start() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &["--datapath", "ebpf"], async |mut cluster| {
        says(&cluster, "mode=\"ebpf\",reason=\"\"").await?;
        let pair = Pair::new(&cluster, "v4").await?;
        pair.pings(&cluster, (true, 0), "the start").await?;
        cluster.stop_coild()?;
        foreign_rule()?;
        let said = cluster.coild_refuses()?;
        ensure!(
            said.contains("--datapath ebpf is not possible here: chain gate of table inet mine"),
            "{said}"
        );
        // What an earlier coild left does not pass the rule by.
        let (answered, seen) = pair.ping()?;
        ensure!(answered && seen == 2, "answered: {answered}, seen by the stack: {seen}");
        Ok(())
    })
}

/// Whoever wants every packet in the host's stack is told that it is so.
#[test]
fn the_host_stack_is_a_reason() -> Result<()> {
    for flag in ["--host-stack", "--compat-calico"] {
        Cluster::run(Programs::beside_tests()?, &[flag], async |cluster| {
            says(&cluster, &format!("mode=\"ebpf\",reason=\"{flag}\"")).await?;
            ensure!(
                cluster.events().await?.is_empty(),
                "a choice is no fallback: {:?}",
                cluster.events().await?
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// What leaves this node for 9.9.9.9, whoever sends it.
fn left() -> Result<u64> {
    let text = run("nft list counter inet out left")?;
    let count = text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(count.context("a counter")?.parse()?)
}

/// A client never leaves without its gateway: not while coild changes to the kernel's datapath, and not after it where the
/// kernel cannot do egress.
#[test]
fn clients_stay_shut_in_when_the_datapath_changes() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |mut cluster| {
        cluster.create_egress("v4", "nat", &["9.9.9.9/32"]).await?;
        let pair = Pair::new(&cluster, "v4").await?;
        run("nft add table inet out")?;
        run("nft add counter inet out left")?;
        run("nft add chain inet out gate { type filter hook postrouting priority 300 ; }")?;
        run("nft add rule inet out gate ip daddr 9.9.9.9 counter name left")?;
        let ping = || pair.pods[0].run("ping -c2 -i0.2 -W1 9.9.9.9");
        ensure!(!ping()? && left()? == 2, "no client yet, and not seen");
        for pod in ["one", "two"] {
            cluster.annotate_client(("v4", pod), ("v4", "nat")).await?;
        }
        let check = async || {
            let before = left()?;
            ping()?;
            Ok((left()? > before).then(|| "a client leaves".to_owned()))
        };
        cluster.wait_for("the clients to be shut in", check).await?;
        let before = left()?;

        cluster.stop_coild()?;
        cluster.start_coild_with(&["--datapath", "kernel"]).await?;
        says(&cluster, "mode=\"kernel\"").await?;
        let check = async || {
            ensure!(!ping()?, "nobody answers there");
            ensure!(left()? == before, "a client left with its own address:\n{}", cluster.coild_log()?);
            let log = cluster.coild_log()?;
            let done = log.contains("programs of an earlier run stay on the node")
                || log.contains("took the eBPF programs of an earlier run off");
            Ok((!done).then_some(log))
        };
        cluster.wait_for("coild to deal with what is left", check).await?;
        // From pod to pod it is the kernel's at once.
        let (answered, _) = pair.ping()?;
        ensure!(answered && !ping()? && left()? == before, "a client left with its own address");
        Ok(())
    })
}

/// A gateway's programs go when its kernel does their work, and not where it cannot.
#[test]
fn a_gateway_stays_one_when_the_datapath_changes() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |mut cluster| {
        cluster.create_egress("v4", "nat", &["9.9.9.9/32"]).await?;
        let pair = Pair::new(&cluster, "v4").await?;
        cluster.label_gateway(("v4", "one"), "nat").await?;
        let check = async || {
            let sockets = pair.inside(0, || std::fs::read_to_string("/proc/thread-self/net/unix"))??;
            Ok((!sockets.contains(SOCKET)).then_some(sockets))
        };
        cluster.wait_for("the gateway to be one", check).await?;
        cluster.stop_coild()?;
        cluster.start_coild_with(&["--datapath", "kernel"]).await?;
        let (stays, gone) =
            ("programs of an earlier run stay on the node", "took the eBPF programs of an earlier run off");
        let check = async || {
            let log = cluster.coild_log()?;
            Ok((!log.contains(stays) && !log.contains(gone)).then_some(log))
        };
        cluster.wait_for("coild to deal with what is left", check).await?;
        let log = cluster.coild_log()?;
        if log.contains("the kernel has what egress needs") {
            let check = async || {
                let log = cluster.coild_log()?;
                Ok((!log.contains(gone)).then_some(log))
            };
            return cluster.wait_for("the kernel to do it all", check).await;
        }
        let stay = log.lines().any(|line| line.contains(stays) && line.contains("v4/one"));
        ensure!(stay && !log.contains(gone), "the gateway is none any more:\n{log}");
        Ok(())
    })
}

/// What the kernel lacks for egress is said once in the log, in the same words as in the metric.
#[test]
fn what_the_kernel_lacks_is_said_once() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |cluster| {
        says(&cluster, "mode=\"ebpf\"").await?;
        // Something happens, of which coild could say it again.
        cluster.create_egress("v4", "nat", &["9.9.9.9/32"]).await?;
        let pair = Pair::new(&cluster, "v4").await?;
        cluster.annotate_client(("v4", "one"), ("v4", "nat")).await?;
        pair.pings(&cluster, (true, 0), "the start").await?;
        let (log, metrics) = (cluster.coild_log()?, cluster.metrics()?);
        let metric = metrics.lines().find(|line| line.starts_with("coil_egress_kernel_support{"));
        let (missing, value) = metric
            .and_then(|line| line.split_once("missing=\"")?.1.split_once("\"} "))
            .with_context(|| format!("no coil_egress_kernel_support in {metrics}"))?;
        ensure!(value == if missing.is_empty() { "1" } else { "0" }, "{missing:?} is {value}");
        let words = if missing.is_empty() { "the kernel has what egress needs" } else { missing };
        let said = log.lines().filter(|line| line.contains(words)).count();
        ensure!(said == 1, "{words:?} is said {said} times:\n{log}");
        Ok(())
    })
}
