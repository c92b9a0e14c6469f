//! Server-side apply. `metadata.managedFields` remembers what each manager applied or
//! updated: what a manager no longer applies, and nobody else owns, goes.

use serde_json::{Map, Value, json};

use super::fields::{self, Place};
use super::lists::{self, ListKeys};
use crate::meta;
use crate::schema::Schema;
use crate::status::{ApiError, Result};

/// Who applies, and how.
pub(crate) struct Applier<'a> {
    pub(crate) manager: &'a str,
    /// Take fields from other managers instead of failing.
    pub(crate) force: bool,
    /// The subresource; its fields are owned apart from those of the object itself.
    pub(crate) subresource: Option<&'a str>,
    pub(crate) api_version: &'a str,
    pub(crate) schema: &'a Schema,
    /// The resource is built in: its lists merge by the built-in rules.
    pub(crate) builtin: bool,
}

impl Applier<'_> {
    /// Merges a configuration into the live object (`{}` when it does not exist yet).
    pub(crate) fn apply(&self, live: &Value, config: &Value) -> Result<Value> {
        let root = Place::root(self.schema, self.builtin);
        let mut wanted = config.clone();
        let set = fields::of(&owned_part(&wanted), root);
        let mut managers = managed_fields(live);
        let mine = |entry: &Value| {
            entry["manager"] == self.manager
                && entry["operation"] == "Apply"
                && entry.get("subresource").and_then(Value::as_str) == self.subresource
        };
        let previous = managers.iter().find(|entry| mine(entry)).map(|entry| entry["fieldsV1"].clone());
        managers.retain(|entry| !mine(entry));
        self.settle_conflicts(live, &wanted, &set, &mut managers)?;

        meta::metadata_mut(&mut wanted).remove("managedFields");
        let mut merged = live.clone();
        merge(&mut merged, &wanted, root);
        if let Some(previous) = previous {
            let mut gone = fields::difference(&previous, Some(&set));
            for entry in &managers {
                fields::subtract(&mut gone, &entry["fieldsV1"]);
            }
            remove(&mut merged, &gone, root);
        }
        let mut entry = json!({
            "manager": self.manager, "operation": "Apply", "apiVersion": self.api_version,
            "time": meta::now(), "fieldsType": "FieldsV1", "fieldsV1": set,
        });
        if let Some(subresource) = self.subresource {
            entry["subresource"] = subresource.into();
        }
        managers.push(entry);
        keep_times(live, &mut managers);
        meta::metadata_mut(&mut merged).insert("managedFields".into(), managers.into());
        Ok(merged)
    }

    /// Fields that others own with another value: an error, or with force they lose them.
    fn settle_conflicts(
        &self,
        live: &Value,
        wanted: &Value,
        set: &Value,
        managers: &mut Vec<Value>,
    ) -> Result<()> {
        let root = Place::root(self.schema, self.builtin);
        let mut found = Vec::new();
        for entry in managers.iter_mut() {
            let mut lost = Map::new();
            let mut paths = Vec::new();
            conflicts(live, wanted, set, &entry["fieldsV1"], root, "", (&mut lost, &mut paths));
            if !paths.is_empty() && self.force {
                fields::subtract(&mut entry["fieldsV1"], &Value::Object(lost));
            }
            let manager = owner_name(entry);
            found.extend(paths.into_iter().map(|path| (manager.clone(), path)));
        }
        managers.retain(|entry| !fields::is_leaf(&entry["fieldsV1"]));
        if found.is_empty() || self.force { Ok(()) } else { Err(ApiError::apply_conflict(&found)) }
    }
}

/// The manager of an entry, as a conflict names it.
fn owner_name(entry: &Value) -> String {
    let text = |key: &str| entry[key].as_str().unwrap_or_default();
    let mut name = format!("{:?}", text("manager"));
    if !text("subresource").is_empty() {
        name = format!("{name} with subresource {:?}", text("subresource"));
    }
    if text("operation") == "Update" {
        name = format!("{name} using {}", text("apiVersion"));
        if !text("time").is_empty() {
            name = format!("{name} at {}", text("time"));
        }
    }
    name
}

