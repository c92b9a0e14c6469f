//! Create and update.

use std::sync::Arc;

use serde_json::{Value, json};

use super::decode::decode;
use super::{Place, WriteOptions};
use crate::backend::Backend;
use crate::meta;
use crate::names;
use crate::registry::Resource;
use crate::status::{ApiError, FieldError, Result};
use crate::store::Object;
use crate::{bootstrap, strategy};

/// The part of an object that an update may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status, when that is a subresource.
    Main,
    Status,
    /// A namespace's `spec.finalizers`.
    Finalize,
}

/// A completed write.
pub(crate) struct Outcome {
    pub(crate) object: Arc<Object>,
    pub(crate) warnings: Vec<String>,
    pub(crate) created: bool,
}

/// Creates an object; `name` is the name in the path, when there is one.
pub(crate) fn create(
    place: Place<'_>,
    name: Option<&str>,
    body: Value,
    options: &WriteOptions,
) -> Result<Outcome> {
    let Place { backend, resource, .. } = place;
    let (mut object, warnings) = decode(place, body, options)?;
    identify(place, &mut object, name)?;
    let name = meta::name(&object).to_owned();
    strategy::check_namespace(backend, resource, place.namespace, &name)?;
    let keep_status = matches!(resource.plural.as_str(), "nodes" | "namespaces") && !resource.custom;
    if resource.has_status && !keep_status {
        meta::as_map(&mut object).remove("status");
    }
    let metadata = meta::metadata_mut(&mut object);
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        metadata.remove(key);
    }
    if metadata.remove("resourceVersion").is_some_and(|version| version != "" && version != "0") {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    metadata.insert("uid".into(), names::uuid().into());
    metadata.insert("creationTimestamp".into(), meta::now().into());
    if resource.has_generation {
        metadata.insert("generation".into(), 1.into());
    }
    let reservation = strategy::prepare(backend, resource, &mut object, None)?;
    check(resource, &object, None)?;
    let stored = if options.dry_run {
        if backend.get(resource, place.namespace, &name).is_ok() {
            return Err(ApiError::already_exists(&resource.group, &resource.plural, &name));
        }
        Object::new(object, 0)
    } else {
        let stored = backend.insert(resource, object)?;
        if let Some(reservation) = reservation {
            reservation.keep();
        }
        if meta::owners(stored.value()).next().is_some() {
            backend.collect(Backend::key(resource, place.namespace, &name));
        }
        if resource.table.as_str() == "namespaces" {
            bootstrap::populate_namespace(backend, &name);
        }
        stored
    };
    Ok(Outcome { object: stored, warnings, created: true })
}

/// Settles name and namespace of a new object.
fn identify(place: Place<'_>, object: &mut Value, name: Option<&str>) -> Result<()> {
    let resource = place.resource;
    let metadata = meta::metadata_mut(object);
    let text = |metadata: &serde_json::Map<String, Value>, key: &str| {
        metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let given = text(metadata, "namespace");
    if !given.is_empty() && given != place.namespace {
        return Err(ApiError::bad_request(if resource.namespaced {
            "the namespace of the provided object does not match the namespace sent on the request".to_owned()
        } else {
            format!("{} is cluster-scoped and cannot have a namespace", resource.kind)
        }));
    }
    if resource.namespaced {
        metadata.insert("namespace".into(), place.namespace.into());
    } else {
        metadata.remove("namespace");
    }
    let (mut own, prefix) = (text(metadata, "name"), text(metadata, "generateName"));
    if let Some(name) = name {
        if !own.is_empty() && own != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            )));
        }
        own = name.to_owned();
    }
    if own.is_empty() {
        if prefix.is_empty() {
            let error = FieldError::required("metadata.name", "name or generateName is required");
            return Err(ApiError::invalid(&resource.group, &resource.kind, "", &[error]));
        }
        own = names::generate(&prefix);
    }
    metadata.insert("name".into(), own.into());
    Ok(())
}

/// Replaces an object, or creates it where a PUT may do that.
pub(crate) fn update(
    place: Place<'_>,
    name: &str,
    part: Part,
    body: Value,
    options: &WriteOptions,
) -> Result<Outcome> {
    let Place { backend, resource, namespace } = place;
    let current = backend.get(resource, namespace, name)?;
    let (object, warnings) = decode(place, body, options)?;
    let given = meta::name(&object);
    if !given.is_empty() && given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let stored = overwrite(place, &current, object, part, options.dry_run)?;
    Ok(Outcome { object: stored, warnings, created: false })
}

