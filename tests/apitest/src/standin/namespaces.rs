//! Namespaces: what each one has from its start, and its end.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, ServiceAccount};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::graph::{Entry, Graph};
use super::{owners, unless_race};

/// The ConfigMap with the CA that pods trust.
const ROOT_CA: &str = "kube-root-ca.crt";

fn namespaces(entries: impl Iterator<Item = Entry>) -> (Vec<Entry>, Vec<Entry>) {
    let namespaces = entries.filter(|entry| entry.resource.api.kind == "Namespace");
    namespaces.partition(|entry| entry.deleting)
}

/// Gives every namespace its service account and the CA, as far as it lacks them.
pub(super) async fn furnish(client: &Client, graph: &Graph, ca: &str) -> kube::Result<()> {
    let entries = graph.entries();
    let has = |kind: &str, name: &str, namespace: &str| {
        let is_it = |entry: &Entry| {
            entry.resource.api.kind == kind && entry.name == name && entry.namespace == namespace
        };
        entries.values().any(is_it)
    };
    let (_, alive) = namespaces(entries.values().cloned());
    let metadata = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    for namespace in alive {
        if !has("ServiceAccount", "default", &namespace.name) {
            let account = ServiceAccount { metadata: metadata("default"), ..ServiceAccount::default() };
            create(client, &namespace.name, account).await?;
        }
        if !has("ConfigMap", ROOT_CA, &namespace.name) {
            let data = [("ca.crt".to_owned(), ca.to_owned())].into();
            let map = ConfigMap { metadata: metadata(ROOT_CA), data: Some(data), ..ConfigMap::default() };
            create(client, &namespace.name, map).await?;
        }
    }
    Ok(())
}

async fn create<K>(client: &Client, namespace: &str, object: K) -> kube::Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let created =
        Api::<K>::namespaced(client.clone(), namespace).create(&PostParams::default(), &object).await;
    match created {
        // The namespace is on its way out.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        created => unless_race(created),
    }
}

/// Empties the namespaces that are being deleted, and lets go those that are empty.
pub(super) async fn finish(client: &Client, graph: &Graph) -> kube::Result<()> {
    let (deleting, _) = namespaces(graph.entries().into_values());
    for namespace in deleting {
        for entry in
            graph.entries().values().filter(|entry| entry.namespace == namespace.name && !entry.deleting)
        {
            owners::delete(client, entry).await?;
        }
        if is_empty(client, graph, &namespace.name).await? {
            finalize(client, &namespace.name).await?;
        }
    }
    Ok(())
}

/// Whether nothing is left in a namespace, as the API says; the watches may lag behind.
async fn is_empty(client: &Client, graph: &Graph, namespace: &str) -> kube::Result<bool> {
    if graph.entries().values().any(|entry| entry.namespace == namespace) {
        return Ok(false);
    }
    for resource in graph.resources().into_iter().filter(|resource| resource.namespaced) {
        let one = ListParams::default().limit(1);
        if !resource.objects(client, namespace).list_metadata(&one).await?.items.is_empty() {
            return Ok(false);
        }
    }
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    events.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    Ok(true)
}

async fn finalize(client: &Client, name: &str) -> kube::Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let Some(mut namespace) = api.get_opt(name).await? else { return Ok(()) };
    namespace.spec.get_or_insert_default().finalizers = Some(Vec::new());
    unless_race(api.replace_subresource("finalize", name, &PostParams::default(), &namespace).await)
}
