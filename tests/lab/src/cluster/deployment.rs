//! Deployments: one ReplicaSet per pod template, sizes from [`rollout`].

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    controller_ref, is_controlled_by, is_race,
    rollout::{self, Count, Strategy},
};

const HASH_LABEL: &str = "pod-template-hash";

pub(super) async fn reconcile(
    client: &Client,
    deployments: &[Deployment],
    sets: &[ReplicaSet],
) -> Result<()> {
    for deployment in deployments.iter().filter(|d| d.metadata.deletion_timestamp.is_none()) {
        one(client, deployment, sets).await.with_context(|| {
            format!("Deployment {}/{}", deployment.namespace().unwrap_or_default(), deployment.name_any())
        })?;
    }
    Ok(())
}

async fn one(client: &Client, deployment: &Deployment, sets: &[ReplicaSet]) -> Result<()> {
    let namespace = deployment.namespace().unwrap_or_default();
    let api: Api<ReplicaSet> = Api::namespaced(client.clone(), &namespace);
    let spec = deployment.spec.clone().unwrap_or_default();
    let replicas = spec.replicas.unwrap_or(1);
    let hash = template_hash(deployment)?;
    let owned = || sets.iter().filter(|s| is_controlled_by(*s, deployment.metadata.uid.as_deref()));
    let is_new = |s: &&ReplicaSet| s.labels().get(HASH_LABEL) == Some(&hash);
    let new = owned().find(is_new);
    let old: Vec<&ReplicaSet> = owned().filter(|s| !is_new(s)).collect();
    let old_counts: Vec<Count> = old.iter().map(|s| count(s)).collect();
    let new_count = new.map_or(Count { wanted: 0, available: 0, existing: 0 }, count);
    let strategy = Strategy::of(spec.strategy.as_ref(), replicas);
    let (wanted, wanted_old) = rollout::next(strategy, replicas, new_count, &old_counts);
    match new {
        None => {
            let set = replica_set(deployment, &hash, wanted)?;
            match api.create(&PostParams::default(), &set).await {
                Err(e) if !is_race(&e) => return Err(e).context("cannot create its ReplicaSet"),
                _ => {}
            }
        }
        Some(set) => resize(&api, set, wanted).await?,
    }
    for (set, wanted) in old.into_iter().zip(wanted_old) {
        resize(&api, set, wanted).await?;
    }
    report(client, deployment, replicas, new_count, &old_counts, owned()).await
}

fn count(set: &ReplicaSet) -> Count {
    let status = set.status.clone().unwrap_or_default();
    Count {
        wanted: set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
        available: status.available_replicas.unwrap_or_default(),
        existing: status.replicas,
    }
}

async fn resize(api: &Api<ReplicaSet>, set: &ReplicaSet, wanted: i32) -> Result<()> {
    if count(set).wanted == wanted {
        return Ok(());
    }
    let patch = json!({"spec": {"replicas": wanted}});
    match api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(e) if !is_race(&e) => {
            Err(e).with_context(|| format!("cannot resize ReplicaSet {}", set.name_any()))
        }
        _ => Ok(()),
    }
}

fn replica_set(deployment: &Deployment, hash: &str, replicas: i32) -> Result<ReplicaSet> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut template = serde_json::to_value(&spec.template)?;
    template["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let mut selector = serde_json::to_value(&spec.selector)?;
    selector["matchLabels"][HASH_LABEL] = json!(hash);
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": format!("{}-{hash}", deployment.name_any()),
            "namespace": deployment.namespace(),
            "labels": template["metadata"]["labels"],
            "ownerReferences": controller_ref(deployment),
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    }))?)
}

/// A short name for a pod template: the same template has always the same.
fn template_hash(deployment: &Deployment) -> Result<String> {
    let text = serde_json::to_string(&deployment.spec.as_ref().map(|s| &s.template))?;
    // FNV-1a: nobody attacks a lab's names.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    // Letters and digits that spell no words, as Kubernetes uses.
    let alphabet = b"bcdfghjklmnpqrstvwxz2456789";
    Ok((0..10)
        .map(|n| {
            char::from(alphabet[usize::from((hash >> (n * 6)).to_le_bytes()[0] & 0x3f) % alphabet.len()])
        })
        .collect())
}

