//! How objects are written out: in full, as table rows, or as metadata alone.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::http::negotiate::{Include, View};
use crate::registry::Resource;
use crate::store::Object;
use crate::{meta, strategy, table};

/// JSON of one object.
pub(crate) fn object(resource: &Resource, view: View, object: &Object) -> Bytes {
    match view {
        View::Full => full(resource, object),
        View::Metadata => metadata(object.value()).to_string().into(),
        View::Table(include) => table_of(resource, include, [object], None, true).to_string().into(),
    }
}

/// JSON of one object of a watch stream; only the first table names its columns.
pub(super) fn watched(resource: &Resource, view: View, shown: &Object, first: bool) -> Bytes {
    match view {
        View::Table(include) => table_of(resource, include, [shown], None, first).to_string().into(),
        view => object(resource, view, shown),
    }
}

fn full(resource: &Resource, object: &Object) -> Bytes {
    match strategy::from_storage(resource, object.value()) {
        None => object.json(),
        Some(converted) => converted.to_string().into(),
    }
}

/// What a list says of itself.
#[derive(Debug, Default)]
pub(crate) struct ListMeta {
    pub(crate) version: u64,
    /// Where the next page starts.
    pub(crate) token: Option<String>,
    /// How many objects the next pages have.
    pub(crate) remaining: Option<usize>,
}

impl ListMeta {
    fn json(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.version.to_string()});
        if let Some(token) = &self.token {
            meta["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}

/// JSON of a list.
pub(crate) fn list<'a>(
    resource: &Resource,
    view: View,
    objects: impl IntoIterator<Item = &'a Object>,
    meta: &ListMeta,
) -> Bytes {
    let list_metadata = meta.json();
    match view {
        View::Full => {
            let mut out = format!(
                "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{list_metadata},\"items\":[",
                Value::from(resource.list_kind.as_str()),
                Value::from(resource.api_version()),
            )
            .into_bytes();
            for (index, object) in objects.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(&full(resource, object));
            }
            out.extend_from_slice(b"]}");
            out.into()
        }
        View::Metadata => {
            let items: Vec<Value> = objects.into_iter().map(|object| metadata(object.value())).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": list_metadata, "items": items})
            .to_string()
            .into()
        }
        View::Table(include) => {
            table_of(resource, include, objects, Some(&list_metadata), true).to_string().into()
        }
    }
}

fn metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn table_of<'a>(
    resource: &Resource,
    include: Include,
    objects: impl IntoIterator<Item = &'a Object>,
    list_metadata: Option<&Value>,
    with_columns: bool,
) -> Value {
    let mut version = Value::Null;
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let value = object.value();
            version = meta::field(value, "resourceVersion").into();
            let mut row = json!({"cells": table::cells(resource, value)});
            match include {
                Include::None => {}
                Include::Metadata => row["object"] = metadata(value),
                Include::Object => {
                    row["object"] = strategy::from_storage(resource, value).unwrap_or_else(|| value.clone());
                }
            }
            row
        })
        .collect();
    let columns = if with_columns { table::columns(resource) } else { Vec::new() };
    let metadata = list_metadata.cloned().unwrap_or_else(|| json!({"resourceVersion": version}));
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows})
}
