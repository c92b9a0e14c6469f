//! The watches that fill the index.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coil_api::names::{APP_NAME, COMPONENT_EGRESS, LABEL_APP_COMPONENT, LABEL_APP_NAME};
use futures::StreamExt;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::DeserializeGuard,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    index::{EgressInfo, Index, ObjectKey, PodInfo, Store},
    objects,
};

/// What coild does on this node, and so what it has to know. Kinds outside of it are not watched: their
/// definitions need not exist in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Addresses of pods.
    pub ipam: bool,
    /// Egress NAT.
    pub egress: bool,
    /// Egress NAT by the kernel, if that can.
    pub kernel_egress: bool,
}

/// The index, and the watches that keep it. Clones share them.
#[derive(Clone, Default)]
pub struct Feed {
    inner: Arc<Inner>,
}

/// The kind that a gateway alone waits for: nothing else needs it.
const CLIENTS: &str = "clients";
const SERVICE_RANGES: &str = "servicecidrs";
/// How long after an answer of no use the API server is asked again, and after a refusal.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_FORBIDDEN: Duration = Duration::from_secs(60);
/// How often in a row it is forbidden before it counts: a role that was just made is not known to all API servers at once.
const FORBIDDEN: u32 = 10;

struct Inner {
    index: Mutex<Index>,
    /// Kinds whose first list has not come.
    waiting: Mutex<BTreeSet<&'static str>>,
    watching_clients: AtomicBool,
    following_clients: AtomicBool,
    changes: watch::Sender<u64>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            index: Mutex::default(),
            waiting: Mutex::default(),
            watching_clients: AtomicBool::new(false),
            following_clients: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data is whole after each statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything counts.
const fn any<T>(_: &T) -> bool {
    true
}

/// Of what is not understood, nothing is known.
const fn nothing<T>() -> Option<T> {
    None
}

/// How the objects of a kind become the index's.
struct Reading<K, T> {
    take: fn(&K) -> Option<T>,
    store: fn(&mut Index) -> &mut Store<T>,
    /// What does not count changes nothing of what was known before.
    counts: fn(&T) -> bool,
    /// What there is of an object that is not understood, and was never before.
    unknown: fn() -> Option<T>,
}

impl<K, T> Clone for Reading<K, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, T> Copy for Reading<K, T> {}

impl<K, T> Reading<K, T> {
    const fn new(take: fn(&K) -> Option<T>, store: fn(&mut Index) -> &mut Store<T>) -> Self {
        Self { take, store, counts: any, unknown: nothing }
    }
}

impl Feed {
    /// Starts the watches for a node. Needs a Tokio runtime.
    pub fn start(&self, client: &Client, node: &str, scope: Scope) {
        let all = watcher::Config::default();
        let own = all.clone().fields(&format!("spec.nodeName={node}"));
        let pod = if scope.egress { objects::pod } else { objects::pod_without_egress };
        self.watch("pods", Api::all(client.clone()), own, Reading::new(pod, |i| &mut i.pods));
        let nodes = Reading::new(objects::node, |i| &mut i.nodes);
        self.watch("nodes", Api::all(client.clone()), all.clone(), nodes);
        if scope.ipam {
            let namespaces = Reading::new(objects::namespace, |i| &mut i.namespaces);
            self.watch("namespaces", Api::all(client.clone()), all.clone(), namespaces);
            let pools = Reading::new(objects::pool, |i| &mut i.pools);
            self.watch("addresspools", Api::all(client.clone()), all.clone(), pools);
        }
        if scope.egress {
            // Without its Egress a client's packets would leave by themselves.
            let egresses = Reading {
                unknown: || Some(EgressInfo::unknown()),
                ..Reading::new(objects::egress, |i| &mut i.egresses)
            };
            self.watch("egresses", Api::all(client.clone()), all.clone(), egresses);
            let services = all
                .clone()
                .labels(&format!("{LABEL_APP_NAME}={APP_NAME},{LABEL_APP_COMPONENT}={COMPONENT_EGRESS}"));
            let slices = Reading::new(objects::slice, |i| &mut i.slices);
            self.watch("endpointslices", Api::all(client.clone()), services.clone(), slices);
            if scope.kernel_egress {
                let reading = Reading::new(objects::service, |i| &mut i.services);
                self.watch("services", Api::all(client.clone()), services, reading);
            }
            self.watch_service_ranges(client, all);
        }
    }

