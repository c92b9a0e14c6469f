//! From the JSON of an object to CEL's values, typed by the schema.

use std::collections::HashMap;

use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelTimestamp,
};
use cel::common::value::Val;
use serde_json::{Map, Value};

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

/// A whole resource as an expression sees it: besides what the schema declares, its type, and the two fields of its
/// metadata that rules may look at.
pub(super) fn root(schema: &Schema, value: &Value) -> Box<dyn Val> {
    let Value::Object(map) = value else { return of(schema, value) };
    let mut seen = fields(schema, map);
    seen.extend(texts(value, &["apiVersion", "kind"]));
    let metadata: HashMap<_, _> = texts(&value["metadata"], &["name", "generateName"]).collect();
    seen.insert(CelMapKey::from("metadata".to_owned()), Box::new(CelMap::from(metadata)));
    Box::new(CelMap::from(seen))
}

fn texts(value: &Value, names: &[&str]) -> impl Iterator<Item = (CelMapKey<'static>, Box<dyn Val>)> {
    names.iter().filter_map(|name| {
        let text: Box<dyn Val> = Box::new(CelString::from(value.get(*name)?.as_str()?.to_owned()));
        Some((CelMapKey::from((*name).to_owned()), text))
    })
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
        Value::Object(map) => Box::new(CelMap::from(fields(schema, map))),
    }
}

fn fields(schema: &Schema, map: &Map<String, Value>) -> HashMap<CelMapKey<'static>, Box<dyn Val>> {
    let mut fields: HashMap<CelMapKey<'static>, Box<dyn Val>> = HashMap::new();
    for (key, child) in map {
        let named = schema.properties.get(key).and_then(|schema| Some((escape(key)?, schema)));
        let entry = schema.additional.as_deref().map(|schema| (key.clone(), schema));
        if let Some((name, schema)) = named.or(entry) {
            fields.insert(CelMapKey::from(name), of(schema, child));
        }
    }
    fields
}

/// Times are values of their own; other formats stay strings.
fn string(schema: &Schema, text: &str) -> Box<dyn Val> {
    let time = schema.is_time().then(|| chrono::DateTime::parse_from_rfc3339(text).ok()).flatten();
    match time {
        Some(time) => Box::new(CelTimestamp::from(time)),
        None => Box::new(CelString::from(text.to_owned())),
    }
}
