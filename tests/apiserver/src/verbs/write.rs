//! Create and update.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::check::check;
use super::decode::decode;
use super::subresource::scale_of;
use super::{FieldValidation, Place, WriteOptions};
use crate::admission::{Operation, Write};
use crate::backend::Backend;
use crate::meta;
use crate::names;
use crate::patch::managed;
use crate::registry::Resource;
use crate::services::Reservation;
use crate::status::{ApiError, FieldError, Result};
use crate::store::Object;
use crate::{bootstrap, strategy};

/// How often a write without a version meets a concurrent one before it gives up.
pub(super) const ATTEMPTS: usize = 20;

/// The part of an object that an update may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status, when that is a subresource.
    Main,
    Status,
    /// Its `spec.replicas`, through the scale subresource.
    Scale,
    /// A namespace's `spec.finalizers`.
    Finalize,
}

impl Part {
    /// The name of the subresource; empty for the object itself.
    pub(super) fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
        }
    }
}

/// Who comes to own the fields that a write changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The manager of the request, as one who updates.
    Updater,
    /// The write says so itself: an apply.
    Settled,
}

/// A completed write.
pub(crate) struct Outcome {
    pub(crate) object: Arc<Object>,
    pub(crate) created: bool,
}

/// Creates an object; `name` is the name in the path, when there is one.
pub(crate) async fn create(
    place: Place<'_>,
    name: Option<&str>,
    body: Value,
    options: &WriteOptions,
) -> Result<Outcome> {
    create_as(place, name, body, options, Owner::Updater).await
}

/// Creates an object of the server's own, which no webhook is asked about.
pub(crate) fn create_unasked(place: Place<'_>, body: Value, options: &WriteOptions) -> Result<Outcome> {
    let mut object = decode(place, body, options)?;
    identify(place, &mut object, None)?;
    make_new(place.resource, &mut object)?;
    finish_create(place, object, options, Owner::Updater)
}

pub(super) async fn create_as(
    place: Place<'_>,
    name: Option<&str>,
    body: Value,
    options: &WriteOptions,
    owner: Owner,
) -> Result<Outcome> {
    let Place { backend, resource, .. } = place;
    let mut object = decode(place, body, options)?;
    identify(place, &mut object, name)?;
    let name = meta::name(&object).to_owned();
    strategy::check_namespace(backend, resource, place.namespace, &name)?;
    make_new(resource, &mut object)?;
    let write_options = options.shown();
    let write = Write {
        place,
        operation: Operation::Create,
        name: &name,
        subresource: "",
        old: None,
        dry_run: options.dry_run,
        options: &write_options,
    };
    object = mutated(write, object, options).await?;
    if backend.admission.is_silent() {
        return finish_create(place, object, options, owner);
    }
    let prepared = prepare_new(place, object, options, owner)?;
    backend.admission.validate(write, Some(&prepared.object)).await?;
    store_new(place, prepared, options)
}

fn finish_create(place: Place<'_>, object: Value, options: &WriteOptions, owner: Owner) -> Result<Outcome> {
    store_new(place, prepare_new(place, object, options, owner)?, options)
}

/// A new object that only has to be stored.
struct Prepared {
    object: Value,
    reservation: Option<Reservation>,
}

fn prepare_new(
    place: Place<'_>,
    mut object: Value,
    options: &WriteOptions,
    owner: Owner,
) -> Result<Prepared> {
    let Place { backend, resource, .. } = place;
    let reservation = strategy::prepare(backend, resource, &mut object, None)?;
    if owner == Owner::Updater {
        managed::record(resource, None, &mut object, &options.manager, "");
    }
    check(place, &object, None)?;
    Ok(Prepared { object, reservation })
}

fn store_new(place: Place<'_>, prepared: Prepared, options: &WriteOptions) -> Result<Outcome> {
    let Place { backend, resource, .. } = place;
    let Prepared { object, reservation } = prepared;
    let name = meta::name(&object).to_owned();
    if options.dry_run {
        if backend.get(resource, place.namespace, &name).is_ok() {
            return Err(ApiError::already_exists(&resource.group, &resource.plural, &name));
        }
        return Ok(Outcome { object: Object::new(object, 0), created: true });
    }
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
    Ok(Outcome { object: stored, created: true })
}

/// Sets what the server alone sets on a new object, and drops what it does not take.
fn make_new(resource: &Resource, object: &mut Value) -> Result<()> {
    let keep_status = matches!(resource.plural.as_str(), "nodes" | "namespaces") && !resource.custom;
    if resource.has_status && !keep_status {
        meta::as_map(object).remove("status");
    }
    let metadata = meta::metadata_mut(object);
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "managedFields"]
    {
        if key != "managedFields" || metadata.get(key).is_some_and(Value::is_null) {
            metadata.remove(key);
        }
    }
    if metadata.remove("resourceVersion").is_some_and(|version| version != "" && version != "0") {
        return Err(ApiError::unexplained("resourceVersion should not be set on objects to be created"));
    }
    metadata.insert("uid".into(), names::uuid().into());
    metadata.insert("creationTimestamp".into(), meta::now().into());
    if resource.has_generation {
        metadata.insert("generation".into(), 1.into());
    }
    Ok(())
}

