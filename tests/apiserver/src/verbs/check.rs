//! What makes an object invalid, and what deserves a warning.

use serde_json::Value;

use super::Place;
use crate::meta;
use crate::names;
use crate::rbac;
use crate::status::{ApiError, FieldError, Result};
use crate::strategy;

/// Checks an object before it is stored.
pub(super) fn check(place: Place<'_>, object: &Value, old: Option<&Value>) -> Result<()> {
    let resource = place.resource;
    let name = meta::name(object);
    let given = |object: &Value| [object["roleRef"].clone(), object["subjects"].clone()];
    if old.map(given) != Some(given(object)) {
        rbac::check_binding(place, object)?;
    }
    let mut errors = Vec::new();
    if old.is_none() {
        errors.extend(resource.name_rule.check(name));
    }
    names::check_labels(object, &mut errors);
    check_finalizers(place, object, old, &mut errors);
    check_owners(object, &mut errors);
    if resource.custom {
        errors.extend(resource.schema().validate(object, old));
        if errors.iter().any(FieldError::blocks_rules) {
            errors.push(FieldError::rules_not_checked());
        } else {
            errors.extend(resource.schema().broken_rules(object, old));
        }
    }
    errors.extend(strategy::validate(resource, object, old));
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(&resource.group, &resource.kind, name, &errors))
    }
}

fn check_finalizers(place: Place<'_>, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let added = |old: &Value| -> Vec<String> {
        let new = meta::finalizers(object).filter(|new| !meta::finalizers(old).any(|have| have == *new));
        new.map(str::to_owned).collect()
    };
    if let Some(old) = old.filter(|old| meta::is_deleting(old)) {
        let added = added(old);
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    let own = ["orphan", "foregroundDeletion", "kubernetes"];
    let plain = |finalizer: &String| !finalizer.contains('/') && !own.contains(&finalizer.as_str());
    if place.resource.custom {
        for finalizer in added(old.unwrap_or(&Value::Null)).into_iter().filter(plain) {
            place.caller.warn(format!(
                "metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name including a path (/) \
                 to avoid accidental conflicts with other finalizer writers"
            ));
        }
    }
}

fn check_owners(object: &Value, errors: &mut Vec<FieldError>) {
    let mut controllers = 0;
    for owner in meta::owners(object) {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                let path = format!("metadata.ownerReferences.{key}");
                errors.push(FieldError::invalid(
                    path,
                    &"".into(),
                    if key == "apiVersion" { "version must not be empty" } else { "must not be empty" },
                ));
            }
        }
        controllers += usize::from(owner.get("controller") == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true";
        let owners: Vec<&Value> = meta::owners(object).collect();
        let shown = serde_json::to_value(owners).unwrap_or_default();
        errors.push(FieldError::invalid("metadata.ownerReferences", &shown, detail));
    }
}
