//! Strategic merge patch: a merge patch that also merges the known lists of built-in
//! types, with its `$patch`, `$retainKeys`, `$setElementOrder` and
//! `$deleteFromPrimitiveList` directives.

use serde_json::{Map, Value};

use super::lists::{self, ListKeys};
use crate::meta;
use crate::status::{ApiError, Result};

const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

pub(super) fn merge(target: &mut Value, patch: &Value) -> Result<()> {
    let Value::Object(patch) = patch else {
        return Err(ApiError::bad_request("a strategic merge patch is a JSON object"));
    };
    merge_maps(meta::as_map(target), patch)
}

fn merge_maps(target: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<()> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *target = patch.iter().filter(|(key, _)| !key.starts_with('$')).map(owned).collect();
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(ApiError::bad_request(format!("unknown patch directive {other:?}"))),
    }
    if let Some(Value::Array(keep)) = patch.get("$retainKeys") {
        target.retain(|key, _| keep.iter().any(|name| name == key));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            if let (Some(Value::Array(list)), Value::Array(gone)) = (target.get_mut(field), value) {
                list.retain(|item| !gone.contains(item));
            }
        } else if !key.starts_with('$') {
            merge_field(target, key, value)?;
        }
    }
    for (key, order) in patch {
        if let (Some(field), Value::Array(order)) = (key.strip_prefix(ORDER), order)
            && let Some(Value::Array(list)) = target.get_mut(field)
        {
            sort(field, list, order);
        }
    }
    Ok(())
}

fn owned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

fn merge_field(target: &mut Map<String, Value>, key: &str, value: &Value) -> Result<()> {
    match value {
        Value::Null => {
            target.remove(key);
        }
        Value::Object(patch) => {
            let slot = target.entry(key).or_insert_with(|| Value::Object(Map::new()));
            merge_maps(meta::as_map(slot), patch)?;
        }
        Value::Array(patch) => {
            let slot = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            match slot {
                Value::Array(list) => merge_lists(key, list, patch)?,
                other => *other = Value::Array(patch.clone()),
            }
        }
        scalar => {
            target.insert(key.to_owned(), scalar.clone());
        }
    }
    Ok(())
}

fn merge_lists(field: &str, target: &mut Vec<Value>, patch: &[Value]) -> Result<()> {
    if patch.iter().any(|item| item.get("$patch").is_some_and(|p| p == "replace")) {
        *target = patch.iter().filter(|item| item.get("$patch").is_none()).cloned().collect();
        return Ok(());
    }
    let elements: Vec<Value> = target.iter().chain(patch).cloned().collect();
    match lists::builtin(field, &elements) {
        ListKeys::Atomic => *target = patch.to_vec(),
        ListKeys::Set => {
            for item in patch {
                if !target.contains(item) {
                    target.push(item.clone());
                }
            }
        }
        ListKeys::Map(keys) => {
            // A strategic merge tells elements apart by the first key alone.
            let keys = &keys[..1];
            for item in patch {
                let found = target.iter().position(|have| lists::same_keys(keys, have, item));
                let delete = item.get("$patch").is_some_and(|p| p == "delete");
                match (found, item) {
                    (Some(index), _) if delete => {
                        target.remove(index);
                    }
                    (None, _) if delete => {}
                    (Some(index), Value::Object(item)) => merge_maps(meta::as_map(&mut target[index]), item)?,
                    (Some(index), other) => target[index] = other.clone(),
                    (None, Value::Object(item)) => {
                        let mut new = Map::new();
                        merge_maps(&mut new, item)?;
                        target.push(Value::Object(new));
                    }
                    (None, other) => target.push(other.clone()),
                }
            }
        }
    }
    Ok(())
}

/// Puts elements into the order that the patch asks for; others keep their place at the end.
fn sort(field: &str, list: &mut [Value], order: &[Value]) {
    let keys = match lists::builtin(field, list) {
        ListKeys::Map(keys) => keys,
        _ => Vec::new(),
    };
    let rank = |item: &Value| {
        let same = |wanted: &Value| match keys.first() {
            Some(key) => lists::key_value(wanted, key) == lists::key_value(item, key),
            None => wanted == item,
        };
        order.iter().position(same).unwrap_or(order.len())
    };
    list.sort_by_key(rank);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    fn patched(mut target: Value, patch: &Value) -> Value {
        super::merge(&mut target, patch).unwrap();
        target
    }

    #[test]
    fn containers_merge_by_name() {
        let target = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]});
        let patch = json!({"containers": [{"name": "b", "image": "2"}, {"name": "c"}, {"name": "a", "$patch": "delete"}]});
        assert_eq!(
            patched(target, &patch),
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "c"}]})
        );
    }

    #[test]
    fn unknown_lists_are_replaced() {
        assert_eq!(patched(json!({"args": ["a", "b"]}), &json!({"args": ["c"]})), json!({"args": ["c"]}));
    }

    #[test]
    fn finalizers_are_a_set() {
        let target = json!({"metadata": {"finalizers": ["a"]}});
        let added = patched(target, &json!({"metadata": {"finalizers": ["b", "a"]}}));
        assert_eq!(added["metadata"]["finalizers"], json!(["a", "b"]));
        let removed = patched(added, &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}));
        assert_eq!(removed["metadata"]["finalizers"], json!(["b"]));
    }

    #[test]
    fn retain_keys_drops_the_other_strategy() {
        let target = json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}});
        let patch = json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}});
        assert_eq!(patched(target, &patch), json!({"strategy": {"type": "Recreate"}}));
    }

    #[test]
    fn order_is_set() {
        let target = json!({"env": [{"name": "a"}, {"name": "b"}]});
        let patch = json!({"env": [{"name": "c"}], "$setElementOrder/env": [{"name": "c"}, {"name": "b"}, {"name": "a"}]});
        assert_eq!(patched(target, &patch), json!({"env": [{"name": "c"}, {"name": "b"}, {"name": "a"}]}));
    }
}
