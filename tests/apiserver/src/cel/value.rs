//! From the JSON of an object to CEL's values, typed by the schema.

use std::collections::HashMap;

use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelTimestamp,
};
use cel::common::value::Val;
use serde_json::Value;

use crate::schema::{Schema, Type};

/// Words that an expression cannot use as field names.
const RESERVED: [&str; 18] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
];

/// The name by which an expression selects a field; `None` for one it cannot name.
pub(super) fn escape(field: &str) -> Option<String> {
    if RESERVED.contains(&field) {
        return Some(format!("__{field}__"));
    }
    let starts_well = field.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    if !starts_well || !field.chars().all(known) {
        return None;
    }
    let name = field.replace("__", "__underscores__");
    Some(name.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

/// The value as an expression sees it. What the schema does not declare is not there.
pub(super) fn of(schema: &Schema, value: &Value) -> Box<dyn Val> {
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(*value)),
        Value::Number(number) => match (schema.kind, number.as_i64()) {
            (Some(Type::Number), _) | (_, None) => {
                Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN)))
            }
            (_, Some(whole)) => Box::new(CelInt::from(whole)),
        },
        Value::String(text) => string(schema, text),
        Value::Array(items) => {
            let any = Schema::default();
            let element = schema.items.as_deref().unwrap_or(&any);
            let items: Vec<Box<dyn Val>> = items.iter().map(|item| of(element, item)).collect();
            Box::new(CelList::from(items))
        }
        Value::Object(map) => {
            let mut fields: HashMap<CelMapKey<'static>, Box<dyn Val>> = HashMap::new();
            for (key, child) in map {
                let named = schema.properties.get(key).and_then(|schema| Some((escape(key)?, schema)));
                let entry = schema.additional.as_deref().map(|schema| (key.clone(), schema));
                if let Some((name, schema)) = named.or(entry) {
                    fields.insert(CelMapKey::from(name), of(schema, child));
                }
            }
            Box::new(CelMap::from(fields))
        }
    }
}

/// Times are values of their own; other formats stay strings.
fn string(schema: &Schema, text: &str) -> Box<dyn Val> {
    let time = schema.is_time().then(|| chrono::DateTime::parse_from_rfc3339(text).ok()).flatten();
    match time {
        Some(time) => Box::new(CelTimestamp::from(time)),
        None => Box::new(CelString::from(text.to_owned())),
    }
}
