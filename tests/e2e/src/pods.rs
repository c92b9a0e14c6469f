//! Pods that run the traffic tool.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, bail};
use coil_traffic::RESULT;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, LABEL, NAMESPACE},
    wait::until,
};

/// The first of the ports of `coil-traffic serve`: a sink; then echo, and whoami.
pub(crate) const PORT: u16 = 17770;
pub(crate) const ECHO: u16 = PORT + 1;
pub(crate) const WHOAMI: u16 = PORT + 2;

/// Seconds after which a pod in the node's network ends by itself.
const HOST_LIFE: u32 = 3600;

/// A pod to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) annotations: BTreeMap<String, String>,
    /// In the node's network, and allowed to change it.
    pub(crate) host: bool,
    /// Words of the tool.
    pub(crate) words: Vec<String>,
    /// An address whose echo port tells that it serves.
    pub(crate) probe: Option<Option<IpAddr>>,
}

impl Traffic {
    pub(crate) fn new(name: &str, node: &str, words: &str) -> Self {
        let words = words.split_whitespace().map(str::to_owned).collect();
        Self { name: name.to_owned(), node: node.to_owned(), words, ..Self::default() }
    }

    /// A server, ready when it echoes.
    pub(crate) fn server(name: &str, node: &str) -> Self {
        Self { probe: Some(None), ..Self::new(name, node, &format!("serve {PORT}")) }
    }

    fn manifest(&self, image: &str) -> Value {
        let command: Vec<&str> =
            std::iter::once("coil-traffic").chain(self.words.iter().map(String::as_str)).collect();
        let mut container = json!({
            "name": "traffic", "image": image, "imagePullPolicy": "IfNotPresent", "command": command,
            "terminationMessagePath": RESULT,
        });
        if let Some(host) = &self.probe {
            let mut tcp = json!({"port": ECHO});
            if let Some(host) = host {
                tcp["host"] = json!(host);
            }
            container["readinessProbe"] = json!({"tcpSocket": tcp, "periodSeconds": 1});
        }
        if self.host {
            container["securityContext"] = json!({"runAsUser": 0, "capabilities": {"add": ["NET_ADMIN"]}});
        }
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "labels": {LABEL: self.name}, "annotations": self.annotations},
            "spec": {
                "nodeName": self.node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
                "automountServiceAccountToken": false, "hostNetwork": self.host,
                "tolerations": [{"operator": "Exists"}], "containers": [container],
            },
        });
        if self.host {
            // Tests that were killed must not leave addresses and routes on a node for ever.
            pod["spec"]["activeDeadlineSeconds"] = HOST_LIFE.into();
        }
        pod
    }
}

impl Cluster {
    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Creates a pod.
    pub(crate) async fn create(&self, traffic: &Traffic) -> Result<()> {
        let pod: Pod = serde_json::from_value(traffic.manifest(&self.image))?;
        let created = self.pods().create(&PostParams::default(), &pod).await;
        created.map(drop).with_context(|| format!("cannot create pod {}", traffic.name))
    }

    /// Creates a pod and waits until it is ready; its addresses.
    pub(crate) async fn serve(&self, traffic: &Traffic) -> Result<Vec<IpAddr>> {
        self.create(traffic).await?;
        let pods = self.pods();
        until(&format!("pod {} is ready", traffic.name), self.limit, async || {
            let pod = pods.get(&traffic.name).await.context("cannot read a pod")?;
            Ok(if is_ready(&pod) { Ok(addresses(&pod)) } else { Err(shown(&pod)) })
        })
        .await
    }

    /// Waits until a pod has ended; what it had to say. Its failure is an error.
    pub(crate) async fn result(&self, name: &str) -> Result<String> {
        let pods = self.pods();
        let pod = until(&format!("pod {name} ends"), self.limit, async || {
            let pod = pods.get(name).await.context("cannot read a pod")?;
            let ended = matches!(phase(&pod), "Succeeded" | "Failed");
            Ok(if ended { Ok(pod) } else { Err(shown(&pod)) })
        })
        .await?;
        let message = message(&pod);
        match phase(&pod) {
            "Succeeded" => Ok(message),
            _ => bail!("pod {name} failed: {message}"),
        }
    }

    /// Runs a pod to its end, and removes it; what it had to say.
    pub(crate) async fn run(&self, traffic: &Traffic) -> Result<String> {
        self.create(traffic).await?;
        let result = self.result(&traffic.name).await.with_context(|| traffic.words.join(" "));
        self.remove(&traffic.name).await?;
        result
    }

    /// Deletes a pod, and waits until it is gone.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        remove(&self.pods(), name, self.limit).await
    }

    /// Deletes one of Coil's pods, and waits until another is ready in its place.
    pub(crate) async fn restart(&self, component: &str, which: impl Fn(&Pod) -> bool) -> Result<()> {
        let old: Vec<Pod> =
            self.coil_pods(Some(component)).await?.into_iter().filter(|pod| which(pod)).collect();
        anyhow::ensure!(!old.is_empty(), "there is no pod of {component}");
        for pod in &old {
            let namespace = pod.namespace().unwrap_or_default();
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            pods.delete(&pod.name_any(), &DeleteParams::default()).await.context("cannot delete a pod")?;
        }
        let gone: Vec<_> = old.iter().filter_map(kube::ResourceExt::uid).collect();
        until(&format!("{component} is ready again"), self.limit, async || {
            let pods = self.coil_pods(Some(component)).await?;
            let now: Vec<&Pod> = pods.iter().filter(|pod| which(pod)).collect();
            let anew = now.len() == old.len()
                && now.iter().all(|pod| is_ready(pod) && pod.uid().is_some_and(|uid| !gone.contains(&uid)));
            Ok(if anew {
                Ok(())
            } else {
                Err(now.iter().map(|pod| shown(pod)).collect::<Vec<_>>().join("; "))
            })
        })
        .await
    }

    /// Gateways of an Egress: each pod's name, and its addresses.
    pub(crate) async fn gateways(&self, selector: &str) -> Result<BTreeMap<String, Vec<IpAddr>>> {
        let found = self.pods().list(&ListParams::default().labels(selector)).await;
        let gateways = found.context("cannot list gateways")?.items;
        Ok(gateways.iter().map(|pod| (pod.name_any(), addresses(pod))).collect())
    }
}

/// Deletes a pod, and waits until it is gone.
async fn remove(pods: &Api<Pod>, name: &str, limit: std::time::Duration) -> Result<()> {
    match pods.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        other => other.map(drop).with_context(|| format!("cannot delete pod {name}"))?,
    }
    until(&format!("pod {name} is gone"), limit, async || {
        Ok(match pods.get_opt(name).await.context("cannot read a pod")? {
            None => Ok(()),
            Some(pod) => Err(shown(&pod)),
        })
    })
    .await
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

pub(crate) fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.filter_map(|ip| ip.ip.parse().ok()).collect()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The termination message of its container.
fn message(pod: &Pod) -> String {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ended = statuses.filter_map(|status| status.state.as_ref()?.terminated.as_ref());
    ended.filter_map(|ended| ended.message.clone()).collect()
}

/// A pod in a few words.
pub(crate) fn shown(pod: &Pod) -> String {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let waiting = statuses.filter_map(|status| status.state.as_ref()?.waiting.as_ref()?.message.clone());
    let waiting: Vec<String> = waiting.collect();
    format!("pod {} is {} {}", pod.name_any(), phase(pod), waiting.join(" "))
}
