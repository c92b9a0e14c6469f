//! The server-side printing that `kubectl get` shows.

mod age;
mod builtin;
mod jsonpath;

use serde_json::{Value, json};

use crate::meta;
use crate::registry::Resource;

/// The column definitions of a resource.
pub(crate) fn columns(resource: &Resource) -> Vec<Value> {
    let name = json!({"name": "Name", "type": "string", "format": "name",
        "description": "Name must be unique within a namespace.", "priority": 0});
    let column = |name: &str, kind: &str, format: &str, description: &str, priority: i64| json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority});
    let mut columns = vec![name];
    if resource.custom && !resource.columns.is_empty() {
        columns.extend(
            resource.columns.iter().map(|c| column(&c.name, &c.kind, &c.format, &c.description, c.priority)),
        );
        return columns;
    }
    let builtin = builtin::columns(&resource.group, &resource.plural);
    columns.extend(builtin.iter().map(|c| column(c.name, "string", "", "", c.priority)));
    columns
}

/// The cells of an object, one per column.
pub(crate) fn cells(resource: &Resource, object: &Value) -> Vec<Value> {
    let mut cells = vec![Value::from(meta::name(object))];
    if resource.custom && !resource.columns.is_empty() {
        cells.extend(resource.columns.iter().map(|column| {
            let found = jsonpath::find(object, &column.path);
            custom_cell(&column.kind, found.first().copied())
        }));
        return cells;
    }
    let builtin = builtin::columns(&resource.group, &resource.plural);
    cells.extend(builtin.iter().map(|column| Value::from((column.cell)(object))));
    cells
}

/// A cell of a CRD's column; a date is shown as the time since.
fn custom_cell(kind: &str, value: Option<&Value>) -> Value {
    let Some(value) = value else { return Value::Null };
    match (kind, value) {
        ("date", Value::String(date)) => age::since(date).into(),
        ("string", Value::String(_))
        | ("integer" | "number", Value::Number(_))
        | ("boolean", Value::Bool(_)) => value.clone(),
        ("string", other) => other.to_string().into(),
        _ => Value::Null,
    }
}
