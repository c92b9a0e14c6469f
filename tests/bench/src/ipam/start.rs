//! The controller starts in a large cluster.

use std::{path::Path, time::Instant};

use anyhow::Result;
use coil_api::crd::{AddressBlock, AddressPool};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use serde_json::json;

use super::{answered, controller};
use crate::{cluster::Cluster, report};

const NODES: u32 = 10_000;
const BLOCKS: u32 = 50_000;
const POOL: &str = "default";
const SCENARIO: &str = "start, 10,000 nodes and 50,000 blocks";

pub(super) async fn run(programs: &Path) -> Result<()> {
    let cluster = Cluster::start(programs).await?;
    cluster.pool(POOL, 5, "10.0.0.0/9", "fd00::/105").await?;
    let owner = cluster.all::<AddressPool>().get(POOL).await?;
    eprintln!("creating {NODES} nodes and {BLOCKS} blocks");
    cluster
        .create_all::<Node>((0..NODES).map(|n| {
            let labels =
                json!({"kubernetes.io/hostname": format!("node-{n:05}"), "kubernetes.io/os": "linux"});
            json!({"metadata": {"name": format!("node-{n:05}"), "labels": labels}})
        }))
        .await?;
    let blocks = (0..BLOCKS).map(|n| {
        let [b, c, d] = [n >> 11, (n >> 3) & 0xff, (n & 7) << 5];
        json!({
            "metadata": {
                "name": format!("{POOL}-{n}"),
                "labels": {
                    "coil.cybozu.com/pool": POOL,
                    "coil.cybozu.com/node": format!("node-{:05}", n % NODES),
                    "coil.cybozu.com/request": format!("6ba7b810-9dad-11d1-80b4-{n:012x}"),
                },
                "finalizers": ["coil.cybozu.com"],
                "ownerReferences": [{
                    "apiVersion": "coil.cybozu.com/v2", "kind": "AddressPool", "name": POOL, "uid": owner.uid(),
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "index": n,
            "ipv4": format!("10.{b}.{c}.{d}/27"),
            "ipv6": format!("fd00::{:x}:{:x}/123", n >> 11, (n & 0x7ff) << 5),
        })
    });
    cluster.create_all::<AddressBlock>(blocks).await?;
    eprintln!("starting the controller");
    let start = Instant::now();
    let program = controller(&cluster)?;
    // Only an answer shows that everything was read.
    answered(&cluster, POOL, "node-00000").await?;
    report(SCENARIO, "start to ready", start.elapsed().as_secs_f64(), "s");
    let memory = program.memory()?;
    report(SCENARIO, "controller memory", memory.now, "MiB");
    report(SCENARIO, "controller memory, peak", memory.peak, "MiB");
    program.stop()
}
