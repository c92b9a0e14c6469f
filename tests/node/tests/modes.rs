//! What the built coild says of its datapath, and when it does not start.

use anyhow::{Result, ensure};
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
