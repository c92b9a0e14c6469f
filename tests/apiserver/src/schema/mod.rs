//! Structural schemas (OpenAPI v3 as CRDs carry it), compiled once per resource.

mod compile;
mod defaults;
mod prune;
mod rules;
mod validate;

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use crate::cel::Rule;

pub(crate) use compile::Refs;
pub(crate) use rules::check_rules;

/// The JSON type that a schema demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// How server-side apply treats a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Scalars, each at most once.
    Set,
    /// Objects told apart by these keys.
    Map(Vec<String>),
}

/// A compiled schema node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schema {
    pub(crate) kind: Option<Type>,
    pub(crate) properties: BTreeMap<String, Schema>,
    /// The schema of map values.
    pub(crate) additional: Option<Box<Schema>>,
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) list_type: ListType,
    /// A map that server-side apply replaces as a whole.
    pub(crate) atomic_map: bool,
    preserve_unknown: bool,
    embedded: bool,
    int_or_string: bool,
    nullable: bool,
    default: Option<Value>,
    required: Vec<String>,
    allowed: Vec<Value>,
    format: Option<String>,
    pattern: Option<(String, Regex)>,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    multiple_of: Option<f64>,
    length: Bounds,
    item_count: Bounds,
    property_count: Bounds,
    unique_items: bool,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
    /// Rules in CEL of this very node.
    rules: Vec<Rule>,
    /// This node or one below it has rules.
    ruled: bool,
}

/// Inclusive limits of a length.
#[derive(Debug, Clone, Copy, Default)]
struct Bounds {
    min: Option<u64>,
    max: Option<u64>,
}

impl Schema {
    /// The schema of a property or map value.
    pub(crate) fn child(&self, key: &str) -> Option<&Self> {
        self.properties.get(key).or(self.additional.as_deref())
    }

    /// Whether integers and strings are both allowed.
    pub(crate) fn is_int_or_string(&self) -> bool {
        self.int_or_string
    }

    /// Whether values are points in time.
    pub(crate) fn is_time(&self) -> bool {
        self.kind == Some(Type::String) && self.format.as_deref() == Some("date-time")
    }

    /// The name of the type, as schemas write it.
    pub(crate) fn type_name(&self) -> &'static str {
        match self.kind {
            Some(Type::Object) => "object",
            Some(Type::Array) => "array",
            Some(Type::String) => "string",
            Some(Type::Integer) => "integer",
            Some(Type::Number) => "number",
            Some(Type::Boolean) => "boolean",
            None => "",
        }
    }

    /// The value, when it is small enough to be repeated in an error: no object, no list.
    pub(crate) fn scalar<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        (!matches!(self.kind, Some(Type::Object | Type::Array))).then_some(value)
    }
}

/// `parent.key`, or just the key at the root.
pub(crate) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Refs, Schema};

    fn schema() -> Schema {
        let source = json!({
            "type": "object",
            "properties": {"spec": {
                "type": "object",
                "required": ["subnets"],
                "properties": {
                    "bits": {"type": "integer", "format": "int32", "minimum": 0, "default": 5},
                    "subnets": {"type": "array", "minItems": 1, "items": {
                        "type": "object", "properties": {"ipv4": {"type": "string", "pattern": "^[0-9./]+$"}}}},
                    "affinity": {"type": "string", "enum": ["ClientIP", "None"]},
                    "max": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                }
            }}
        });
        Schema::compile(&source, Refs::none()).unwrap()
    }

    fn errors(spec: &Value) -> Vec<String> {
        schema().validate(&json!({"spec": spec}), None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn messages_are_those_of_kubernetes() {
        assert_eq!(errors(&json!({})), ["spec.subnets: Required value"]);
        assert_eq!(
            errors(&json!({"subnets": []})),
            ["spec.subnets: Invalid value: 0: spec.subnets in body should have at least 1 items"]
        );
        assert_eq!(
            errors(&json!({"subnets": [{"ipv4": "x"}], "bits": "5"})),
            [
                "spec.bits: Invalid value: \"string\": spec.bits in body must be of type integer: \"string\"",
                "spec.subnets[0].ipv4: Invalid value: \"x\": spec.subnets[0].ipv4 in body should match '^[0-9./]+$'",
            ]
        );
        assert_eq!(
            errors(&json!({"subnets": [{}], "bits": -1, "affinity": "Foo"})),
            [
                "spec.affinity: Unsupported value: \"Foo\": supported values: \"ClientIP\", \"None\"",
                "spec.bits: Invalid value: -1: spec.bits in body should be greater than or equal to 0",
            ]
        );
        assert_eq!(
            errors(&json!({"subnets": [{}], "max": "10%", "labels": {"a": "b"}})),
            Vec::<String>::new()
        );
        assert_eq!(errors(&json!({"subnets": [{}], "max": true})).len(), 1);
    }

    #[test]
    fn pruning_names_what_it_drops() {
        let mut object = json!({"apiVersion": "x", "metadata": {"name": "n"}, "foo": 1,
            "spec": {"subnets": [{"ipv4": "1", "x": 2}], "free": {"any": 1}, "labels": {"k": "v"}}});
        let dropped = schema().prune(&mut object);
        assert_eq!(dropped, ["foo", "spec.subnets[0].x"]);
        assert_eq!(object["spec"]["free"]["any"], 1);
        assert_eq!(object["metadata"]["name"], "n");
    }

    #[test]
    fn defaults_fill_what_is_absent() {
        let mut object = json!({"spec": {}});
        schema().fill_defaults(&mut object);
        assert_eq!(object["spec"]["bits"], 5);
        let mut absent = json!({});
        schema().fill_defaults(&mut absent);
        assert_eq!(absent, json!({}), "no default for spec itself");
    }
}
