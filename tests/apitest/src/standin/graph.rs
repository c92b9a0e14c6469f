//! What there is: the metadata of all objects, kept up to date by watches.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::DynamicObject;
use kube::core::{ApiResource, PartialObjectMeta};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Groups whose objects nobody owns here, or that are none of this program's business.
const SKIPPED: [&str; 11] = [
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "certificates.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "metrics.k8s.io",
    "node.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

/// A kind of objects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Resource {
    pub(super) api: ApiResource,
    pub(super) namespaced: bool,
}

impl Resource {
    /// Its objects in a namespace, which cluster-wide ones do not have.
    pub(super) fn objects(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.api)
        } else {
            Api::all_with(client.clone(), &self.api)
        }
    }
}

/// One object, as far as it matters.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) resource: Resource,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) finalizers: Vec<String>,
    pub(super) deleting: bool,
}

impl Entry {
    fn new(resource: &Resource, object: &PartialObjectMeta<DynamicObject>) -> Self {
        Self {
            resource: resource.clone(),
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            owners: object.owner_references().to_vec(),
            finalizers: object.finalizers().to_vec(),
            deleting: object.metadata.deletion_timestamp.is_some(),
        }
    }

    pub(super) fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|have| have == finalizer)
    }

    pub(super) fn objects(&self, client: &Client) -> Api<DynamicObject> {
        self.resource.objects(client, &self.namespace)
    }
}

#[derive(Default)]
struct State {
    /// By uid.
    entries: HashMap<String, Entry>,
    watches: HashMap<Resource, JoinHandle<()>>,
}

/// The objects, and a bell that rings when they change. Dropped, the watches end.
pub(super) struct Graph {
    shared: Arc<Shared>,
    discovery: JoinHandle<()>,
}

struct Shared {
    client: Client,
    state: Mutex<State>,
    changed: Notify,
    /// Rings when the set of resources may have changed.
    resources: Notify,
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.discovery.abort();
        self.shared.lock().watches.values().for_each(JoinHandle::abort);
    }
}

impl Graph {
    pub(super) fn start(client: Client) -> Self {
        let shared =
            Shared { client, state: Mutex::default(), changed: Notify::new(), resources: Notify::new() };
        let shared = Arc::new(shared);
        let discovery = tokio::spawn(discover(shared.clone()));
        Self { shared, discovery }
    }

    /// Waits for a change since the last wait.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// All objects as they are now.
    pub(super) fn entries(&self) -> HashMap<String, Entry> {
        self.shared.lock().entries.clone()
    }

    /// All kinds of objects.
    pub(super) fn resources(&self) -> Vec<Resource> {
        self.shared.lock().watches.keys().cloned().collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the set of resources: a watch for each.
async fn discover(shared: Arc<Shared>) {
    loop {
        match find_resources(&shared.client).await {
            Ok(found) => {
                let mut state = shared.lock();
                for resource in &found {
                    state
                        .watches
                        .entry(resource.clone())
                        .or_insert_with(|| tokio::spawn(watch(shared.clone(), resource.clone())));
                }
                state.watches.retain(|resource, watch| {
                    let stays = found.contains(resource);
                    if !stays {
                        watch.abort();
                    }
                    stays
                });
                state.entries.retain(|_, entry| found.contains(&entry.resource));
            }
            Err(error) => {
                tracing::debug!(%error, "discovery");
                shared.resources.notify_one();
                tokio::time::sleep(super::RETRY).await;
            }
        }
        shared.resources.notified().await;
    }
}

async fn find_resources(client: &Client) -> kube::Result<HashSet<Resource>> {
    let discovery = Discovery::new(client.clone()).exclude(&SKIPPED).run().await?;
    let mut found = HashSet::new();
    for group in discovery.groups() {
        for (api, capabilities) in group.recommended_resources() {
            let usable = [verbs::LIST, verbs::WATCH, verbs::DELETE, verbs::PATCH];
            if api.plural != "events" && usable.into_iter().all(|verb| capabilities.supports_operation(verb))
            {
                found.insert(Resource { api, namespaced: capabilities.scope == Scope::Namespaced });
            }
        }
    }
    Ok(found)
}

async fn watch(shared: Arc<Shared>, resource: Resource) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(shared.client.clone(), &resource.api);
    let mut events = watcher(api, Config::default()).default_backoff().boxed();
    let mut listed = HashSet::new();
    loop {
        match events.try_next().await {
            Ok(Some(event)) => apply(&shared, &resource, event, &mut listed),
            Ok(None) => return,
            Err(error) => tracing::debug!(kind = resource.api.kind, %error, "watch"),
        }
    }
}

fn apply(
    shared: &Shared,
    resource: &Resource,
    event: Event<PartialObjectMeta<DynamicObject>>,
    listed: &mut HashSet<String>,
) {
    let mut state = shared.lock();
    match event {
        Event::Init => listed.clear(),
        Event::Apply(object) | Event::InitApply(object) => {
            let entry = Entry::new(resource, &object);
            listed.insert(entry.uid.clone());
            // An object of the same name with another uid has taken the place of this one.
            state.entries.retain(|uid, old| {
                *uid == entry.uid
                    || (&old.resource, &old.namespace, &old.name) != (resource, &entry.namespace, &entry.name)
            });
            state.entries.insert(entry.uid.clone(), entry);
        }
        Event::Delete(object) => {
            state.entries.remove(&object.uid().unwrap_or_default());
        }
        Event::InitDone => {
            state.entries.retain(|uid, entry| entry.resource != *resource || listed.contains(uid));
        }
    }
    drop(state);
    shared.changed.notify_one();
    if resource.api.kind == "CustomResourceDefinition" {
        shared.resources.notify_one();
    }
}
