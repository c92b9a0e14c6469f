//! The collector: deletes what has lost its owners, empties namespaces and CRDs that are
//! being deleted, frees the addresses of removed Services.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::auth::User;
use crate::backend::{Backend, CRD_TABLE};
use crate::meta::{self, FINALIZER_FOREGROUND, FINALIZER_ORPHAN};
use crate::registry::Resource;
use crate::status::Result;
use crate::store::{Key, Object, Removed};
use crate::strategy::CRD_CLEANUP;
use crate::verbs::{self, Caller, DeleteOptions, Place};

const NAMESPACES: &str = "namespaces";

/// Runs until the store and the server are gone.
pub(crate) async fn run(
    backend: Arc<Backend>,
    mut removed: mpsc::UnboundedReceiver<Removed>,
    mut work: mpsc::UnboundedReceiver<Key>,
) {
    let user = User::service_account("kube-system", "generic-garbage-collector");
    let collector = Collector { backend, caller: Caller::new(Arc::new(user)) };
    loop {
        tokio::select! {
            Some(removed) = removed.recv() => collector.after_removal(&removed),
            Some(key) = work.recv() => collector.look_at(&key).await,
            else => return,
        }
    }
}

struct Collector {
    backend: Arc<Backend>,
    caller: Caller,
}

impl Collector {
    /// Notes who should be looked at now that an object has gone.
    fn after_removal(&self, removed: &Removed) {
        let backend = &self.backend;
        let object = removed.object.value();
        if removed.key.table.as_str() == "services" {
            backend.services.release(object);
        }
        for dependent in backend.store.dependents(meta::uid(object)) {
            backend.collect(dependent);
        }
        // Whoever waited for this object to go may go now.
        for owner in meta::owners(object).filter_map(|owner| owner.get("uid")?.as_str()) {
            if let Some(key) = backend.store.key_of_uid(owner) {
                backend.collect(key);
            }
        }
        if !removed.key.namespace.is_empty() {
            let namespaces = backend.registry.builtin("", NAMESPACES);
            backend.collect(Backend::key(&namespaces, "", &removed.key.namespace));
        }
        let crds = backend.registry.builtin("apiextensions.k8s.io", "customresourcedefinitions");
        backend.collect(Backend::key(&crds, "", removed.key.table.as_str()));
    }

    /// Does for one object what its owners and its deletion ask for.
    async fn look_at(&self, key: &Key) {
        let backend = &self.backend;
        let Some(object) = backend.store.get(key) else { return };
        let Some(resource) = backend.registry.snapshot().of_table(&key.table) else { return };
        let done = if meta::is_deleting(object.value()) {
            self.finish_deletion(&resource, key, &object).await
        } else {
            self.delete_orphan(&resource, key, &object).await
        };
        match done {
            Err(error) if error.is_race() => backend.collect(key.clone()),
            Err(error) if error.is_not_found() => {}
            Err(error) => tracing::warn!(table = key.table.as_str(), name = key.name, %error, "collecting"),
            Ok(()) => {}
        }
    }

    /// Deletes an object when none of its owners is left.
    async fn delete_orphan(&self, resource: &Resource, key: &Key, object: &Object) -> Result<()> {
        if self.is_orphan(object) { self.delete(resource, key).await } else { Ok(()) }
    }

    fn is_orphan(&self, object: &Object) -> bool {
        let store = &self.backend.store;
        let mut owners =
            meta::owners(object.value()).filter_map(|owner| owner.get("uid")?.as_str()).peekable();
        owners.peek().is_some() && !owners.any(|uid| store.uid_exists(uid) && !self.leaves_first(uid))
    }

    /// An owner in foreground deletion takes its dependents with it.
    fn leaves_first(&self, uid: &str) -> bool {
        let store = &self.backend.store;
        let owner = store.key_of_uid(uid).and_then(|key| store.get(&key));
        owner.is_some_and(|owner| {
            meta::is_deleting(owner.value())
                && meta::finalizers(owner.value()).any(|f| f == FINALIZER_FOREGROUND)
        })
    }

    async fn delete(&self, resource: &Resource, key: &Key) -> Result<()> {
        let place =
            Place { backend: &self.backend, resource, namespace: &key.namespace, caller: &self.caller };
        verbs::delete(place, &key.name, &DeleteOptions::default()).await.map(|_| ())
    }

