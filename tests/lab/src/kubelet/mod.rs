//! The kubelet's stand-in: one process per node, in the node's namespaces.
//!
//! It registers its Node, turns the Pods that are bound to it into network namespaces by calling
//! the CNI plugin, runs their containers' commands from the machine's own files, probes them,
//! and reports. What it does not do: pull images, run init containers, mount volumes other than the
//! service account's files, serve `kubectl logs` and `kubectl exec`, or find its pods again
//! after a restart of its own (the lab ends then).
//!
//! ```text
//! watch pods ──▶ one worker per pod: sandbox ──▶ containers ──▶ status, events
//!                                     └─ CNI ADD, DEL
//! ```

mod cni;
mod container;
mod env;
mod events;
mod node;
mod pod;
mod probe;
mod sandbox;
mod status;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    access::Access,
    config::Options,
    programs::Build,
    state::{self, StateDir},
};

/// What the supervisor tells a node's kubelet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Role {
    pub(crate) node: String,
    pub(crate) options: Options,
    pub(crate) logs: PathBuf,
}

/// Annotation of pods that stand for something that somebody else runs.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// What every part of the kubelet needs.
struct Context {
    role: Role,
    state: StateDir,
    client: Client,
    access: Access,
    build: Build,
}

/// The latest that is known of a pod.
#[derive(Debug, Clone)]
struct Wanted {
    pod: Arc<Pod>,
    /// The object is gone: nothing is left to report to.
    gone: bool,
}

struct Worker {
    wanted: watch::Sender<Wanted>,
    task: JoinHandle<()>,
}

/// The kubelet's main function; it ends only by an error.
pub(crate) fn main(role: &str) -> Result<()> {
    let role: Role = serde_json::from_str(role).context("the kubelet's argument is no role")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(role))
}

async fn run(role: Role) -> Result<()> {
    let state = StateDir::of(&role.options.name);
    let access = Access::read(&state.inner_kubeconfig(&state::node_user(&role.node)))?;
    let client = access.client().await?;
    let build = Build::of(&state, &role.node);
    let context = Arc::new(Context { role, state, client, access, build });
    tokio::select! {
        ended = node::keep_registered(&context) => ended,
        ended = watch_pods(&context) => ended,
    }
}

async fn watch_pods(context: &Arc<Context>) -> Result<()> {
    let api: Api<Pod> = Api::all(context.client.clone());
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", context.role.node));
    let mut events = watcher(api, mine).default_backoff().boxed();
    let mut workers = HashMap::<String, Worker>::new();
    let mut listed = Vec::new();
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => anyhow::bail!("the watch of pods has ended"),
            Err(error) => {
                tracing::warn!(%error, "watch of pods");
                continue;
            }
        };
        workers.retain(|_, worker| !worker.task.is_finished());
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(pod) => {
                listed.push(pod.uid().unwrap_or_default());
                wanted(&mut workers, context, pod);
            }
            watcher::Event::InitDone => {
                let absent = workers.iter().filter(|(uid, _)| !listed.contains(uid));
                absent.for_each(|(_, worker)| worker.wanted.send_modify(|w| w.gone = true));
            }
            watcher::Event::Apply(pod) => wanted(&mut workers, context, pod),
            watcher::Event::Delete(pod) => {
                if let Some(worker) = workers.get(&pod.uid().unwrap_or_default()) {
                    worker.wanted.send_modify(|w| w.gone = true);
                }
            }
        }
    }
}

fn wanted(workers: &mut HashMap<String, Worker>, context: &Arc<Context>, pod: Pod) {
    if pod.annotations().contains_key(MIRROR) {
        return;
    }
    let wanted = Wanted { pod: Arc::new(pod), gone: false };
    let uid = wanted.pod.uid().unwrap_or_default();
    if let Some(worker) = workers.get(&uid) {
        worker.wanted.send_replace(wanted);
        return;
    }
    if status::is_finished(&wanted.pod) && wanted.pod.metadata.deletion_timestamp.is_none() {
        return;
    }
    let (sender, receiver) = watch::channel(wanted);
    let task = tokio::spawn(pod::Worker::new(context.clone(), receiver).run());
    workers.insert(uid, Worker { wanted: sender, task });
}
