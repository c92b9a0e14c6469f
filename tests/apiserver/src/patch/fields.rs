//! Sets of fields in the `fieldsV1` form of `metadata.managedFields`: `f:NAME` for a
//! field, `k:{…}` for an element of a keyed list, `v:…` for an element of a set.

use serde_json::{Map, Value};

use super::lists::{self, ListKeys};
use crate::schema::{ListType, Schema};

/// What merging needs to know about a place in an object.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The name of the field that leads here.
    field: &'a str,
    schema: Option<&'a Schema>,
    /// Lists merge as in built-in types; else as the schema says.
    builtin: bool,
}

impl<'a> Place<'a> {
    pub(super) fn root(schema: &'a Schema, builtin: bool) -> Self {
        Self { field: "", schema: Some(schema), builtin }
    }

    pub(super) fn child(self, field: &'a str) -> Self {
        // Metadata of custom resources merges as that of built-in types.
        let builtin = self.builtin || (self.field.is_empty() && field == "metadata");
        Self { field, schema: self.schema.and_then(|schema| schema.child(field)), builtin }
    }

    pub(super) fn element(self) -> Self {
        Self { field: "[]", schema: self.schema.and_then(|schema| schema.items.as_deref()), ..self }
    }

    pub(super) fn atomic_map(self) -> bool {
        // Label selectors are replaced as a whole.
        let selector = |schema: &Schema| self.builtin && schema.properties.contains_key("matchLabels");
        self.schema.is_some_and(|schema| schema.atomic_map || selector(schema))
    }

    pub(super) fn list(self, elements: &[Value]) -> ListKeys {
        if self.builtin {
            return lists::builtin(self.field, elements);
        }
        match self.schema.map(|schema| &schema.list_type) {
            Some(ListType::Set) => ListKeys::Set,
            Some(ListType::Map(keys)) => ListKeys::Map(keys.clone()),
            Some(ListType::Atomic) | None => ListKeys::Atomic,
        }
    }
}

pub(super) fn field(name: &str) -> String {
    format!("f:{name}")
}

/// The path element of an element of a keyed list.
pub(super) fn key(keys: &[String], element: &Value) -> String {
    let map: Map<String, Value> =
        keys.iter().map(|key| (key.clone(), lists::key_value(element, key))).collect();
    format!("k:{}", Value::Object(map))
}

pub(super) fn value(element: &Value) -> String {
    format!("v:{element}")
}

/// The fields that a configuration sets.
pub(super) fn of(config: &Value, place: Place<'_>) -> Value {
    let mut set = Map::new();
    match config {
        Value::Object(map) if !place.atomic_map() => {
            for (name, child) in map {
                set.insert(field(name), of(child, place.child(name)));
            }
        }
        Value::Array(items) => match place.list(items) {
            ListKeys::Atomic => {}
            ListKeys::Set => set.extend(items.iter().map(|item| (value(item), Value::Object(Map::new())))),
            ListKeys::Map(keys) => {
                for item in items {
                    let mut inner = of(item, place.element());
                    crate::meta::as_map(&mut inner).insert(".".into(), Value::Object(Map::new()));
                    set.insert(key(&keys, item), inner);
                }
            }
        },
        _ => {}
    }
    Value::Object(set)
}

/// Whether `set` has the field or something below it.
pub(super) fn get<'a>(set: &'a Value, element: &str) -> Option<&'a Value> {
    set.get(element)
}

/// A leaf: owned as a whole, with nothing below it.
pub(super) fn is_leaf(set: &Value) -> bool {
    set.as_object().is_none_or(Map::is_empty)
}

/// The fields of `old` that `new` lacks. Only leaves count: a map whose keys have all
/// gone goes by itself.
pub(super) fn difference(old: &Value, new: Option<&Value>) -> Value {
    let mut result = Map::new();
    for (element, below) in old.as_object().into_iter().flatten() {
        match new.and_then(|new| new.get(element)) {
            None => {
                result.insert(element.clone(), below.clone());
            }
            Some(kept) => {
                let inner = difference(below, Some(kept));
                if !is_leaf(&inner) {
                    result.insert(element.clone(), inner);
                }
            }
        }
    }
    Value::Object(result)
}