    async fn finish_deletion(&self, resource: &Resource, key: &Key, object: &Object) -> Result<()> {
        let store = &self.backend.store;
        let has = |finalizer: &str| meta::finalizers(object.value()).any(|have| have == finalizer);
        let uid = meta::uid(object.value());
        if has(FINALIZER_ORPHAN) {
            for dependent in store.dependents(uid) {
                self.cut_loose(&dependent, uid)?;
            }
            return self.release(resource, object, FINALIZER_ORPHAN);
        }
        if has(FINALIZER_FOREGROUND) {
            let dependents = store.dependents(uid);
            if dependents.is_empty() {
                return self.release(resource, object, FINALIZER_FOREGROUND);
            }
            // This object is looked at again when the last of them has gone.
            for dependent in dependents {
                let waiting = store.get(&dependent).is_some_and(|object| meta::is_deleting(object.value()));
                if !waiting {
                    self.backend.collect(dependent);
                }
            }
            return Ok(());
        }
        match key.table.as_str() {
            NAMESPACES => self.finish_namespace(resource, object).await,
            CRD_TABLE if has(CRD_CLEANUP) => self.finish_crd(resource, object).await,
            _ => Ok(()),
        }
    }

    /// Takes a finalizer away; the object goes when it was the last.
    fn release(&self, resource: &Resource, object: &Object, finalizer: &str) -> Result<()> {
        let mut new = object.value().clone();
        meta::remove_finalizer(&mut new, finalizer);
        self.store(resource, new, object.version())
    }

    fn store(&self, resource: &Resource, new: Value, version: u64) -> Result<()> {
        let backend = &self.backend;
        if verbs::may_go(&new) {
            backend.remove(resource, &new, version)?;
        } else {
            let stored = backend.replace(resource, new, version)?;
            if stored.version() != version {
                backend.collect(Key::of(&resource.table, stored.value()));
            }
        }
        Ok(())
    }

    fn cut_loose(&self, key: &Key, uid: &str) -> Result<()> {
        let backend = &self.backend;
        let Some(object) = backend.store.get(key) else { return Ok(()) };
        let Some(resource) = backend.registry.snapshot().of_table(&key.table) else { return Ok(()) };
        let mut new = object.value().clone();
        let metadata = meta::metadata_mut(&mut new);
        if let Some(Value::Array(owners)) = metadata.get_mut("ownerReferences") {
            owners.retain(|owner| owner["uid"] != *uid);
            if owners.is_empty() {
                metadata.remove("ownerReferences");
            }
        }
        backend.replace(&resource, new, object.version()).map(|_| ())
    }

    async fn finish_namespace(&self, resource: &Resource, object: &Object) -> Result<()> {
        let name = meta::name(object.value());
        if !self.empty_out(Some(name), |resource| resource.namespaced).await {
            return Ok(());
        }
        let mut new = object.value().clone();
        meta::child_mut(&mut new, "spec").insert("finalizers".into(), json!([]));
        self.store(resource, new, object.version())
    }

    async fn finish_crd(&self, resource: &Resource, object: &Object) -> Result<()> {
        let table = meta::name(object.value());
        let of_crd = |resource: &Resource| resource.custom && resource.table.as_str() == table;
        if !self.empty_out(None, of_crd).await {
            return Ok(());
        }
        self.release(resource, object, CRD_CLEANUP)
    }

    /// Deletes the objects of the chosen resources; true when none is left.
    async fn empty_out(&self, namespace: Option<&str>, chosen: impl Fn(&Resource) -> bool) -> bool {
        let backend = &self.backend;
        let snapshot = backend.registry.snapshot();
        let mut empty = true;
        for resource in snapshot.resources() {
            if !chosen(resource) {
                continue;
            }
            let (objects, _) = backend.store.list(&resource.table, namespace);
            for object in objects {
                if meta::is_deleting(object.value()) {
                    continue;
                }
                let key = Key::of(&resource.table, object.value());
                if let Err(error) = self.delete(resource, &key).await
                    && !error.is_not_found()
                {
                    tracing::warn!(table = key.table.as_str(), name = key.name, %error, "emptying");
                }
            }
            empty &= backend.store.is_empty(&resource.table, namespace);
        }
        empty
    }
}
