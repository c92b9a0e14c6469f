//! From the JSON of a schema to its compiled form.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::{Bounds, ListType, Schema, Type};
use crate::cel;

/// A schema that this server cannot use.
#[derive(Debug, thiserror::Error)]
#[error("{path}: pattern {pattern:?} is not a regular expression: {source}")]
pub(crate) struct CompileError {
    path: String,
    pattern: String,
    source: Box<regex::Error>,
}

/// Where `$ref` points: built-in types refer to shared definitions, CRDs never do.
#[derive(Clone, Copy)]
pub(crate) struct Refs<'a> {
    definitions: Option<&'a Value>,
    /// References followed on the way here; recursive types end as "anything".
    depth: usize,
}

/// Deeper than any real type, shallow enough for the recursive ones.
const MAX_REF_DEPTH: usize = 16;

impl<'a> Refs<'a> {
    pub(crate) fn none() -> Self {
        Self { definitions: None, depth: 0 }
    }

    pub(crate) fn into(definitions: &'a Value) -> Self {
        Self { definitions: Some(definitions), depth: 0 }
    }

    fn follow(self, reference: &str) -> Option<(&'a Value, Self)> {
        let name = reference.rsplit('/').next()?;
        let target = self.definitions?.get(name)?;
        (self.depth < MAX_REF_DEPTH).then_some((target, Self { depth: self.depth + 1, ..self }))
    }
}

impl Schema {
    /// Compiles a schema.
    pub(crate) fn compile(source: &Value, refs: Refs<'_>) -> Result<Self, CompileError> {
        compile(source, refs, "")
    }

    fn anything() -> Self {
        Self { preserve_unknown: true, ..Self::default() }
    }
}

fn compile(source: &Value, refs: Refs<'_>, path: &str) -> Result<Schema, CompileError> {
    if let Some(reference) = source.get("$ref").and_then(Value::as_str) {
        return match refs.follow(reference) {
            // Recursive definitions (JSONSchemaProps) are kept as they come.
            Some((target, _)) if path.matches(reference).count() > 0 => {
                let _ = target;
                Ok(Schema::anything())
            }
            Some((target, refs)) => compile(target, refs, &format!("{path}<{reference}>")),
            None => Ok(Schema::anything()),
        };
    }
    let flag = |key: &str| source.get(key).and_then(Value::as_bool).unwrap_or(false);
    let list = |key: &str| -> Result<Vec<Schema>, CompileError> {
        let items = source.get(key).and_then(Value::as_array).into_iter().flatten();
        items.map(|item| compile(item, refs, path)).collect()
    };
    let one = |key: &str| -> Result<Option<Box<Schema>>, CompileError> {
        match source.get(key) {
            Some(child @ Value::Object(_)) => Ok(Some(Box::new(compile(child, refs, path)?))),
            Some(Value::Bool(true)) => Ok(Some(Box::new(Schema::anything()))),
            _ => Ok(None),
        }
    };
    let bounds = |min: &str, max: &str| Bounds {
        min: source.get(min).and_then(Value::as_u64),
        max: source.get(max).and_then(Value::as_u64),
    };
    let limit = |key: &str, exclusive: &str| Some((source.get(key)?.as_f64()?, flag(exclusive)));
    let properties = source.get("properties").and_then(Value::as_object).into_iter().flatten();
    let pattern = match source.get("pattern").and_then(Value::as_str) {
        None => None,
        Some(pattern) => {
            let regex = Regex::new(pattern).map_err(|source| CompileError {
                path: path.to_owned(),
                pattern: pattern.to_owned(),
                source: Box::new(source),
            })?;
            Some((pattern.to_owned(), regex))
        }
    };
    let properties = properties
        .map(|(key, child)| Ok((key.clone(), compile(child, refs, &super::join(path, key))?)))
        .collect::<Result<BTreeMap<String, Schema>, CompileError>>()?;
    let (additional, items, rules) = (one("additionalProperties")?, one("items")?, cel::rules(source));
    let below = properties.values().chain(additional.as_deref()).chain(items.as_deref());
    let ruled = !rules.is_empty() || below.into_iter().any(|child| child.ruled);
    Ok(Schema {
        kind: source.get("type").and_then(type_of),
        properties,
        additional,
        items,
        rules,
        ruled,
        list_type: list_type(source),
        atomic_map: source.get("x-kubernetes-map-type").is_some_and(|kind| kind == "atomic"),
        preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
        embedded: flag("x-kubernetes-embedded-resource"),
        int_or_string: flag("x-kubernetes-int-or-string"),
        nullable: flag("nullable"),
        default: source.get("default").cloned(),
        required: strings(source, "required"),
        allowed: source.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
        format: source.get("format").and_then(Value::as_str).map(str::to_owned),
        pattern,
        minimum: limit("minimum", "exclusiveMinimum"),
        maximum: limit("maximum", "exclusiveMaximum"),
        multiple_of: source.get("multipleOf").and_then(Value::as_f64),
        length: bounds("minLength", "maxLength"),
        item_count: bounds("minItems", "maxItems"),
        property_count: bounds("minProperties", "maxProperties"),
        unique_items: flag("uniqueItems"),
        all_of: list("allOf")?,
        any_of: list("anyOf")?,
        one_of: list("oneOf")?,
        not: one("not")?,
    })
}

fn type_of(value: &Value) -> Option<Type> {
    Some(match value.as_str()? {
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        _ => return None,
    })
}

fn list_type(source: &Value) -> ListType {
    match source.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("map") => ListType::Map(strings(source, "x-kubernetes-list-map-keys")),
        Some("set") => ListType::Set,
        _ => ListType::Atomic,
    }
}

fn strings(source: &Value, key: &str) -> Vec<String> {
    let list = source.get(key).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}