/// Without the fields that identify the object rather than configure it.
pub(super) fn owned_part(config: &Value) -> Value {
    let mut part = config.clone();
    let map = meta::as_map(&mut part);
    map.remove("apiVersion");
    map.remove("kind");
    if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
        for key in [
            "name",
            "namespace",
            "generateName",
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        ] {
            metadata.remove(key);
        }
        if metadata.is_empty() {
            map.remove("metadata");
        }
    }
    part
}

pub(super) fn managed_fields(live: &Value) -> Vec<Value> {
    meta::at(live, &["metadata", "managedFields"]).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// An entry that did not change keeps its time, so that applying twice changes nothing.
pub(super) fn keep_times(live: &Value, managers: &mut [Value]) {
    for old in managed_fields(live) {
        for entry in managers.iter_mut() {
            let mut dated = entry.clone();
            dated["time"] = old["time"].clone();
            if dated == old {
                *entry = dated;
            }
        }
    }
}

fn merge(target: &mut Value, config: &Value, place: Place<'_>) {
    match config {
        Value::Object(map) if !place.atomic_map() => {
            let target = meta::as_map(target);
            for (name, child) in map {
                merge(target.entry(name).or_insert(Value::Null), child, place.child(name));
            }
        }
        Value::Array(items) => match (place.list(items), &mut *target) {
            (ListKeys::Set, Value::Array(have)) => {
                for item in items {
                    if !have.contains(item) {
                        have.push(item.clone());
                    }
                }
            }
            (ListKeys::Map(keys), Value::Array(have)) => {
                for item in items {
                    match have.iter_mut().find(|old| lists::same_keys(&keys, old, item)) {
                        Some(old) => merge(old, item, place.element()),
                        None => have.push(item.clone()),
                    }
                }
            }
            (_, target) => *target = config.clone(),
        },
        _ => *target = config.clone(),
    }
}

/// Removes the fields of a set, and maps and lists that become empty by it.
fn remove(target: &mut Value, set: &Value, place: Place<'_>) {
    let Some(set) = set.as_object() else { return };
    match target {
        Value::Object(map) => {
            for (element, below) in set {
                let Some(name) = element.strip_prefix("f:") else { continue };
                let Some(child) = map.get_mut(name) else { continue };
                let had = !is_empty(child);
                if fields::is_leaf(below) {
                    map.remove(name);
                } else {
                    remove(child, below, place.child(name));
                    if had && is_empty(child) {
                        map.remove(name);
                    }
                }
            }
        }
        Value::Array(items) => {
            let keys = match place.list(items) {
                ListKeys::Map(keys) => keys,
                ListKeys::Set => {
                    items.retain(|item| !set.contains_key(&fields::value(item)));
                    return;
                }
                ListKeys::Atomic => return,
            };
            items.retain_mut(|item| match set.get(&fields::key(&keys, item)) {
                None => true,
                Some(below) if below.get(".").is_some() => false,
                Some(below) => {
                    remove(item, below, place.element());
                    true
                }
            });
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Leaves that both apply and whose value would change; collects them as a set and as paths.
fn conflicts(
    live: &Value,
    wanted: &Value,
    set: &Value,
    other: &Value,
    place: Place<'_>,
    path: &str,
    (lost, paths): (&mut Map<String, Value>, &mut Vec<String>),
) {
    for (element, below) in set.as_object().into_iter().flatten() {
        let Some(theirs) = fields::get(other, element) else { continue };
        let (have, want, inner, at) = if let Some(name) = element.strip_prefix("f:") {
            (live.get(name), wanted.get(name), place.child(name), format!("{path}.{name}"))
        } else if let Some(keys) = element.strip_prefix("k:") {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let find = |list: &Value| {
                let is_it =
                    |item: &&Value| keys.iter().all(|(key, value)| lists::key_value(item, key) == *value);
                list.as_array().into_iter().flatten().find(is_it).cloned()
            };
            let (have, want) = (find(live), find(wanted));
            let mut inner_lost = Map::new();
            if let (Some(have), Some(want)) = (have, want) {
                let at = format!("{path}[{}]", Value::Object(keys));
                conflicts(&have, &want, below, theirs, place.element(), &at, (&mut inner_lost, paths));
            }
            if !inner_lost.is_empty() {
                lost.insert(element.clone(), Value::Object(inner_lost));
            }
            continue;
        } else {
            continue;
        };
        let (Some(have), Some(want)) = (have, want) else { continue };
        if fields::is_leaf(below) && is_empty(want) && !fields::is_leaf(theirs) {
            // An empty map or list says nothing of what others have in it.
        } else if fields::is_leaf(below) || fields::is_leaf(theirs) {
            if have != want {
                lost.insert(element.clone(), json!({}));
                paths.push(at);
            }
        } else {
            let mut inner_lost = Map::new();
            conflicts(have, want, below, theirs, inner, &at, (&mut inner_lost, paths));
            if !inner_lost.is_empty() {
                lost.insert(element.clone(), Value::Object(inner_lost));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(live: &Value, manager: &str, force: bool, config: &Value) -> Result<Value> {
        let schema = Schema::default();
        let applier =
            Applier { manager, force, subresource: None, api_version: "v1", schema: &schema, builtin: true };
        applier.apply(live, config)
    }

    fn content(mut object: Value) -> Value {
        meta::as_map(&mut object).remove("metadata");
        object
    }

    #[test]
    fn what_is_no_longer_applied_goes() {
        let first =
            apply(&json!({}), "a", false, &json!({"data": {"x": "1", "y": "2"}, "list": [1]})).unwrap();
        let other = apply(&first, "b", false, &json!({"data": {"z": "3"}})).unwrap();
        let second = apply(&other, "a", false, &json!({"data": {"x": "1"}})).unwrap();
        assert_eq!(content(second.clone()), json!({"data": {"x": "1", "z": "3"}}));
        let again = apply(&second, "a", false, &json!({"data": {"x": "1"}})).unwrap();
        assert_eq!(again, second, "applying twice changes nothing");
    }

    #[test]
    fn a_shared_field_stays_until_the_last_one_lets_go() {
        let first = apply(&json!({}), "a", false, &json!({"data": {"x": "1"}})).unwrap();
        let both = apply(&first, "b", false, &json!({"data": {"x": "1"}})).unwrap();
        let one = apply(&both, "a", false, &json!({})).unwrap();
        assert_eq!(content(one.clone()), json!({"data": {"x": "1"}}));
        assert_eq!(content(apply(&one, "b", false, &json!({})).unwrap()), json!({}));
    }

    #[test]
    fn conflicts_fail_unless_forced() {
        let first = apply(&json!({}), "a", false, &json!({"data": {"x": "1"}})).unwrap();
        let error = apply(&first, "b", false, &json!({"data": {"x": "2"}})).unwrap_err();
        assert!(error.to_string().contains("conflict with \"a\": .data.x"), "{error}");
        let forced = apply(&first, "b", true, &json!({"data": {"x": "2"}})).unwrap();
        assert_eq!(content(forced.clone()), json!({"data": {"x": "2"}}));
        let gone = apply(&forced, "b", false, &json!({})).unwrap();
        assert_eq!(content(gone), json!({}), "the first manager lost the field");
    }

    #[test]
    fn keyed_lists_merge_by_their_keys() {
        let config = json!({"spec": {"containers": [{"name": "a", "image": "1"}]}});
        let first = apply(&json!({}), "a", false, &config).unwrap();
        let config = json!({"spec": {"containers": [{"name": "b", "image": "2"}]}});
        let both = apply(&first, "b", false, &config).unwrap();
        assert_eq!(both["spec"]["containers"].as_array().unwrap().len(), 2);
        let one = apply(&both, "a", false, &json!({})).unwrap();
        assert_eq!(one["spec"], json!({"containers": [{"name": "b", "image": "2"}]}));
    }
}
