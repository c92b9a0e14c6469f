//! Validation, with the messages that Kubernetes gives.

use serde_json::Value;

use super::{Schema, Type, join};
use crate::status::FieldError;

impl Schema {
    /// All violations, in the order of the fields. With `old` it is an update: values that
    /// have not changed are let pass, as they were before the schema forbade them.
    pub(crate) fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        check(self, object, old, "", &mut errors);
        errors
    }

    /// Only the violations of types: what would fail to decode into a typed object.
    pub(crate) fn type_errors(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object, None);
        errors.retain(|error| error.reason == "FieldValueTypeInvalid");
        errors
    }

    fn accepts(&self, value: &Value) -> bool {
        let mut errors = Vec::new();
        check(self, value, None, "", &mut errors);
        errors.is_empty()
    }
}

fn check(schema: &Schema, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && schema.nullable || old == Some(value) {
        return;
    }
    if let Some(expected) = wrong_type(schema, value) {
        let given = type_name(value);
        let detail = format!("{path} in body must be of type {expected}: \"{given}\"");
        errors.push(FieldError::type_invalid(path, &given.into(), detail));
        return;
    }
    if !schema.allowed.is_empty() && !schema.allowed.contains(value) {
        errors.push(FieldError::not_supported(path, value, &schema.allowed));
    }
    match value {
        Value::Object(map) => check_object(schema, map, old, path, errors),
        Value::Array(items) => check_array(schema, items, old, path, errors),
        Value::String(text) => check_string(schema, text, path, errors),
        Value::Number(_) => check_number(schema, value, path, errors),
        Value::Null | Value::Bool(_) => {}
    }
    check_combinations(schema, value, path, errors);
}

fn check_object(
    schema: &Schema,
    map: &serde_json::Map<String, Value>,
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    for key in schema.required.iter().filter(|key| !map.contains_key(*key)) {
        errors.push(FieldError::required(join(path, key), ""));
    }
    for (key, child) in map {
        if let Some(known) = schema.child(key) {
            check(known, child, old.and_then(|old| old.get(key)), &join(path, key), errors);
        }
    }
    let count = map.len() as u64;
    if let Some(min) = schema.property_count.min.filter(|min| count < *min) {
        let detail = format!("{path} in body should have at least {min} properties");
        errors.push(FieldError::invalid(path, &count.into(), detail));
    }
    if let Some(max) = schema.property_count.max.filter(|max| count > *max) {
        errors.push(too_many(path, count, max));
    }
}

fn too_many(path: &str, count: u64, max: u64) -> FieldError {
    let message = format!("Too many: {count}: must have at most {max} items");
    FieldError { field: path.to_owned(), reason: "FieldValueTooMany", message }
}

fn check_array(
    schema: &Schema,
    items: &[Value],
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let count = items.len() as u64;
    if let Some(min) = schema.item_count.min.filter(|min| count < *min) {
        let detail = format!("{path} in body should have at least {min} items");
        errors.push(FieldError::invalid(path, &count.into(), detail));
    }
    if let Some(max) = schema.item_count.max.filter(|max| count > *max) {
        errors.push(too_many(path, count, max));
    }
    let identity = |item: &Value| -> Option<Value> {
        match &schema.list_type {
            super::ListType::Set => Some(item.clone()),
            super::ListType::Map(keys) => {
                Some(keys.iter().map(|key| item.get(key).cloned().unwrap_or(Value::Null)).collect())
            }
            super::ListType::Atomic if schema.unique_items => Some(item.clone()),
            super::ListType::Atomic => None,
        }
    };
    let ids: Vec<Option<Value>> = items.iter().map(identity).collect();
    for (index, id) in ids.iter().enumerate() {
        if id.is_some() && ids[..index].contains(id) {
            errors.push(FieldError::duplicate(format!("{path}[{index}]"), &items[index]));
        }
    }
    if let Some(known) = &schema.items {
        for (index, item) in items.iter().enumerate() {
            check(known, item, schema.old_item(item, old), &format!("{path}[{index}]"), errors);
        }
    }
}

