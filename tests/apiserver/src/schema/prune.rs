//! Removal of fields that a schema does not know.

use serde_json::Value;

use super::{Schema, join};

impl Schema {
    /// Drops unknown fields and returns their paths. The root's `apiVersion`, `kind` and
    /// `metadata` always stay.
    pub(crate) fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        prune(self, object, "", true, &mut dropped);
        dropped
    }
}

fn prune(schema: &Schema, value: &mut Value, path: &str, embedded: bool, dropped: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.retain(|key, child| {
                if embedded && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                    return true;
                }
                match schema.child(key) {
                    Some(known) => {
                        prune(known, child, &join(path, key), known.embedded, dropped);
                        true
                    }
                    None if schema.preserve_unknown || schema.int_or_string => true,
                    None => {
                        dropped.push(join(path, key));
                        false
                    }
                }
            });
        }
        Value::Array(items) => {
            if let Some(known) = &schema.items {
                for (index, item) in items.iter_mut().enumerate() {
                    prune(known, item, &format!("{path}[{index}]"), known.embedded, dropped);
                }
            }
        }
        _ => {}
    }
}
