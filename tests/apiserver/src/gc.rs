//! The collector: deletes what has lost its owners, empties namespaces and CRDs that are
//! being deleted, frees the addresses of removed Services.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::backend::{Backend, CRD_TABLE};
use crate::meta::{self, FINALIZER_FOREGROUND, FINALIZER_ORPHAN};
use crate::registry::Resource;
use crate::status::Result;
use crate::store::{Key, Object, Removed};
use crate::strategy::CRD_CLEANUP;
use crate::verbs::{self, DeleteOptions, Place};

const NAMESPACES: &str = "namespaces";

/// Runs until the store and the server are gone.
pub(crate) async fn run(
    backend: Arc<Backend>,
    mut removed: mpsc::UnboundedReceiver<Removed>,
    mut work: mpsc::UnboundedReceiver<Key>,
) {
    loop {
        tokio::select! {
            Some(removed) = removed.recv() => after_removal(&backend, &removed),
            Some(key) = work.recv() => look_at(&backend, &key),
            else => return,
        }
    }
}

fn after_removal(backend: &Backend, removed: &Removed) {
    let object = removed.object.value();
    if removed.key.table.as_str() == "services" {
        backend.services.release(object);
    }
    for dependent in backend.store.dependents(meta::uid(object)) {
        look_at(backend, &dependent);
    }
    // Whoever waited for this object to go may go now.
    for owner in meta::owners(object).filter_map(|owner| owner.get("uid")?.as_str()) {
        if let Some(key) = backend.store.key_of_uid(owner) {
            look_at(backend, &key);
        }
    }
    if !removed.key.namespace.is_empty() {
        let namespaces = backend.registry.builtin("", NAMESPACES);
        look_at(backend, &Backend::key(&namespaces, "", &removed.key.namespace));
    }
    let crds = backend.registry.builtin("apiextensions.k8s.io", "customresourcedefinitions");
    look_at(backend, &Backend::key(&crds, "", removed.key.table.as_str()));
}

/// Does for one object what its owners and its deletion ask for.
fn look_at(backend: &Backend, key: &Key) {
    let Some(object) = backend.store.get(key) else { return };
    let Some(resource) = backend.registry.snapshot().of_table(&key.table) else { return };
    let done = if meta::is_deleting(object.value()) {
        finish_deletion(backend, &resource, key, &object)
    } else {
        delete_orphan(backend, &resource, key, &object)
    };
    match done {
        Err(error) if error.is_race() => backend.collect(key.clone()),
        Err(error) if error.is_not_found() => {}
        Err(error) => tracing::warn!(table = key.table.as_str(), name = key.name, %error, "collecting"),
        Ok(()) => {}
    }
}

/// Deletes an object when none of its owners is left.
fn delete_orphan(backend: &Backend, resource: &Resource, key: &Key, object: &Object) -> Result<()> {
    let mut owners = meta::owners(object.value()).filter_map(|owner| owner.get("uid")?.as_str()).peekable();
    if owners.peek().is_none()
        || owners.any(|uid| backend.store.uid_exists(uid) && !leaves_first(backend, uid))
    {
        return Ok(());
    }
    delete(backend, resource, key)
}

/// An owner in foreground deletion takes its dependents with it.
fn leaves_first(backend: &Backend, uid: &str) -> bool {
    let owner = backend.store.key_of_uid(uid).and_then(|key| backend.store.get(&key));
    owner.is_some_and(|owner| {
        meta::is_deleting(owner.value()) && meta::finalizers(owner.value()).any(|f| f == FINALIZER_FOREGROUND)
    })
}

fn delete(backend: &Backend, resource: &Resource, key: &Key) -> Result<()> {
    let place = Place { backend, resource, namespace: &key.namespace };
    verbs::delete(place, &key.name, &DeleteOptions::default()).map(|_| ())
}

fn finish_deletion(backend: &Backend, resource: &Resource, key: &Key, object: &Object) -> Result<()> {
    let has = |finalizer: &str| meta::finalizers(object.value()).any(|have| have == finalizer);
    let uid = meta::uid(object.value());
    if has(FINALIZER_ORPHAN) {
        for dependent in backend.store.dependents(uid) {
            cut_loose(backend, &dependent, uid)?;
        }
        return release(backend, resource, object, FINALIZER_ORPHAN);
    }
    if has(FINALIZER_FOREGROUND) {
        for dependent in backend.store.dependents(uid) {
            look_at(backend, &dependent);
        }
        if backend.store.dependents(uid).is_empty() {
            return release(backend, resource, object, FINALIZER_FOREGROUND);
        }
        return Ok(());
    }
    match key.table.as_str() {
        NAMESPACES => finish_namespace(backend, resource, object),
        CRD_TABLE if has(CRD_CLEANUP) => finish_crd(backend, resource, object),
        _ => Ok(()),
    }
}

/// Takes a finalizer away; the object goes when it was the last.
fn release(backend: &Backend, resource: &Resource, object: &Object, finalizer: &str) -> Result<()> {
    let mut new = object.value().clone();
    meta::remove_finalizer(&mut new, finalizer);
    store(backend, resource, new, object.version())
}

fn store(backend: &Backend, resource: &Resource, new: Value, version: u64) -> Result<()> {
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

fn cut_loose(backend: &Backend, key: &Key, uid: &str) -> Result<()> {
    let Some(object) = backend.store.get(key) else { return Ok(()) };
    let Some(resource) = backend.registry.snapshot().of_table(&key.table) else { return Ok(()) };
    let mut new = object.value().clone();
    if let Some(Value::Array(owners)) = meta::metadata_mut(&mut new).get_mut("ownerReferences") {
        owners.retain(|owner| owner["uid"] != *uid);
    }
    backend.replace(&resource, new, object.version()).map(|_| ())
}

fn finish_namespace(backend: &Backend, resource: &Resource, object: &Object) -> Result<()> {
    let name = meta::name(object.value());
    if !empty_out(backend, Some(name), |resource| resource.namespaced) {
        return Ok(());
    }
    let mut new = object.value().clone();
    meta::child_mut(&mut new, "spec").insert("finalizers".into(), json!([]));
    store(backend, resource, new, object.version())
}

fn finish_crd(backend: &Backend, resource: &Resource, object: &Object) -> Result<()> {
    let table = meta::name(object.value());
    if !empty_out(backend, None, |resource| resource.custom && resource.table.as_str() == table) {
        return Ok(());
    }
    release(backend, resource, object, CRD_CLEANUP)
}

/// Deletes the objects of the chosen resources; true when none is left.
fn empty_out(backend: &Backend, namespace: Option<&str>, chosen: impl Fn(&Resource) -> bool) -> bool {
    let snapshot = backend.registry.snapshot();
    let mut empty = true;
    for resource in snapshot.resources().iter().filter(|resource| chosen(resource)) {
        let (objects, _) = backend.store.list(&resource.table, namespace);
        for object in objects.iter().filter(|object| !meta::is_deleting(object.value())) {
            let key = Key::of(&resource.table, object.value());
            if let Err(error) = delete(backend, resource, &key)
                && !error.is_not_found()
            {
                tracing::warn!(table = key.table.as_str(), name = key.name, %error, "emptying");
            }
        }
        empty &= backend.store.is_empty(&resource.table, namespace);
    }
    empty
}