/// Writes a decoded object over its current version.
pub(super) fn overwrite(
    place: Place<'_>,
    current: &Arc<Object>,
    wanted: Value,
    part: Part,
    dry_run: bool,
) -> Result<Arc<Object>> {
    let Place { backend, resource, .. } = place;
    let old = current.value();
    let name = meta::name(old);
    let (uid, version) = (meta::uid(&wanted), meta::field(&wanted, "resourceVersion"));
    if !uid.is_empty() && uid != meta::uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(old)
        );
        return Err(ApiError::conflict(&resource.group, &resource.plural, name, why));
    }
    if !version.is_empty() && version != "0" && version != current.version().to_string() {
        return Err(ApiError::modified(&resource.group, &resource.plural, name));
    }
    let mut new = combine(resource, old, wanted, part);
    let reservation = match part {
        Part::Main => strategy::prepare(backend, resource, &mut new, Some(old))?,
        Part::Status | Part::Finalize => None,
    };
    if resource.has_generation && content_differs(resource, old, &new) {
        let generation = meta::at(old, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0);
        meta::metadata_mut(&mut new).insert("generation".into(), (generation + 1).into());
    }
    check(resource, &new, Some(old))?;
    if dry_run {
        return Ok(Object::new(new, current.version()));
    }
    let stored = if may_go(&new) {
        backend.remove(resource, &new, current.version())?
    } else {
        backend.replace(resource, new, current.version())?
    };
    if let Some(reservation) = reservation {
        reservation.keep();
    }
    if meta::is_deleting(stored.value()) || meta::owners(stored.value()).next().is_some() {
        backend.collect(Backend::key(resource, place.namespace, meta::name(stored.value())));
    }
    Ok(stored)
}

/// The part of `wanted` that this write may set, over the rest of `old`.
fn combine(resource: &Resource, old: &Value, wanted: Value, part: Part) -> Value {
    match part {
        Part::Main => {
            let mut new = wanted;
            let old_metadata = old["metadata"].as_object().cloned().unwrap_or_default();
            let metadata = meta::metadata_mut(&mut new);
            for key in [
                "name",
                "namespace",
                "uid",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "generation",
                "resourceVersion",
                "generateName",
            ] {
                match old_metadata.get(key) {
                    Some(value) => metadata.insert(key.into(), value.clone()),
                    None => metadata.remove(key),
                };
            }
            // Updaters that do not speak of field managers leave them as they are.
            if let (None, Some(managed)) = (metadata.get("managedFields"), old_metadata.get("managedFields"))
            {
                metadata.insert("managedFields".into(), managed.clone());
            }
            if resource.has_status {
                match old.get("status") {
                    Some(status) => meta::as_map(&mut new).insert("status".into(), status.clone()),
                    None => meta::as_map(&mut new).remove("status"),
                };
            }
            new
        }
        Part::Status => {
            let mut new = old.clone();
            match wanted.get("status") {
                Some(status) => meta::as_map(&mut new).insert("status".into(), status.clone()),
                None => meta::as_map(&mut new).remove("status"),
            };
            if let Some(managed) = meta::at(&wanted, &["metadata", "managedFields"]) {
                meta::metadata_mut(&mut new).insert("managedFields".into(), managed.clone());
            }
            new
        }
        Part::Finalize => {
            let mut new = old.clone();
            let finalizers = meta::at(&wanted, &["spec", "finalizers"]).cloned().unwrap_or(json!([]));
            meta::child_mut(&mut new, "spec").insert("finalizers".into(), finalizers);
            new
        }
    }
}

fn content_differs(resource: &Resource, old: &Value, new: &Value) -> bool {
    let counts =
        |key: &str| key != "metadata" && !(key == "status" && (resource.has_status || !resource.custom));
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return true };
    let side = |a: &serde_json::Map<String, Value>, b: &serde_json::Map<String, Value>| {
        a.iter().any(|(key, value)| counts(key) && b.get(key) != Some(value))
    };
    side(old, new) || side(new, old)
}

/// Whether a deleted object has nothing left to wait for.
pub(crate) fn may_go(object: &Value) -> bool {
    let grace = meta::at(object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    let namespace_waits = object["kind"] == "Namespace"
        && meta::at(object, &["spec", "finalizers"]).and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    meta::is_deleting(object)
        && meta::finalizers(object).next().is_none()
        && grace.unwrap_or(0) == 0
        && !namespace_waits
}

/// Everything that makes an object invalid.
fn check(resource: &Resource, object: &Value, old: Option<&Value>) -> Result<()> {
    let name = meta::name(object);
    let mut errors = Vec::new();
    if old.is_none() {
        errors.extend(resource.name_rule.check(name));
    }
    names::check_labels(object, &mut errors);
    if let Some(old) = old.filter(|old| meta::is_deleting(old)) {
        let added = meta::finalizers(object).find(|new| !meta::finalizers(old).any(|have| have == *new));
        if let Some(added) = added {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers [{added:?}]"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    if resource.custom {
        errors.extend(resource.schema().validate(object, old));
        if errors.iter().any(FieldError::blocks_rules) {
            errors.push(FieldError::rules_not_checked());
        } else {
            errors.extend(resource.schema().broken_rules(object, old));
        }
    }
    errors.extend(strategy::validate(resource, object, old));
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(&resource.group, &resource.kind, name, &errors))
    }
}
