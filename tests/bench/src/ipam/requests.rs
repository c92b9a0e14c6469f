//! Simulated nodes ask for blocks: how long each waits, and how many blocks a second there are.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use coil_api::{
    crd::{BlockRequest, BlockRequestSpec, CONDITION_COMPLETE},
    names::block_request_name,
};
use futures::{StreamExt as _, future::try_join_all};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;
use tokio::sync::oneshot;

use super::serving_controller;
use crate::{cluster::Cluster, report};

const POOL: &str = "bench";
/// Nodes, and how many blocks each asks for, one after the other.
const SCENARIOS: [(usize, usize); 3] = [(1, 300), (100, 40), (2000, 2)];
/// Longest wait for one block.
const LIMIT: Duration = Duration::from_secs(60);

/// Requests by name → who waits for the answer.
type Waiters = Arc<Mutex<HashMap<String, oneshot::Sender<bool>>>>;

pub(super) async fn run(programs: &Path) -> Result<()> {
    for (nodes, each) in SCENARIOS {
        eprintln!("{nodes} nodes ask for {each} blocks each");
        let cluster = Cluster::start(programs).await?;
        cluster.pool(POOL, 5, "10.0.0.0/9", "fd00::/105").await?;
        let names: Vec<String> = (0..nodes).map(|n| format!("node{n}")).collect();
        cluster.create_all::<Node>(names.iter().map(|n| json!({"metadata": {"name": n}}))).await?;
        let program = serving_controller(&cluster).await?;
        let api: Api<BlockRequest> = cluster.all();
        let waiters = Waiters::default();
        let watch = tokio::spawn(dispatch(api.clone(), waiters.clone()));
        let start = Instant::now();
        let all = try_join_all(names.iter().map(|node| ask(&api, &waiters, node, each))).await?;
        let elapsed = start.elapsed();
        watch.abort();
        let mut latencies: Vec<Duration> = all.into_iter().flatten().collect();
        latencies.sort_unstable();
        let scenario =
            if nodes == 1 { "requests, 1 node".to_owned() } else { format!("requests, {nodes} nodes") };
        for (metric, quantile) in [("latency p50", 50), ("latency p99", 99)] {
            let at = latencies.get((latencies.len() - 1) * quantile / 100).context("no block was given")?;
            report(&scenario, metric, at.as_secs_f64() * 1000.0, "ms");
        }
        let count = u32::try_from(latencies.len())?;
        report(&scenario, "throughput", f64::from(count) / elapsed.as_secs_f64(), "blocks/s");
        report(&scenario, "controller memory", program.memory()?.now, "MiB");
        program.stop()?;
    }
    Ok(())
}

/// What a node does, as often as it needs a block. From the creation of the request to its answer.
async fn ask(api: &Api<BlockRequest>, waiters: &Waiters, node: &str, times: usize) -> Result<Vec<Duration>> {
    let name = block_request_name(POOL, node);
    let spec = BlockRequestSpec { node_name: node.to_owned(), pool_name: POOL.to_owned() };
    let request = BlockRequest::new(&name, spec);
    let mut latencies = Vec::with_capacity(times);
    for n in 0..times {
        if n > 0 {
            api.delete(&name, &DeleteParams::default()).await?;
        }
        let (sender, answer) = oneshot::channel();
        waiters.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), sender);
        let start = Instant::now();
        api.create(&PostParams::default(), &request).await?;
        let given =
            tokio::time::timeout(LIMIT, answer).await.with_context(|| format!("{name} has no answer"))??;
        ensure!(given, "{name} was refused");
        latencies.push(start.elapsed());
    }
    Ok(latencies)
}

/// One watch for all simulated nodes.
async fn dispatch(api: Api<BlockRequest>, waiters: Waiters) -> Result<()> {
    let mut version = "0".to_owned();
    loop {
        let mut events = api.watch(&WatchParams::default().timeout(290), &version).await?.boxed();
        while let Some(event) = events.next().await {
            let (WatchEvent::Added(request) | WatchEvent::Modified(request)) = event? else { continue };
            version = request.resource_version().unwrap_or(version);
            let Some(status) = request.status.as_ref().filter(|s| s.is_true(CONDITION_COMPLETE)) else {
                continue;
            };
            let waiter = waiters.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.name_any());
            if let Some(waiter) = waiter {
                // One that went away needs no answer.
                let _ = waiter.send(status.address_block_name.is_some());
            }
        }
    }
}