    /// Starts the one watch that grows with the cluster, where the kernel is a gateway: whose the packets are. The
    /// second call does nothing.
    pub fn watch_clients(&self, client: &Client) {
        let is_first = {
            // Whoever sees that they are watched sees that they are waited for.
            let mut waiting = lock(&self.inner.waiting);
            let is_first = !self.inner.watching_clients.swap(true, Ordering::Relaxed);
            if is_first {
                waiting.insert(CLIENTS);
            }
            is_first
        };
        if is_first {
            let all = watcher::Config::default();
            let pods = Api::all(client.clone());
            // A client whose annotation becomes wrong stays one.
            let reading = Reading {
                counts: |pod: &PodInfo| pod.egresses.is_ok(),
                ..Reading::new(objects::client, |i| &mut i.clients)
            };
            self.watch(CLIENTS, pods, all, reading);
        }
    }

    /// Whether the clients of all nodes are known.
    #[must_use]
    pub fn knows_clients(&self) -> bool {
        self.inner.watching_clients.load(Ordering::Relaxed) && !lock(&self.inner.waiting).contains(CLIENTS)
    }

    /// Waits for them only where they can be had: clusters before 1.33 have no such kind, and a role of before does not
    /// name it.
    fn watch_service_ranges(&self, client: &Client, config: watcher::Config) {
        // Without them a Service may pass for the world.
        lock(&self.inner.waiting).insert(SERVICE_RANGES);
        let (feed, client) = (self.clone(), client.clone());
        tokio::spawn(async move {
            let ranges: Api<ServiceCIDR> = Api::all(client.clone());
            let mut forbidden = 0;
            loop {
                match ranges.list_metadata(&ListParams::default().limit(1)).await {
                    Ok(_) => {
                        let reading = Reading::new(objects::service_range, |i| &mut i.service_ranges);
                        return feed.follow(SERVICE_RANGES, Api::all(client), config, reading);
                    }
                    Err(kube::Error::Api(status)) if status.code == 404 => {
                        info!("this cluster does not tell its service ranges; --in-cluster-cidrs can");
                        feed.go_without(SERVICE_RANGES);
                        return;
                    }
                    Err(kube::Error::Api(status)) if status.code == 403 && forbidden + 1 < FORBIDDEN => {
                        forbidden += 1;
                        tokio::time::sleep(RETRY).await;
                    }
                    Err(kube::Error::Api(status)) if status.code == 403 => {
                        if feed.go_without(SERVICE_RANGES) {
                            warn!(
                                error = status.message,
                                "coild may not read the ranges of Services. Those outside of the private ranges count as \
                                 the world: allow it, as the role that is shipped does, or name them by --in-cluster-cidrs"
                            );
                        }
                        tokio::time::sleep(RETRY_FORBIDDEN).await;
                    }
                    // Others pass: the API server is away, or busy.
                    Err(e) => {
                        warn!(kind = SERVICE_RANGES, error = %e, "cannot list; will try again");
                        forbidden = 0;
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        });
    }

    /// Nothing waits for a kind any more, which is news. True when something did.
    fn go_without(&self, kind: &'static str) -> bool {
        let waited = lock(&self.inner.waiting).remove(kind);
        if waited {
            self.announce();
        }
        waited
    }

    /// Follows a kind, whose first list everything waits for.
    fn watch<K, T>(
        &self,
        kind: &'static str,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        reading: Reading<K, T>,
    ) where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
        DeserializeGuard<K>: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send,
        T: PartialEq + Send + 'static,
    {
        lock(&self.inner.waiting).insert(kind);
        self.follow(kind, api, config, reading);
    }

    /// The same without waiting.
    fn follow<K, T>(
        &self,
        kind: &'static str,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        reading: Reading<K, T>,
    ) where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
        DeserializeGuard<K>: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send,
        T: PartialEq + Send + 'static,
    {
        let Reading { take, store, counts, unknown } = reading;
        let feed = self.clone();
        tokio::spawn(async move {
            let mut listed: Store<T> = Store::new();
            let mut unreadable: BTreeSet<ObjectKey> = BTreeSet::new();
            let mut events = watcher(api, config).default_backoff().boxed();
            let part = |object: &DeserializeGuard<K>| -> (ObjectKey, Option<T>) {
                match &object.0 {
                    Ok(object) => (objects::key(object), take(object)),
                    Err(e) => {
                        let text = |part: &Option<String>| part.clone().unwrap_or_default();
                        let meta = &e.metadata;
                        let key = ObjectKey { namespace: text(&meta.namespace), name: text(&meta.name) };
                        warn!(%kind, %key, error = %e.error, "an object is ignored, it is not understood");
                        (key, None)
                    }
                }
            };
            while let Some(event) = events.next().await {
                match event {
                    Err(e) => {
                        warn!(%kind, error = %e, "cannot watch; what is known stays in use");
                        feed.follows(kind, false);
                    }
                    Ok(watcher::Event::Init) => {
                        listed.clear();
                        unreadable.clear();
                    }
                    Ok(watcher::Event::InitApply(object)) => {
                        let (key, value) = part(&object);
                        if object.0.is_err() {
                            unreadable.insert(key.clone());
                        }
                        listed.extend(value.map(|value| (key, value)));
                    }
                    Ok(watcher::Event::InitDone) => {
                        let mut list = std::mem::take(&mut listed);
                        feed.follows(kind, true);
                        feed.update(|index| {
                            let store = store(index);
                            // What does not count any more, or cannot be read any more, stays as it was.
                            for (key, value) in list.iter_mut().filter(|(_, value)| !counts(value)) {
                                if let Some(was) = store.remove(key) {
                                    *value = was;
                                }
                            }
                            let kept = unreadable.iter().filter_map(|key| {
                                store.remove_entry(key).or_else(|| Some((key.clone(), unknown()?)))
                            });
                            list.extend(kept);
                            let new = *store != list;
                            *store = list;
                            new
                        });
                        // The first list is news even when it is empty, and who was told of what is in it may have looked
                        // before this.
                        feed.go_without(kind);
                    }
                    // What cannot be read any more stays as it was.
                    Ok(watcher::Event::Apply(object)) if object.0.is_err() => {
                        let (key, _) = part(&object);
                        feed.update(|index| {
                            let store = store(index);
                            let new = if store.contains_key(&key) { None } else { unknown() };
                            new.is_some_and(|value| put(store, key, Some(value)))
                        });
                    }
                    Ok(watcher::Event::Apply(object)) => {
                        feed.follows(kind, true);
                        let (key, value) = part(&object);
                        feed.update(|index| {
                            let store = store(index);
                            let stays = value.as_ref().is_some_and(|value| !counts(value))
                                && store.contains_key(&key);
                            !stays && put(store, key, value)
                        });
                    }
                    Ok(watcher::Event::Delete(object)) => {
                        feed.follows(kind, true);
                        let (key, _) = part(&object);
                        feed.update(|index| put(store(index), key, None));
                    }
                }
            }
        });
    }

    /// Notes whether the clients of all nodes are being followed: a gateway must not take those that started meanwhile for
    /// strangers.
    fn follows(&self, kind: &'static str, now: bool) {
        if kind == CLIENTS && self.inner.following_clients.swap(now, Ordering::Relaxed) != now {
            self.announce();
        }
    }

    /// Whether all clients of all nodes are known, as far as the API server tells in time.
    #[must_use]
    pub fn follows_clients(&self) -> bool {
        self.knows_clients() && self.inner.following_clients.load(Ordering::Relaxed)
    }

    /// Changes the index; announces it when `change` says that it is another one.
    pub fn update(&self, change: impl FnOnce(&mut Index) -> bool) -> bool {
        let changed = change(&mut lock(&self.inner.index));
        if changed {
            self.announce();
        }
        changed
    }

    fn announce(&self) {
        self.inner.changes.send_modify(|n| *n += 1);
    }

    /// Looks into the index.
    pub fn read<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&lock(&self.inner.index))
    }

    /// Counts the index's changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// The kinds that everything still waits for.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        lock(&self.inner.waiting).iter().copied().filter(|kind| *kind != CLIENTS).collect()
    }

    /// Waits until every kind was listed once.
    pub async fn synced(&self) {
        let mut changes = self.changes();
        while !self.missing().is_empty() {
            // The sender lives in `self`.
            let _ = changes.changed().await;
        }
    }
}

fn put<T: PartialEq>(store: &mut Store<T>, key: ObjectKey, value: Option<T>) -> bool {
    match value {
        Some(value) if store.get(&key) == Some(&value) => false,
        Some(value) => {
            store.insert(key, value);
            true
        }
        None => store.remove(&key).is_some(),
    }
}

#[cfg(test)]
mod tests;