/// What an update changes: the fields that are new or have another value, and those that
/// have gone.
pub(super) fn compare(old: &Value, new: &Value, place: Place<'_>) -> (Value, Value) {
    let (mut changed, mut gone) = (Map::new(), Map::new());
    match (old, new) {
        (Value::Object(before), Value::Object(after)) if !place.atomic_map() => {
            for (name, value) in after {
                let element = field(name);
                match before.get(name) {
                    None => {
                        changed.insert(element, of(value, place.child(name)));
                    }
                    Some(was) if was == value => {}
                    Some(was) => both(element, was, value, place.child(name), &mut changed, &mut gone),
                }
            }
            for (name, value) in before.iter().filter(|(name, _)| !after.contains_key(*name)) {
                gone.insert(field(name), of(value, place.child(name)));
            }
        }
        (Value::Array(before), Value::Array(after)) => match place.list(after) {
            ListKeys::Atomic => {}
            ListKeys::Set => {
                let only = |a: &[Value], b: &[Value]| -> Map<String, Value> {
                    let those = a.iter().filter(|item| !b.contains(item));
                    those.map(|item| (value(item), Value::Object(Map::new()))).collect()
                };
                (changed, gone) = (only(after, before), only(before, after));
            }
            ListKeys::Map(keys) => {
                let find = |list: &[Value], item: &Value| {
                    list.iter().find(|have| lists::same_keys(&keys, have, item)).cloned()
                };
                for item in after {
                    match find(before, item) {
                        None => {
                            let mut inner = of(item, place.element());
                            crate::meta::as_map(&mut inner).insert(".".into(), Value::Object(Map::new()));
                            changed.insert(key(&keys, item), inner);
                        }
                        Some(was) if was == *item => {}
                        Some(was) => {
                            both(key(&keys, item), &was, item, place.element(), &mut changed, &mut gone);
                        }
                    }
                }
                for item in before.iter().filter(|item| find(after, item).is_none()) {
                    let mut inner = of(item, place.element());
                    crate::meta::as_map(&mut inner).insert(".".into(), Value::Object(Map::new()));
                    gone.insert(key(&keys, item), inner);
                }
            }
        },
        _ => {}
    }
    (Value::Object(changed), Value::Object(gone))
}

/// The comparison of a field that is there before and after, with different values.
fn both(
    element: String,
    was: &Value,
    is: &Value,
    place: Place<'_>,
    changed: &mut Map<String, Value>,
    gone: &mut Map<String, Value>,
) {
    let (inner_changed, inner_gone) = compare(was, is, place);
    let unstructured = is_leaf(&inner_changed) && is_leaf(&inner_gone);
    if unstructured || !is_leaf(&inner_changed) {
        changed.insert(element.clone(), inner_changed);
    }
    if !is_leaf(&inner_gone) {
        gone.insert(element, inner_gone);
    }
}

/// Adds to `set` what `more` has.
pub(super) fn unite(set: &mut Value, more: &Value) {
    let (Value::Object(set), Value::Object(more)) = (set, more) else { return };
    for (element, below) in more {
        match set.get_mut(element) {
            Some(have) => unite(have, below),
            None => {
                set.insert(element.clone(), below.clone());
            }
        }
    }
}

/// Takes out of `set` what `owned` has: fields that another manager still holds.
pub(super) fn subtract(set: &mut Value, owned: &Value) {
    let Value::Object(map) = set else { return };
    map.retain(|element, below| match owned.get(element) {
        None => true,
        Some(_) if is_leaf(below) => false,
        Some(held) => {
            subtract(below, held);
            !is_leaf(below)
        }
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sets_name_fields_keys_and_values() {
        let schema = Schema::default();
        let config = json!({"metadata": {"finalizers": ["x"]},
            "spec": {"containers": [{"name": "a", "args": ["1"]}]}});
        let set = of(&config, Place::root(&schema, true));
        assert_eq!(
            set,
            json!({"f:metadata": {"f:finalizers": {"v:\"x\"": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:args": {}}}}})
        );
    }

    #[test]
    fn difference_and_subtract() {
        let old = json!({"f:a": {"f:x": {}, "f:y": {}}, "f:b": {}});
        let new = json!({"f:a": {"f:x": {}}});
        let mut gone = difference(&old, Some(&new));
        assert_eq!(gone, json!({"f:a": {"f:y": {}}, "f:b": {}}));
        subtract(&mut gone, &json!({"f:b": {}}));
        assert_eq!(gone, json!({"f:a": {"f:y": {}}}));
    }
}
