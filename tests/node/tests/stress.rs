//! 250 pods on one node, 50 at a time, dual stack: no error, each its own addresses, and nothing left; also
//! while coild is killed again and again.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use coil_node_tests::{
    Cluster, Plugin, Programs, Sandbox,
    cluster::WATCH_DELAY,
    place::{at_once, ip},
    runtime::addresses,
};
use serde_json::json;

const PODS: usize = 250;
const AT_ONCE: usize = 50;
/// Between two ends of coild.
const KILL_EVERY: Duration = Duration::from_secs(2);
/// A runtime gives up on a pod after this.
const PATIENCE: Duration = Duration::from_secs(60);

fn plugin(cluster: &Cluster) -> Plugin {
    Plugin {
        path: cluster.programs.plugin.clone(),
        config: json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "coil", "socket": cluster.socket()}),
    }
}

async fn sandboxes(cluster: &Cluster, batch: usize) -> Result<Vec<Sandbox>> {
    let mut made = Vec::new();
    for i in 0..AT_ONCE {
        let name = format!("pod-{batch}-{i}");
        let uid = cluster.create_pod("dual", &name).await?;
        made.push(Sandbox::new("dual", &name, &uid)?);
    }
    tokio::time::sleep(WATCH_DELAY).await;
    Ok(made)
}

/// What the node holds of pods: links, routes, neighbours and exported blocks, one line each.
fn held() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut add = |text: String, own: &str| {
        lines.extend(text.lines().filter(|line| !line.contains(own)).map(str::to_owned));
    };
    add(ip("-o link show type veth")?, ": uplink@");
    for family in ["-4", "-6"] {
        for table in [116, 119] {
            // A table without a route is one that does not exist, which ip calls an error.
            add(ip(&format!("{family} route show table {table}")).unwrap_or_default(), "\0");
        }
        add(ip(&format!("{family} neigh show"))?, " dev uplink ");
    }
    Ok(lines)
}

async fn nothing_is_left(cluster: &Cluster) -> Result<()> {
    let check = async || {
        let (mut left, blocks) = (held()?, cluster.blocks().await?);
        left.extend(blocks.into_iter().map(|block| format!("AddressBlock {block}")));
        Ok((!left.is_empty()).then(|| left.join("; ")))
    };
    cluster.wait_for("the node to hold nothing of a pod", check).await
}

async fn remove(cluster: &Cluster, sandboxes: Vec<Sandbox>) -> Result<()> {
    for sandbox in sandboxes {
        let (namespace, name) = (sandbox.namespace.clone(), sandbox.name.clone());
        sandbox.remove()?;
        cluster.delete_pod(&namespace, &name).await?;
    }
    Ok(())
}

/// As the kubelet does: a failed ADD is followed by DEL, and tried again.
fn add_until_it_works(plugin: &Plugin, sandbox: &Sandbox) -> Result<Vec<String>> {
    let start = Instant::now();
    loop {
        match sandbox.call(plugin, "ADD") {
            Ok(result) => return Ok(addresses(&result)),
            Err(e) if start.elapsed() > PATIENCE => return Err(e),
            Err(_) => del_until_it_works(plugin, sandbox)?,
        }
    }
}