/// The object after the mutating webhooks: what they change is decoded like a client's words.
async fn mutated(write: Write<'_>, mut object: Value, options: &WriteOptions) -> Result<Value> {
    let place = write.place;
    if write.subresource == "scale" || !place.backend.admission.mutate(write, &mut object).await? {
        return Ok(object);
    }
    let quiet = WriteOptions { validation: FieldValidation::Ignore, ..options.clone() };
    decode(place, object, &quiet)
}

/// Settles name and namespace of a new object.
fn identify(place: Place<'_>, object: &mut Value, name: Option<&str>) -> Result<()> {
    let resource = place.resource;
    let metadata = meta::metadata_mut(object);
    let text = |metadata: &Map<String, Value>, key: &str| {
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

/// Replaces an object.
pub(crate) async fn update(
    place: Place<'_>,
    name: &str,
    part: Part,
    body: Value,
    options: &WriteOptions,
) -> Result<Outcome> {
    let Place { backend, resource, namespace, .. } = place;
    backend.get(resource, namespace, name)?;
    let object = decode(place, body, options)?;
    let given = meta::name(&object);
    if given != name && !given.is_empty() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let unconditional = meta::field(&object, "resourceVersion").is_empty();
    if unconditional && !resource.allows_unconditional_update() {
        let error =
            FieldError::invalid("metadata.resourceVersion", &0.into(), "must be specified for an update");
        return Err(ApiError::invalid(&resource.group, &resource.plural, name, &[error]));
    }
    let mut attempt = 0;
    loop {
        attempt += 1;
        let current = backend.get(resource, namespace, name)?;
        match overwrite(place, &current, object.clone(), part, options, Owner::Updater).await {
            Err(error) if error.is_race() && unconditional && attempt < ATTEMPTS => {}
            done => return Ok(Outcome { object: done?, created: false }),
        }
    }
}

/// Writes a decoded object over its current version.
pub(super) async fn overwrite(
    place: Place<'_>,
    current: &Arc<Object>,
    wanted: Value,
    part: Part,
    options: &WriteOptions,
    owner: Owner,
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
    let write_options = options.shown();
    let shown_old = shown_to_webhooks(place, old, part);
    let write = Write {
        place,
        operation: Operation::Update,
        name,
        subresource: part.subresource(),
        old: Some(shown_old.as_ref()),
        dry_run: options.dry_run,
        options: &write_options,
    };
    let mut new = combine(resource, old, wanted, part);
    if !backend.admission.is_silent() {
        new = combine(resource, old, mutated(write, new, options).await?, part);
    }
    let reservation = match part {
        Part::Main | Part::Scale => strategy::prepare(backend, resource, &mut new, Some(old))?,
        Part::Status | Part::Finalize => None,
    };
    if resource.has_generation && content_differs(resource, old, &new) {
        let generation = meta::at(old, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0);
        meta::metadata_mut(&mut new).insert("generation".into(), (generation + 1).into());
    }
    if owner == Owner::Updater {
        managed::record(resource, Some(old), &mut new, &options.manager, part.subresource());
    }
    check(place, &new, Some(old))?;
    backend.admission.validate(write, Some(shown_to_webhooks(place, &new, part).as_ref())).await?;
    if options.dry_run {
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

/// The object of a write, as webhooks see it: through the scale subresource, a Scale.
fn shown_to_webhooks<'a>(place: Place<'_>, object: &'a Value, part: Part) -> Cow<'a, Value> {
    match &place.resource.scale {
        Some(paths) if part == Part::Scale => Cow::Owned(scale_of(object, paths)),
        _ => Cow::Borrowed(object),
    }
}

/// Fields of the metadata that an update cannot change.
const FIXED: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "resourceVersion",
    "generateName",
];

/// The part of `wanted` that this write may set, over the rest of `old`.
fn combine(resource: &Resource, old: &Value, wanted: Value, part: Part) -> Value {
    match part {
        Part::Main | Part::Scale => {
            let mut new = wanted;
            let old_metadata = old["metadata"].as_object().cloned().unwrap_or_default();
            let metadata = meta::metadata_mut(&mut new);
            for key in FIXED {
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
                set_or_remove(&mut new, "status", old.get("status"));
            }
            new
        }
        Part::Status => {
            let mut new = old.clone();
            set_or_remove(&mut new, "status", wanted.get("status"));
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

fn set_or_remove(object: &mut Value, key: &str, value: Option<&Value>) {
    match value {
        Some(value) => meta::as_map(object).insert(key.into(), value.clone()),
        None => meta::as_map(object).remove(key),
    };
}

fn content_differs(resource: &Resource, old: &Value, new: &Value) -> bool {
    let counts =
        |key: &str| key != "metadata" && !(key == "status" && (resource.has_status || !resource.custom));
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return true };
    let side = |a: &Map<String, Value>, b: &Map<String, Value>| {
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
