//! One stored object: its value, its version, and its JSON, written at most once.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;

use crate::meta;

/// An immutable version of an object.
#[derive(Debug)]
pub(crate) struct Object {
    value: Value,
    version: u64,
    json: OnceLock<Bytes>,
}

impl Object {
    /// Stamps the version into the object's metadata.
    pub(crate) fn new(mut value: Value, version: u64) -> Arc<Self> {
        meta::metadata_mut(&mut value).insert("resourceVersion".into(), version.to_string().into());
        Arc::new(Self { value, version, json: OnceLock::new() })
    }

    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The object's JSON, shared by all readers.
    pub(crate) fn json(&self) -> Bytes {
        self.json.get_or_init(|| self.value.to_string().into()).clone()
    }

    /// Whether a write of `value` would change anything but the version.
    pub(crate) fn same_content(&self, value: &Value) -> bool {
        let (Value::Object(have), Value::Object(want)) = (&self.value, value) else { return false };
        let same_metadata = || match (have.get("metadata"), want.get("metadata")) {
            (Some(Value::Object(have)), Some(Value::Object(want))) => {
                let rest = |map: &serde_json::Map<String, Value>| {
                    map.len() - usize::from(map.contains_key("resourceVersion"))
                };
                rest(have) == rest(want)
                    && have
                        .iter()
                        .all(|(key, value)| key == "resourceVersion" || want.get(key) == Some(value))
            }
            (have, want) => have == want,
        };
        have.len() == want.len()
            && have.iter().all(|(key, value)| key == "metadata" || want.get(key) == Some(value))
            && same_metadata()
    }
}
