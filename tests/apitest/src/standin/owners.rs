//! The garbage collector: dependents go when their owners have gone.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::graph::{Entry, Graph};
use super::unless_race;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// Does for every object what its owners and its deletion ask for.
pub(super) async fn collect(client: &Client, graph: &Graph) -> kube::Result<()> {
    let entries = graph.entries();
    for entry in entries.values() {
        if entry.deleting && entry.has(ORPHAN) {
            for dependent in dependents(&entries, &entry.uid) {
                cut_loose(client, dependent, &entry.uid).await?;
            }
            release(client, entry, ORPHAN).await?;
        } else if entry.deleting && entry.has(FOREGROUND) {
            let mut dependents = dependents(&entries, &entry.uid);
            if dependents.next().is_none() {
                release(client, entry, FOREGROUND).await?;
            }
        } else if !entry.deleting
            && !entry.owners.is_empty()
            && is_orphan(client, graph, &entries, entry).await?
        {
            delete(client, entry).await?;
        }
    }
    Ok(())
}

fn dependents<'a>(entries: &'a HashMap<String, Entry>, uid: &'a str) -> impl Iterator<Item = &'a Entry> {
    entries.values().filter(move |entry| entry.owners.iter().any(|owner| owner.uid == uid))
}

/// Whether none of the owners keeps an object alive.
async fn is_orphan(
    client: &Client,
    graph: &Graph,
    entries: &HashMap<String, Entry>,
    entry: &Entry,
) -> kube::Result<bool> {
    for owner in &entry.owners {
        match entries.get(&owner.uid) {
            // An owner in foreground deletion takes its dependents with it.
            Some(owner) if owner.deleting && owner.has(FOREGROUND) => {}
            Some(_) => return Ok(false),
            // The watch of the owner may lag behind that of the dependent.
            None if exists(client, graph, entry, owner).await? => return Ok(false),
            None => {}
        }
    }
    Ok(true)
}

/// Whether an owner exists, as the API says; one of an unknown kind may.
async fn exists(client: &Client, graph: &Graph, entry: &Entry, owner: &OwnerReference) -> kube::Result<bool> {
    let is_it = |resource: &super::graph::Resource| {
        resource.api.kind == owner.kind && resource.api.api_version == owner.api_version
    };
    let Some(resource) = graph.resources().into_iter().find(is_it) else { return Ok(true) };
    let found = resource.objects(client, &entry.namespace).get_metadata_opt(&owner.name).await?;
    Ok(found.is_some_and(|found| found.metadata.uid.as_deref() == Some(&owner.uid)))
}

pub(super) async fn delete(client: &Client, entry: &Entry) -> kube::Result<()> {
    let preconditions = Preconditions { uid: Some(entry.uid.clone()), resource_version: None };
    let how = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    unless_race(entry.objects(client).delete(&entry.name, &how).await)
}

async fn release(client: &Client, entry: &Entry, finalizer: &str) -> kube::Result<()> {
    let left: Vec<&String> = entry.finalizers.iter().filter(|have| *have != finalizer).collect();
    let patch = json!({"metadata": {"uid": entry.uid, "finalizers": left}});
    unless_race(entry.objects(client).patch(&entry.name, &PatchParams::default(), &Patch::Merge(patch)).await)
}

async fn cut_loose(client: &Client, entry: &Entry, owner: &str) -> kube::Result<()> {
    let left: Vec<&OwnerReference> = entry.owners.iter().filter(|have| have.uid != owner).collect();
    let patch = json!({"metadata": {"uid": entry.uid, "ownerReferences": left}});
    unless_race(entry.objects(client).patch(&entry.name, &PatchParams::default(), &Patch::Merge(patch)).await)
}
