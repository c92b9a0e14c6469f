//! Rules in CEL: their place in a schema, their check with the CRD, and their evaluation.

use serde_json::{Value, json};

use super::{ListType, Schema, join};
use crate::cel;
use crate::status::FieldError;

impl Schema {
    /// The rules that an object breaks. With `old` it is an update: then what has not changed
    /// is let pass, unless the rule itself compares old and new.
    pub(crate) fn broken_rules(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        walk(self, object, old, "", false, &mut errors);
        errors
    }

    /// The old value of a list's item: only lists with keys say which one it was.
    pub(super) fn old_item<'a>(&self, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
        let ListType::Map(keys) = &self.list_type else { return None };
        let mut items = old?.as_array()?.iter();
        items.find(|old| keys.iter().all(|key| old.get(key) == item.get(key)))
    }
}

fn walk(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    unchanged: bool,
    errors: &mut Vec<FieldError>,
) {
    if !schema.ruled || value.is_null() {
        return;
    }
    let unchanged = unchanged || old == Some(value);
    for rule in schema.rules.iter().filter(|rule| rule.transition || !unchanged) {
        errors.extend(rule.broken(schema, value, old, path));
    }
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                let Some(known) = schema.child(key) else { continue };
                let old = old.and_then(|old| old.get(key)).filter(|old| !old.is_null());
                let path = match schema.properties.contains_key(key) {
                    true => join(path, key),
                    false => format!("{path}[{key}]"),
                };
                walk(known, child, old, &path, unchanged, errors);
            }
        }
        Value::Array(items) => {
            let Some(known) = &schema.items else { return };
            for (index, item) in items.iter().enumerate() {
                let old = schema.old_item(item, old);
                walk(known, item, old, &format!("{path}[{index}]"), unchanged, errors);
            }
        }
        _ => {}
    }
}

/// Checks the rules of a CRD's schema; `path` is where the schema stands in the CRD.
pub(crate) fn check_rules(schema: &Schema, source: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let place = Place { root: true, unordered: None };
    check(schema, source, path, &place, &mut errors);
    errors
}

struct Place {
    /// The schema is that of the resource itself.
    root: bool,
    /// The list on the way here whose items have no keys: old items cannot be told.
    unordered: Option<String>,
}

fn check(schema: &Schema, source: &Value, path: &str, place: &Place, errors: &mut Vec<FieldError>) {
    let given = source.get("x-kubernetes-validations").and_then(Value::as_array);
    for (index, rule) in given.into_iter().flatten().enumerate() {
        let path = format!("{path}.x-kubernetes-validations[{index}]");
        errors.extend(check_rule(schema, rule, &path, place));
    }
    let below = |unordered: Option<String>| Place { root: false, unordered };
    for (name, child) in source.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if let Some(known) = schema.properties.get(name) {
            let place = below(place.unordered.clone());
            check(known, child, &format!("{path}.properties[{name}]"), &place, errors);
        }
    }
    if let (Some(known), Some(child)) = (&schema.items, source.get("items")) {
        let keyed = matches!(schema.list_type, ListType::Map(_));
        let unordered = place.unordered.clone().or_else(|| (!keyed).then(|| path.to_owned()));
        check(known, child, &format!("{path}.items"), &below(unordered), errors);
    }
    if let (Some(known), Some(child)) = (&schema.additional, source.get("additionalProperties")) {
        let place = below(place.unordered.clone());
        check(known, child, &format!("{path}.additionalProperties"), &place, errors);
    }
}

fn check_rule(schema: &Schema, rule: &Value, path: &str, place: &Place) -> Option<FieldError> {
    const REASONS: [&str; 4] =
        ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("rule").trim().is_empty() {
        return Some(FieldError::required(format!("{path}.rule"), "rule is not specified"));
    }
    if text("message").trim().contains('\n') {
        let detail = "must not contain line breaks";
        return Some(FieldError::invalid(format!("{path}.message"), &rule["message"], detail));
    }
    if text("rule").trim().contains('\n') && text("message").trim().is_empty() {
        let detail = "message must be specified if rule contains line breaks";
        return Some(FieldError::required(format!("{path}.message"), detail));
    }
    if let Some(reason) = rule.get("reason").filter(|reason| !REASONS.iter().any(|known| **reason == **known))
    {
        return Some(FieldError::not_supported(format!("{path}.reason"), reason, &REASONS.map(Value::from)));
    }
    if !text("fieldPath").is_empty() && !is_field(schema, text("fieldPath")) {
        return Some(FieldError::invalid(
            format!("{path}.fieldPath"),
            &rule["fieldPath"],
            "must be a valid path",
        ));
    }
    if let Some((key, detail)) = cel::check(schema, place.root, rule) {
        // What the server prints is its own form of the rule.
        let shown = json!({"Rule": text("rule"), "Message": text("message"),
            "MessageExpression": text("messageExpression"), "Reason": rule["reason"], "FieldPath": text("fieldPath"),
            "OptionalOldSelf": rule["optionalOldSelf"]});
        return Some(FieldError::invalid(format!("{path}.{key}"), &shown, detail));
    }
    let compares =
        cel::rules(&json!({"x-kubernetes-validations": [rule]})).iter().any(|rule| rule.transition);
    match (&place.unordered, rule.get("optionalOldSelf")) {
        (Some(list), _) if compares => {
            let detail =
                format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
            Some(FieldError::invalid(format!("{path}.rule"), &rule["rule"], detail))
        }
        (_, Some(optional)) if !compares => {
            let detail = "may not be set if oldSelf is not used in rule";
            Some(FieldError::invalid(format!("{path}.optionalOldSelf"), optional, detail))
        }
        _ => None,
    }
}

/// Whether a `fieldPath` such as `.spec.subnets` leads to a field of the schema.
fn is_field(schema: &Schema, path: &str) -> bool {
    let mut place = Some(schema);
    let path = path.replace("['", ".").replace("']", "");
    for name in path.trim_start_matches('.').split('.') {
        place = place.and_then(|schema| schema.child(name));
    }
    place.is_some()
}