fn del_until_it_works(plugin: &Plugin, sandbox: &Sandbox) -> Result<()> {
    let start = Instant::now();
    loop {
        match sandbox.call(plugin, "DEL") {
            Ok(_) => return Ok(()),
            Err(e) if start.elapsed() > PATIENCE => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn all_distinct(given: &[Vec<String>], seen: &mut BTreeSet<String>) -> Result<()> {
    for own in given {
        ensure!(own.len() == 2, "a dual-stack pod has {own:?}");
        for address in own {
            ensure!(seen.insert(address.clone()), "{address} is given twice");
        }
    }
    Ok(())
}

/// Counts the node's links and routes of pods.
fn counts() -> Result<(usize, usize, usize)> {
    let veths = ip("-o link show type veth")?.lines().filter(|line| !line.contains(": uplink@")).count();
    let routes =
        |family: &str| Ok::<_, anyhow::Error>(ip(&format!("{family} route show table 116"))?.lines().count());
    Ok((veths, routes("-4")?, routes("-6")?))
}

#[test]
fn many_pods_come_and_go() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |cluster| {
        let plugin = plugin(&cluster);
        let (mut pods, mut seen) = (Vec::new(), BTreeSet::new());
        for batch in 0..PODS / AT_ONCE {
            let made = sandboxes(&cluster, batch).await?;
            let given = at_once(&made, |sandbox| Ok(addresses(&sandbox.call(&plugin, "ADD")?)));
            all_distinct(&given.with_context(|| format!("batch {batch}"))?, &mut seen)?;
            pods.extend(made);
        }
        ensure!(counts()? == (PODS, PODS, PODS), "links and routes of {PODS} pods: {:?}", counts()?);
        // Each in a dual-stack block of 64 addresses.
        let blocks = cluster.blocks().await?;
        ensure!(blocks.len() == PODS.div_ceil(64), "{PODS} pods have {} blocks", blocks.len());
        while !pods.is_empty() {
            let gone: Vec<Sandbox> = pods.drain(..AT_ONCE).collect();
            at_once(&gone, |sandbox| sandbox.call(&plugin, "DEL"))?;
            remove(&cluster, gone).await?;
        }
        nothing_is_left(&cluster).await?;
        let log = cluster.coild_log()?;
        let said: Vec<&str> =
            log.lines().filter(|line| line.contains("failed") || line.contains("ERROR")).collect();
        ensure!(said.is_empty(), "coild complains: {}", said.join("\n"));
        Ok(())
    })
}

#[test]
fn many_pods_come_and_go_while_coild_is_killed() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |mut cluster| {
        let plugin = plugin(&cluster);
        let (mut pods, mut seen) = (Vec::new(), BTreeSet::new());
        let mut kills = 0;
        for batch in 0..PODS / AT_ONCE {
            let made = sandboxes(&cluster, batch).await?;
            let given;
            (given, kills) =
                while_killing(&mut cluster, kills, || at_once(&made, |s| add_until_it_works(&plugin, s)))
                    .await?;
            all_distinct(&given?, &mut seen)?;
            pods.extend(made);
        }
        ensure!(counts()? == (PODS, PODS, PODS), "links and routes of {PODS} pods: {:?}", counts()?);
        while !pods.is_empty() {
            let gone: Vec<Sandbox> = pods.drain(..AT_ONCE).collect();
            let deleted;
            (deleted, kills) =
                while_killing(&mut cluster, kills, || at_once(&gone, |s| del_until_it_works(&plugin, s)))
                    .await?;
            deleted?;
            remove(&cluster, gone).await?;
        }
        ensure!(kills >= 2 * PODS / AT_ONCE, "coild was killed {kills} times only");
        nothing_is_left(&cluster).await
    })
}

/// Does something on another thread while coild is killed: at once, then every few seconds until it is done.
/// coild has come back when it is.
async fn while_killing<T: Send>(
    cluster: &mut Cluster,
    kills: usize,
    work: impl FnOnce() -> T + Send,
) -> Result<(T, usize)> {
    let done = AtomicBool::new(false);
    let mut kills = kills;
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let result = work();
            done.store(true, Ordering::Release);
            result
        });
        let handle = tokio::runtime::Handle::current();
        let killed = tokio::task::block_in_place(|| {
            handle.block_on(async {
                loop {
                    // Into the middle of the first requests, and of later ones.
                    tokio::time::sleep(Duration::from_millis(60)).await;
                    cluster.restart_coild().await?;
                    kills += 1;
                    let next = Instant::now() + KILL_EVERY;
                    while Instant::now() < next {
                        if done.load(Ordering::Acquire) {
                            return Ok::<_, anyhow::Error>(());
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            })
        });
        let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        killed.map(|()| (result, kills))
    })
}
