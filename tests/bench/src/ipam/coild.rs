//! coild with the pods of a full node.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use coil_api::{
    names::{ARG_POD_NAME, ARG_POD_NAMESPACE},
    rpc::{CniArgs, cni_client::CniClient},
};
use coil_netns::NetNs;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::serving_controller;
use crate::{cluster::Cluster, place::NODE_ADDRESSES, report};

/// coild gives memory back every half minute, and its idle threads end after ten seconds.
const SETTLED: Duration = Duration::from_secs(45);
const PODS: usize = 250;
const NODE: &str = "node1";
const SCENARIO: &str = "coild, 250 pods";
const COILD_HEALTH: u16 = 9385;
const LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn run(programs: &Path) -> Result<()> {
    let cluster = Cluster::start(programs).await?;
    cluster.pool("default", 5, "10.64.0.0/16", "fd64::/112").await?;
    cluster.create_all::<Node>([json!({"metadata": {"name": NODE}})]).await?;
    let addresses: Vec<_> =
        NODE_ADDRESSES.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
    let status = Patch::Merge(json!({"status": {"addresses": addresses}}));
    cluster.all::<Node>().patch_status(NODE, &PatchParams::default(), &status).await?;
    let namespaces = cluster.all::<Namespace>();
    if namespaces.get_opt("default").await?.is_none() {
        cluster.create_all::<Namespace>([json!({"metadata": {"name": "default"}})]).await?;
    }
    let controller = serving_controller(&cluster).await?;

    let socket = cluster.dir.path().join("coild.sock");
    let args = [format!("--node-name={NODE}"), format!("--socket={}", socket.display())];
    let mut coild = cluster.program("coild", &args.each_ref().map(String::as_str))?;
    coild.ready(COILD_HEALTH, LIMIT).await?;
    report(SCENARIO, "coild memory without pods", coild.memory()?.now, "MiB");

    eprintln!("connecting {PODS} pods");
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    let pod = |n: usize| {
        let spec = json!({"nodeName": NODE, "containers": [{"name": "c", "image": "c"}]});
        json!({"metadata": {"name": format!("pod{n}")}, "spec": spec})
    };
    cluster.create_in(&pods, (0..PODS).map(pod)).await?;
    let mut cni = connect(&socket).await?;
    let start = Instant::now();
    let mut sandboxes = Vec::new();
    for n in 0..PODS {
        let path = cluster.dir.path().join(format!("pod{n}"));
        sandboxes.push(Sandbox(path.clone()));
        // The namespace lives as long as its file.
        NetNs::create(&path).context("cannot make a pod's namespace")?;
        cni.add(args_of(n, &path)).await.with_context(|| format!("ADD of pod {n}"))?;
    }
    let each = start.elapsed().as_secs_f64() * 1000.0 / f64::from(u32::try_from(PODS)?);
    report(SCENARIO, "ADD, one after the other", each, "ms");
    // What a node has to spare is what coild keeps, not what it needs for a moment.
    eprintln!("waiting until coild has given back what it does not need");
    tokio::time::sleep(SETTLED).await;
    let memory = coild.memory()?;
    report(SCENARIO, "coild memory", memory.now, "MiB");
    report(SCENARIO, "coild memory, peak", memory.peak, "MiB");
    coild.stop()?;
    controller.stop()
}

/// A pod's namespace.
struct Sandbox(PathBuf);

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(e) = NetNs::remove(&self.0) {
            eprintln!("{e}");
        }
    }
}

async fn connect(socket: &Path) -> Result<CniClient<Channel>> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The authority is not used: the connector knows the socket.
    let channel = Endpoint::from_static("http://coild").connect_with_connector(connector).await?;
    Ok(CniClient::new(channel))
}

fn args_of(n: usize, netns: &Path) -> CniArgs {
    let args = [(ARG_POD_NAMESPACE, "default".to_owned()), (ARG_POD_NAME, format!("pod{n}"))];
    CniArgs {
        container_id: format!("{n:064x}"),
        netns: netns.display().to_string(),
        ifname: "eth0".to_owned(),
        args: args.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        path: "/opt/cni/bin".to_owned(),
        stdin_data: br#"{"cniVersion":"1.0.0","name":"k8s-pod-network","type":"coil"}"#.to_vec(),
        ..CniArgs::default()
    }
}
