//! ReplicaSets: as many pods as wanted.

use std::cmp::Reverse;

use anyhow::{Context as _, Result};
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{controller_ref, deployment::covers, is_controlled_by, is_finished, is_race, pod_is};

pub(super) async fn reconcile(client: &Client, sets: &[ReplicaSet], pods: &[Pod]) -> Result<()> {
    for set in sets.iter().filter(|s| s.metadata.deletion_timestamp.is_none()) {
        one(client, set, pods).await.with_context(|| {
            format!("ReplicaSet {}/{}", set.namespace().unwrap_or_default(), set.name_any())
        })?;
    }
    Ok(())
}

async fn one(client: &Client, set: &ReplicaSet, pods: &[Pod]) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &set.namespace().unwrap_or_default());
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let owned: Vec<&Pod> =
        pods.iter().filter(|p| is_controlled_by(*p, set.metadata.uid.as_deref())).collect();
    let live: Vec<&Pod> = owned
        .iter()
        .copied()
        .filter(|p| p.metadata.deletion_timestamp.is_none() && !is_finished(p))
        .collect();
    let have = i32::try_from(live.len()).unwrap_or(i32::MAX);
    for _ in have..wanted {
        api.create(&PostParams::default(), &pod(set)?).await.context("cannot create a pod")?;
    }
    for victim in victims(live.clone(), usize::try_from(have - wanted).unwrap_or_default()) {
        match api.delete(&victim.name_any(), &DeleteParams::default()).await {
            Err(e) if !is_race(&e) => return Err(e).context("cannot delete a pod"),
            _ => {}
        }
    }
    report(client, set, &owned, &live).await
}

/// The pods to go first: without a node, not ready, youngest.
fn victims(mut live: Vec<&Pod>, count: usize) -> Vec<&Pod> {
    live.sort_by_key(|pod| {
        let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        let age = Reverse(pod.creation_timestamp().map(|t| t.0));
        (bound, pod_is(pod, "Ready"), age, pod.name_any())
    });
    live.truncate(count);
    live
}

fn pod(set: &ReplicaSet) -> Result<Pod> {
    let mut pod = serde_json::to_value(set.spec.as_ref().and_then(|s| s.template.as_ref()))?;
    pod["metadata"]["generateName"] = json!(format!("{}-", set.name_any()));
    pod["metadata"]["namespace"] = json!(set.namespace());
    pod["metadata"]["ownerReferences"] = json!(controller_ref(set));
    Ok(serde_json::from_value(pod)?)
}

async fn report(client: &Client, set: &ReplicaSet, owned: &[&Pod], live: &[&Pod]) -> Result<()> {
    let ready = live.iter().filter(|p| pod_is(p, "Ready")).count();
    // A pod on its way out exists: a Deployment that recreates waits for it.
    let existing = owned.iter().filter(|p| !is_finished(p)).count();
    let status = json!({
        "observedGeneration": set.metadata.generation,
        "replicas": existing,
        "fullyLabeledReplicas": existing,
        "readyReplicas": ready,
        "availableReplicas": ready,
    });
    if covers(&serde_json::to_value(&set.status)?, &status) {
        return Ok(());
    }
    let api: Api<ReplicaSet> = Api::namespaced(client.clone(), &set.namespace().unwrap_or_default());
    let patch = json!({"status": status});
    match api.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(e) if !is_race(&e) => Err(e).context("cannot report its status"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_named(name: &str, node: Option<&str>, ready: &str, created: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn the_least_useful_go_first() {
        let pods = [
            pod_named("old", Some("node1"), "True", "2026-01-01T00:00:00Z"),
            pod_named("young", Some("node1"), "True", "2026-01-02T00:00:00Z"),
            pod_named("broken", Some("node1"), "False", "2026-01-01T00:00:00Z"),
            pod_named("unbound", None, "False", "2026-01-01T00:00:00Z"),
        ];
        let names: Vec<_> = victims(pods.iter().collect(), 3).iter().map(|p| p.name_any()).collect();
        assert_eq!(names, ["unbound", "broken", "young"]);
        assert!(victims(pods.iter().collect(), 0).is_empty());
    }
}
