//! Reading and writing `metadata` of untyped objects.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// The finalizer that makes the collector delete dependents before their owner.
pub(crate) const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that makes the collector cut dependents loose before their owner goes.
pub(crate) const FINALIZER_ORPHAN: &str = "orphan";

/// The string at a path of object keys.
pub(crate) fn str_at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(object, path)?.as_str()
}

/// The value at a path of object keys.
pub(crate) fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key))
}

/// The string of a metadata field; empty when absent.
pub(crate) fn field<'a>(object: &'a Value, name: &str) -> &'a str {
    str_at(object, &["metadata", name]).unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    field(object, "name")
}

pub(crate) fn namespace(object: &Value) -> &str {
    field(object, "namespace")
}

pub(crate) fn uid(object: &Value) -> &str {
    field(object, "uid")
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some_and(|value| !value.is_null())
}

/// The metadata map, made when absent or of the wrong type.
pub(crate) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(object, "metadata")
}

/// The object under `key`, made when absent or of the wrong type.
pub(crate) fn child_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    as_map(as_map(object).entry(key).or_insert_with(|| Value::Object(Map::new())))
}

/// The value as a map, replaced by an empty one when it is something else.
pub(crate) fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// Sets a key unless the map already has a value for it.
pub(crate) fn default_to(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let slot = map.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value.into();
    }
}

pub(crate) fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    at(object, &["metadata", "finalizers"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

pub(crate) fn add_finalizer(object: &mut Value, finalizer: &str) {
    if finalizers(object).any(|have| have == finalizer) {
        return;
    }
    let slot = metadata_mut(object).entry("finalizers").or_insert_with(|| Value::Array(Vec::new()));
    match slot {
        Value::Array(list) => list.push(finalizer.into()),
        other => *other = Value::Array(vec![finalizer.into()]),
    }
}

pub(crate) fn remove_finalizer(object: &mut Value, finalizer: &str) {
    let metadata = metadata_mut(object);
    if let Some(Value::Array(list)) = metadata.get_mut("finalizers") {
        list.retain(|have| have != finalizer);
        if list.is_empty() {
            metadata.remove("finalizers");
        }
    }
}

/// Entries of `metadata.ownerReferences`.
pub(crate) fn owners(object: &Value) -> impl Iterator<Item = &Value> {
    at(object, &["metadata", "ownerReferences"]).and_then(Value::as_array).into_iter().flatten()
}

/// Labels (or annotations) as pairs; entries that are no strings do not count.
pub(crate) fn pairs<'a>(object: &'a Value, map: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    at(object, &["metadata", map])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// Now, as Kubernetes writes it: RFC 3339 in UTC with whole seconds.
pub(crate) fn now() -> String {
    timestamp(Timestamp::now())
}

pub(crate) fn timestamp(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
