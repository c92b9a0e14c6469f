//! Events have two faces, core/v1 and events.k8s.io/v1, over one set of objects; they
//! are stored as core/v1.

use serde_json::{Map, Value};

use crate::meta;
use crate::registry::Resource;

/// Field names of `events.k8s.io/v1` and of `v1`.
const FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

fn is_new_face(resource: &Resource) -> bool {
    resource.group == "events.k8s.io"
}

fn rename(object: &mut Value, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    let map: &mut Map<String, Value> = meta::as_map(object);
    for (from, to) in pairs {
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
}

/// The object as it is stored.
pub(crate) fn to_storage(resource: &Resource, object: &mut Value) {
    if is_new_face(resource) {
        rename(object, FIELDS.iter().copied());
        object["apiVersion"] = "v1".into();
    }
}

/// The object as clients of this resource see it; `None` when it is what is stored.
pub(crate) fn from_storage(resource: &Resource, stored: &Value) -> Option<Value> {
    let version = resource.api_version();
    if stored["apiVersion"] == *version {
        return None;
    }
    let mut object = stored.clone();
    if is_new_face(resource) {
        rename(&mut object, FIELDS.iter().map(|(new, old)| (*old, *new)));
    }
    object["apiVersion"] = version.into();
    Some(object)
}
