//! The rounds.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use coil_node_tests::{Cluster, Plugin, Sandbox, cluster, place, runtime};
use serde_json::{Value, json};

/// Pods at once.
pub(crate) const CROWD: usize = 50;
/// Every how many rounds ptp has a dual-stack one: it takes seconds.
const DUAL_EVERY: u32 = 10;
/// How often the crowd comes.
const CROWDS: u32 = 3;

/// Times of one subject in one scenario.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times {
    pub(crate) add: Vec<Duration>,
    pub(crate) del: Vec<Duration>,
}

/// A subject's times by scenario.
#[derive(Debug, Default, Clone)]
pub(crate) struct Subject {
    pub(crate) v4: Times,
    pub(crate) dual: Times,
    /// Each ADD of a crowd.
    pub(crate) crowd: Vec<Duration>,
    /// From the first start to the last end of each crowd.
    pub(crate) crowds: Vec<Duration>,
}

/// All times.
#[derive(Debug, Default, Clone)]
pub(crate) struct Measured {
    pub(crate) coil: Subject,
    pub(crate) ptp: Subject,
}

struct Bench<'a> {
    cluster: &'a Cluster,
    coil: Plugin,
    ptp_v4: Plugin,
    ptp_dual: Plugin,
}

pub(crate) async fn all(cluster: &Cluster, reference: &Path, rounds: u32) -> Result<Measured> {
    let state = tempfile::tempdir().context("cannot make a directory")?;
    let ptp = |name: &str, ranges: Value, routes: Value| Plugin {
        path: reference.join("ptp"),
        config: json!({"cniVersion": "1.0.0", "name": name, "type": "ptp", "mtu": 1500, "ipam":
            {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": state.path()}}),
    };
    let bench = Bench {
        cluster,
        coil: Plugin {
            path: cluster.programs.plugin.clone(),
            config: json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "coil", "socket": cluster.socket()}),
        },
        ptp_v4: ptp("v4", json!([[{"subnet": "10.99.0.0/16"}]]), json!([{"dst": "0.0.0.0/0"}])),
        ptp_dual: ptp(
            "dual",
            json!([[{"subnet": "10.98.0.0/16"}], [{"subnet": "fd98::/64"}]]),
            json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]),
        ),
    };
    // A pod of each pool stays: its block is in hand, as on any node that is in use.
    let mut staying = Vec::new();
    for namespace in ["v4", "dual"] {
        let sandbox = bench.sandbox(namespace, "stays").await?;
        sandbox.call(&bench.coil, "ADD")?;
        staying.push(sandbox);
    }
    let mut measured = Measured::default();
    for round in 0..rounds {
        bench.round("v4", round, &bench.coil, &mut measured.coil.v4).await?;
        bench.round("v4", round, &bench.ptp_v4, &mut measured.ptp.v4).await?;
        bench.round("dual", round, &bench.coil, &mut measured.coil.dual).await?;
        if round % DUAL_EVERY == 0 {
            bench.round("dual", round, &bench.ptp_dual, &mut measured.ptp.dual).await?;
        }
    }
    for number in 0..CROWDS {
        bench.crowd(number, &bench.coil, &mut measured.coil).await?;
        bench.crowd(number, &bench.ptp_v4, &mut measured.ptp).await?;
    }
    for sandbox in staying {
        sandbox.call(&bench.coil, "DEL")?;
        sandbox.remove()?;
    }
    Ok(measured)
}

impl Bench<'_> {
    async fn sandbox(&self, namespace: &str, name: &str) -> Result<Sandbox> {
        let uid = self.cluster.create_pod(namespace, name).await?;
        Sandbox::new(namespace, name, &uid)
    }

    async fn round(&self, namespace: &str, round: u32, plugin: &Plugin, times: &mut Times) -> Result<()> {
        let name = format!("{}-{round}", kind(plugin));
        let sandbox = self.sandbox(namespace, &name).await?;
        // The kubelet has volumes and images to see to before it calls.
        tokio::time::sleep(cluster::WATCH_DELAY).await;
        let (started, result) = (Instant::now(), sandbox.call(plugin, "ADD"));
        times.add.push(started.elapsed());
        anyhow::ensure!(!runtime::addresses(&result?).is_empty(), "{name} has no address");
        let (started, result) = (Instant::now(), sandbox.call(plugin, "DEL"));
        times.del.push(started.elapsed());
        result?;
        sandbox.remove()?;
        self.cluster.delete_pod(namespace, &name).await
    }

    async fn crowd(&self, number: u32, plugin: &Plugin, subject: &mut Subject) -> Result<()> {
        let mut sandboxes = Vec::new();
        for i in 0..CROWD {
            sandboxes.push(self.sandbox("v4", &format!("{}-crowd-{number}-{i}", kind(plugin))).await?);
        }
        tokio::time::sleep(cluster::WATCH_DELAY).await;
        let started = Instant::now();
        subject.crowd.extend(place::at_once(&sandboxes, |sandbox| {
            let started = Instant::now();
            sandbox.call(plugin, "ADD").map(|_| started.elapsed())
        })?);
        subject.crowds.push(started.elapsed());
        place::at_once(&sandboxes, |sandbox| sandbox.call(plugin, "DEL"))?;
        for sandbox in sandboxes {
            let (namespace, name) = (sandbox.namespace.clone(), sandbox.name.clone());
            sandbox.remove()?;
            self.cluster.delete_pod(&namespace, &name).await?;
        }
        Ok(())
    }
}

fn kind(plugin: &Plugin) -> &str {
    plugin.config["type"].as_str().unwrap_or_default()
}
