//! The Node object: registered once, its conditions kept up to date.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{net::UnixStream, time};

use super::Context;
use crate::config;

/// How often the network is looked at until it is ready, and after.
const UNREADY_INTERVAL: Duration = Duration::from_millis(200);
const READY_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn keep_registered(context: &Context) -> Result<()> {
    let api: Api<Node> = Api::all(context.client.clone());
    register(&api, context).await?;
    let mut last = None;
    loop {
        let ready = network_is_ready().await;
        let since = match last {
            Some((was, since)) if was == ready => since,
            _ => Timestamp::now(),
        };
        last = Some((ready, since));
        let patch = json!({"status": status(context, ready, since)?});
        if let Err(error) =
            api.patch_status(&context.role.node, &PatchParams::default(), &Patch::Merge(&patch)).await
        {
            tracing::warn!(%error, "cannot report the node's status");
        }
        time::sleep(if ready { READY_INTERVAL } else { UNREADY_INTERVAL }).await;
    }
}

async fn register(api: &Api<Node>, context: &Context) -> Result<()> {
    let name = &context.role.node;
    let node: Node = serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": std::env::consts::ARCH,
            },
        },
        "spec": {},
    }))?;
    match api.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(e)) if e.code == 409 => Ok(()),
        other => other.map(drop).with_context(|| format!("cannot register Node {name}")),
    }
}

/// A container runtime calls the network ready when it has a configuration; this one knows
/// that the configuration is Coil's, and looks whether coild listens.
async fn network_is_ready() -> bool {
    UnixStream::connect(Path::new(coil_api::names::DEFAULT_SOCKET)).await.is_ok()
}

fn status(context: &Context, ready: bool, since: Timestamp) -> Result<Value> {
    let role = &context.role;
    let mut addresses: Vec<Value> = config::node_addresses(role.options.family, &role.node)?
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": role.node}));
    let now = Timestamp::now();
    let condition = |kind: &str, status: bool, reason: &str, message: &str| {
        json!({
            "type": kind, "status": if status { "True" } else { "False" }, "reason": reason,
            "message": message, "lastHeartbeatTime": now, "lastTransitionTime": since,
        })
    };
    let readiness = if ready {
        condition("Ready", true, "KubeletReady", "the lab's kubelet is ready")
    } else {
        condition("Ready", false, "KubeletNotReady", "NetworkPluginNotReady: coild does not answer")
    };
    let quantities = json!({"cpu": "8", "memory": "16Gi", "pods": "500", "ephemeral-storage": "10Gi"});
    Ok(json!({
        "addresses": addresses,
        "capacity": quantities,
        "allocatable": quantities,
        "conditions": [
            condition("MemoryPressure", false, "KubeletHasSufficientMemory", ""),
            condition("DiskPressure", false, "KubeletHasNoDiskPressure", ""),
            condition("PIDPressure", false, "KubeletHasSufficientPID", ""),
            readiness,
        ],
        "nodeInfo": {
            "architecture": std::env::consts::ARCH, "operatingSystem": "linux",
            "osImage": "Coil lab", "kernelVersion": kernel(), "kubeletVersion": "v1.33.0-coil-lab",
            "kubeProxyVersion": "", "containerRuntimeVersion": "coil-lab://1",
            "machineID": role.node, "systemUUID": role.node, "bootID": role.node,
        },
    }))
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
