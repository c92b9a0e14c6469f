//! Defaults of a schema.

use serde_json::Value;

use super::Schema;

impl Schema {
    /// Fills in defaults; an explicit null counts as absent where the schema allows none.
    pub(crate) fn fill_defaults(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (key, child) in &self.properties {
                    if map.get(key).is_some_and(Value::is_null) && !child.nullable && child.default.is_some()
                    {
                        map.remove(key);
                    }
                    if let (None, Some(default)) = (map.get(key), &child.default) {
                        map.insert(key.clone(), default.clone());
                    }
                }
                for (key, child) in map {
                    if let Some(schema) = self.child(key) {
                        schema.fill_defaults(child);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    items.iter_mut().for_each(|item| schema.fill_defaults(item));
                }
            }
            _ => {}
        }
    }

    /// Drops nulls where the schema does not allow them, as decoding into typed
    /// objects does.
    pub(crate) fn drop_nulls(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, child| {
                    let nullable = self
                        .child(key)
                        .map_or(self.preserve_unknown, |known| known.nullable || known.is_open());
                    !child.is_null() || nullable
                });
                for (key, child) in map {
                    if let Some(schema) = self.child(key) {
                        schema.drop_nulls(child);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    items.iter_mut().for_each(|item| schema.drop_nulls(item));
                }
            }
            _ => {}
        }
    }

    fn is_open(&self) -> bool {
        self.kind.is_none() && self.preserve_unknown
    }
}
