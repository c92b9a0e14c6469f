//! Who owns which fields, for managers that update instead of applying.

use serde_json::{Map, Value, json};

use super::apply::{keep_times, managed_fields, owned_part};
use super::fields::{self, Place};
use crate::meta;
use crate::registry::Resource;

/// The name of a manager that does not say who it is.
const UNKNOWN: &str = "unknown";

/// Notes that a manager changed an object from `old` to `new`: what it changed becomes its
/// own and nobody else's.
pub(crate) fn record(
    resource: &Resource,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    subresource: &str,
) {
    let place = Place::root(resource.schema(), !resource.custom);
    let manager = if manager.is_empty() { UNKNOWN } else { manager };
    let live = old.cloned().unwrap_or(Value::Null);
    let (before, mut after) = (owned_part(&live), owned_part(new));
    if subresource.is_empty() && resource.has_status {
        meta::as_map(&mut after).remove("status");
        if let Some(status) = before.get("status") {
            after["status"] = status.clone();
        }
    }
    let (changed, gone) = fields::compare(&before, &after, place);
    if fields::is_leaf(&changed) && fields::is_leaf(&gone) {
        return;
    }
    let mut managers = managed_fields(new);
    let mine = |entry: &Value| {
        entry["manager"] == manager
            && entry["operation"] == "Update"
            && entry.get("subresource").and_then(Value::as_str).unwrap_or_default() == subresource
    };
    let mut own =
        managers.iter().find(|entry| mine(entry)).map_or(json!({}), |entry| entry["fieldsV1"].clone());
    managers.retain(|entry| !mine(entry));
    for entry in &mut managers {
        fields::subtract(&mut entry["fieldsV1"], &changed);
        fields::subtract(&mut entry["fieldsV1"], &gone);
    }
    managers.retain(|entry| !fields::is_leaf(&entry["fieldsV1"]));
    fields::subtract(&mut own, &gone);
    fields::unite(&mut own, &changed);
    if !fields::is_leaf(&own) {
        let mut entry = json!({
            "manager": manager, "operation": "Update", "apiVersion": resource.api_version(),
            "time": meta::now(), "fieldsType": "FieldsV1", "fieldsV1": own,
        });
        if !subresource.is_empty() {
            entry["subresource"] = subresource.into();
        }
        managers.push(entry);
    }
    if old.is_some() {
        keep_times(&live, &mut managers);
    }
    let metadata: &mut Map<String, Value> = meta::metadata_mut(new);
    metadata.insert("managedFields".into(), managers.into());
}
