//! The scheduler: a ready node for each pod that has none, the one with the fewest pods.
//!
//! It honours `nodeSelector` and required anti-affinity of pods by host name; taints,
//! resources and everything else it does not look at.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Binding, Node, Pod};
use kube::{Api, Client, ResourceExt as _, api::PostParams};
use serde_json::json;

use super::{is_finished, is_race, matches_labels};

const HOSTNAME_KEY: &str = "kubernetes.io/hostname";

pub(super) async fn reconcile(client: &Client, nodes: &[Node], pods: &[Pod]) -> Result<()> {
    let mut placed: Vec<(String, Pod)> = pods
        .iter()
        .filter(|pod| !is_finished(pod))
        .filter_map(|pod| Some((node_of(pod)?.to_owned(), pod.clone())))
        .collect();
    let waiting = pods.iter().filter(|p| node_of(p).is_none() && p.metadata.deletion_timestamp.is_none());
    for pod in waiting {
        let Some(node) = pick(pod, nodes, &placed) else { continue };
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let binding: Binding = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }))?;
        let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let bound: Result<serde_json::Value, _> =
            api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        match bound {
            Err(e) if !is_race(&e) => {
                return Err(e).with_context(|| format!("cannot bind pod {namespace}/{name}"));
            }
            _ => placed.push((node, pod.clone())),
        }
    }
    Ok(())
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// The node for a pod, given the pods that have one.
fn pick(pod: &Pod, nodes: &[Node], placed: &[(String, Pod)]) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let empty = Default::default();
    let selector = spec.node_selector.as_ref().unwrap_or(&empty);
    let suits = |node: &&Node| {
        is_ready(node)
            && matches_labels(selector, node.labels())
            && !is_avoided(pod, &node.name_any(), placed)
    };
    let load = |node: &&Node| {
        let name = node.name_any();
        (placed.iter().filter(|(on, _)| *on == name).count(), name)
    };
    nodes.iter().filter(suits).min_by_key(load).map(kube::ResourceExt::name_any)
}

/// Whether a required anti-affinity keeps the pod off this node.
fn is_avoided(pod: &Pod, node: &str, placed: &[(String, Pod)]) -> bool {
    let terms = pod
        .spec
        .as_ref()
        .and_then(|s| s.affinity.as_ref()?.pod_anti_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default();
    terms.iter().filter(|term| term.topology_key == HOSTNAME_KEY).any(|term| {
        let empty = Default::default();
        let labels = term.label_selector.as_ref().and_then(|s| s.match_labels.as_ref()).unwrap_or(&empty);
        placed.iter().any(|(on, other)| {
            on == node && other.namespace() == pod.namespace() && matches_labels(labels, other.labels())
        })
    })
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ready: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {HOSTNAME_KEY: name}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "a literal at each call")]
    fn pod(spec: serde_json::Value) -> Pod {
        let mut pod =
            json!({"metadata": {"namespace": "n", "labels": {"app": "a"}}, "spec": {"containers": []}});
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn least_loaded_ready_node() {
        let nodes = [node("node1", "True"), node("node2", "True"), node("node3", "False")];
        let any = pod(json!({}));
        assert_eq!(pick(&any, &nodes, &[]).as_deref(), Some("node1"));
        assert_eq!(pick(&any, &nodes, &[("node1".into(), any.clone())]).as_deref(), Some("node2"));
        assert_eq!(pick(&any, &nodes[2..], &[]), None);
    }

    #[test]
    fn selector_and_anti_affinity() {
        let nodes = [node("node1", "True"), node("node2", "True")];
        let chosen = pod(json!({"nodeSelector": {HOSTNAME_KEY: "node2"}}));
        assert_eq!(pick(&chosen, &nodes, &[]).as_deref(), Some("node2"));
        let apart = pod(json!({"affinity": {"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution":
                [{"topologyKey": HOSTNAME_KEY, "labelSelector": {"matchLabels": {"app": "a"}}}],
        }}}));
        let one = ("node1".to_owned(), apart.clone());
        assert_eq!(pick(&apart, &nodes, std::slice::from_ref(&one)).as_deref(), Some("node2"));
        assert_eq!(pick(&apart, &nodes, &[one, ("node2".into(), apart.clone())]), None);
    }
}