fn check_string(schema: &Schema, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let value = Value::from(text);
    let length = text.chars().count() as u64;
    if let Some(min) = schema.length.min.filter(|min| length < *min) {
        let detail = format!("{path} in body should be at least {min} chars long");
        errors.push(FieldError::invalid(path, &value, detail));
    }
    if let Some(max) = schema.length.max.filter(|max| length > *max) {
        let message = format!("Too long: may not be more than {max} bytes");
        errors.push(FieldError { field: path.to_owned(), reason: "FieldValueTooLong", message });
    }
    if let Some((pattern, regex)) = &schema.pattern
        && !regex.is_match(text)
    {
        errors.push(FieldError::invalid(path, &value, format!("{path} in body should match '{pattern}'")));
    }
    let well_formed = match schema.format.as_deref() {
        Some("date-time") => text.parse::<jiff::Timestamp>().is_ok(),
        Some("ipv4") => text.parse::<std::net::Ipv4Addr>().is_ok(),
        Some("ipv6") => text.parse::<std::net::Ipv6Addr>().is_ok(),
        Some("cidr") => text.parse::<ipnet::IpNet>().is_ok(),
        _ => true,
    };
    if let (false, Some(format)) = (well_formed, &schema.format) {
        let detail = format!("{path} in body must be of type {format}: {value}");
        errors.push(FieldError::invalid(path, &value, detail));
    }
}

fn check_number(schema: &Schema, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(number) = value.as_f64() else { return };
    let mut complain =
        |detail: String| errors.push(FieldError::invalid(path, value, format!("{path} in body {detail}")));
    match schema.minimum {
        Some((min, true)) if number <= min => complain(format!("should be greater than {min}")),
        Some((min, false)) if number < min => complain(format!("should be greater than or equal to {min}")),
        _ => {}
    }
    match schema.maximum {
        Some((max, true)) if number >= max => complain(format!("should be less than {max}")),
        Some((max, false)) if number > max => complain(format!("should be less than or equal to {max}")),
        _ => {}
    }
    if schema.format.as_deref() == Some("int32")
        && value.as_i64().is_none_or(|number| i32::try_from(number).is_err())
    {
        complain(format!("must be of type int32: {value}"));
    }
    if let Some(unit) = schema.multiple_of
        && number % unit != 0.0
    {
        complain(format!("should be a multiple of {unit}"));
    }
}

fn check_combinations(schema: &Schema, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for part in &schema.all_of {
        check(part, value, None, path, errors);
    }
    let mut complain =
        |detail: &str| errors.push(FieldError::invalid(path, value, format!("{path} in body {detail}")));
    if !schema.any_of.is_empty() && !schema.int_or_string && !schema.any_of.iter().any(|s| s.accepts(value)) {
        complain("must validate at least one schema (anyOf)");
    }
    if !schema.one_of.is_empty() && schema.one_of.iter().filter(|s| s.accepts(value)).count() != 1 {
        complain("must validate one and only one schema (oneOf)");
    }
    if schema.not.as_ref().is_some_and(|not| not.accepts(value)) {
        complain("must not validate the schema (not)");
    }
}

/// The type that was expected, when the value has another.
fn wrong_type(schema: &Schema, value: &Value) -> Option<&'static str> {
    if schema.int_or_string {
        return (!value.is_string() && !value.is_i64() && !value.is_u64()).then_some("integer or string");
    }
    let (name, right) = match schema.kind? {
        Type::Object => ("object", value.is_object()),
        Type::Array => ("array", value.is_array()),
        Type::String => ("string", value.is_string()),
        Type::Boolean => ("boolean", value.is_boolean()),
        Type::Number => ("number", value.is_number()),
        Type::Integer => {
            let whole = value.as_f64().is_some_and(|number| number.fract() == 0.0);
            ("integer", value.is_i64() || value.is_u64() || whole)
        }
    };
    (!right).then_some(name)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
