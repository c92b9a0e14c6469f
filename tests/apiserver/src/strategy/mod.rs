//! What the server does to objects of particular kinds besides storing them: defaults,
//! validation, allocation. One file per family of kinds.

mod event;
mod identity;
mod pod;
mod service;
mod webhook;
mod workload;

use serde_json::{Value, json};

use crate::admission;
use crate::backend::Backend;
use crate::meta::{self, default_to};
use crate::registry::{self, Resource};
use crate::services::Reservation;
use crate::status::{ApiError, FieldError, Result};

pub(crate) use event::{from_storage, to_storage};

/// Prepares an object of the resource for being written; `old` is its current state.
/// What comes back must be kept once the object is stored.
pub(crate) fn prepare(
    backend: &Backend,
    resource: &Resource,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<Option<Reservation>> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod::prepare(backend, object, old)?,
        ("", "services") => return service::prepare(backend, resource, object, old).map(Some),
        ("", "namespaces") => namespace(object, old),
        ("", "nodes") => {
            meta::child_mut(object, "spec");
        }
        ("", "secrets") => identity::secret(object),
        ("apps" | "batch", _) => workload::prepare(resource, object),
        ("policy", _) | ("networking.k8s.io", "networkpolicies") => {
            meta::child_mut(object, "spec");
        }
        ("rbac.authorization.k8s.io", _) => identity::role(object),
        ("apiextensions.k8s.io", _) => crd(object, old),
        (admission::GROUP, _) => webhook::prepare(resource, object),
        ("discovery.k8s.io", _) => endpoint_slice(object),
        _ => {}
    }
    Ok(None)
}

/// What is wrong with an object, beyond its schema.
pub(crate) fn validate(resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod::validate(object, old),
        ("", "services") => service::validate(object, old),
        ("apps", _) => workload::validate(resource, object, old),
        ("apiextensions.k8s.io", _) => registry::validate_crd(object),
        (admission::GROUP, _) => webhook::validate(object),
        ("rbac.authorization.k8s.io", _) => identity::validate_role(object, old),
        _ => Vec::new(),
    }
}

/// Refuses creation where the namespace does not take objects.
pub(crate) fn check_namespace(
    backend: &Backend,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> Result<()> {
    if !resource.namespaced {
        return Ok(());
    }
    let namespaces = backend.registry.builtin("", "namespaces");
    let object = backend.get(&namespaces, "", namespace)?;
    if meta::is_deleting(object.value()) {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(ApiError::forbidden(&resource.group, &resource.plural, name, why));
    }
    Ok(())
}

fn namespace(object: &mut Value, old: Option<&Value>) {
    let name = meta::name(object).to_owned();
    let labels = meta::as_map(meta::metadata_mut(object).entry("labels").or_insert_with(|| json!({})));
    labels.insert("kubernetes.io/metadata.name".into(), name.into());
    // Only the namespace controller takes its finalizer away.
    let finalizers = old
        .and_then(|old| meta::at(old, &["spec", "finalizers"]))
        .cloned()
        .unwrap_or_else(|| json!(["kubernetes"]));
    meta::child_mut(object, "spec").insert("finalizers".into(), finalizers);
    default_to(meta::child_mut(object, "status"), "phase", "Active");
}

/// The finalizer that keeps a CRD until its objects are gone.
pub(crate) const CRD_CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

fn crd(object: &mut Value, old: Option<&Value>) {
    let spec = meta::child_mut(object, "spec");
    default_to(spec, "conversion", json!({"strategy": "None"}));
    let names = meta::as_map(spec.entry("names").or_insert_with(|| json!({})));
    if let Some(kind) = names.get("kind").and_then(Value::as_str).map(str::to_owned) {
        default_to(names, "singular", kind.to_lowercase());
        default_to(names, "listKind", format!("{kind}List"));
    }
    if old.is_none() {
        meta::add_finalizer(object, CRD_CLEANUP);
    }
    registry::established(object);
}

fn endpoint_slice(object: &mut Value) {
    let ports = object.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten();
    for port in ports.filter_map(Value::as_object_mut) {
        default_to(port, "name", "");
        default_to(port, "protocol", "TCP");
    }
}