async fn report<'a>(
    client: &Client,
    deployment: &Deployment,
    replicas: i32,
    new: Count,
    old: &[Count],
    sets: impl Iterator<Item = &'a ReplicaSet>,
) -> Result<()> {
    let ready: i32 = sets.filter_map(|s| s.status.as_ref()?.ready_replicas).sum();
    let available = new.available + old.iter().map(|c| c.available).sum::<i32>();
    let total = new.existing + old.iter().map(|c| c.existing).sum::<i32>();
    let condition = |kind: &str, good: bool, reason: &str| {
        let before = deployment.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let status = if good { "True" } else { "False" };
        let since = before
            .iter()
            .find(|c| c.type_ == kind && c.status == status)
            .and_then(|c| c.last_transition_time.as_ref())
            .map_or_else(k8s_openapi::jiff::Timestamp::now, |t| t.0);
        json!({"type": kind, "status": status, "reason": reason, "lastTransitionTime": since, "lastUpdateTime": since})
    };
    let enough = available >= replicas;
    let done = new.available >= replicas && total == new.existing;
    let status = json!({
        "observedGeneration": deployment.metadata.generation,
        "replicas": total,
        "updatedReplicas": new.existing,
        "readyReplicas": ready,
        "availableReplicas": available,
        "unavailableReplicas": (replicas - available).max(0),
        "conditions": [
            condition("Available", enough, if enough { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" }),
            condition("Progressing", true, if done { "NewReplicaSetAvailable" } else { "ReplicaSetUpdated" }),
        ],
    });
    let before = serde_json::to_value(&deployment.status)?;
    if covers(&before, &status) {
        return Ok(());
    }
    let api: Api<Deployment> = Api::namespaced(client.clone(), &deployment.namespace().unwrap_or_default());
    let patch = json!({"status": status});
    match api.patch_status(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(e) if !is_race(&e) => Err(e).context("cannot report its status"),
        _ => Ok(()),
    }
}

/// Whether everything that `wanted` says stands in `have` already. Zero and absent are the same.
pub(super) fn covers(have: &serde_json::Value, wanted: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (have, wanted) {
        (Value::Null, wanted) => *wanted == json!(0) || wanted.is_null(),
        (Value::Object(have), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| covers(have.get(key).unwrap_or(&Value::Null), value))
        }
        (Value::Array(have), Value::Array(wanted)) => {
            have.len() == wanted.len() && have.iter().zip(wanted).all(|(h, w)| covers(h, w))
        }
        (have, wanted) => have == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "nat", "namespace": "n", "uid": "u"},
            "spec": {
                "selector": {"matchLabels": {"app": "nat"}},
                "template": {"metadata": {"labels": {"app": "nat"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_set_is_selected_by_its_templates_hash() {
        let hash = template_hash(&deployment("a")).unwrap();
        assert_eq!(hash, template_hash(&deployment("a")).unwrap());
        assert_ne!(hash, template_hash(&deployment("b")).unwrap());
        let set = replica_set(&deployment("a"), &hash, 2).unwrap();
        assert!(is_controlled_by(&set, Some("u")) || set.owner_references().is_empty());
        let spec = set.spec.unwrap();
        assert_eq!(spec.selector.match_labels.unwrap()[HASH_LABEL], hash);
        assert_eq!(spec.template.unwrap().metadata.unwrap().labels.unwrap()["app"], "nat");
    }

    #[test]
    fn nothing_new_is_nothing_to_write() {
        let have = json!({"replicas": 2, "conditions": [{"type": "Available", "status": "True", "x": 1}]});
        assert!(covers(&have, &json!({"replicas": 2, "unavailableReplicas": 0})));
        assert!(covers(&have, &json!({"conditions": [{"type": "Available", "status": "True"}]})));
        assert!(!covers(&have, &json!({"replicas": 3})));
        assert!(!covers(&have, &json!({"conditions": []})));
    }
}
