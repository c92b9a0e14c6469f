//! OpenAPI v3 documents, one per group and version: what `kubectl explain` shows, and
//! how `kubectl apply` learns that this server validates fields itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use crate::meta;
use crate::registry::{Resource, Snapshot};

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`.
pub(crate) fn index(snapshot: &Snapshot) -> Value {
    let mut paths = Map::new();
    for (group, versions) in snapshot.groups() {
        for version in versions {
            let path = path_of(&group, &version);
            let url = format!("/openapi/v3/{path}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// The document of one group and version.
pub(crate) fn document(snapshot: &Snapshot, group: &str, version: &str) -> Option<Value> {
    let mut schemas = Map::new();
    let mut paths = Map::new();
    let resources = snapshot.resources().iter();
    for resource in resources.filter(|r| r.group == group && r.version == version) {
        let name = add_schema(&mut schemas, resource);
        add_paths(&mut paths, resource, &name);
    }
    (!paths.is_empty()).then(|| {
        json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.33.0"}, "paths": paths,
            "components": {"schemas": schemas}})
    })
}

/// Adds the schema of a resource and what it refers to; returns its name.
fn add_schema(schemas: &mut Map<String, Value>, resource: &Resource) -> String {
    let mut schema = resource.schema_source();
    rewrite_references(&mut schema);
    let map = meta::as_map(&mut schema);
    if let Some(Value::Object(definitions)) = map.remove("$defs") {
        schemas.extend(definitions);
    }
    map.remove("$schema");
    let title = map.remove("title");
    let name = match title {
        Some(Value::String(title)) if !resource.custom => title,
        _ => {
            let group: Vec<&str> = resource.group.split('.').rev().collect();
            format!("{}.{}.{}", group.join("."), resource.version, resource.kind)
        }
    };
    if resource.custom {
        add_object_fields(schemas, map);
    }
    let kind = json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}]);
    map.insert("x-kubernetes-group-version-kind".into(), kind);
    schemas.insert(name.clone(), schema);
    name
}

/// The name of the schema of `metadata`.
const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers \
    should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer \
    this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA_OF: &str = "Standard object's metadata. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// Adds what every object has and no definition declares.
fn add_object_fields(schemas: &mut Map<String, Value>, schema: &mut Map<String, Value>) {
    let mut metadata = schemars::schema_for!(ObjectMeta).to_value();
    rewrite_references(&mut metadata);
    if let Some(Value::Object(definitions)) = meta::as_map(&mut metadata).remove("$defs") {
        schemas.extend(definitions);
    }
    meta::as_map(&mut metadata).remove("$schema");
    schemas.insert(METADATA.into(), metadata);
    let properties = meta::as_map(schema.entry("properties").or_insert_with(|| json!({})));
    for (name, description) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        properties.insert(name.into(), json!({"type": "string", "description": description}));
    }
    let reference = json!([{"$ref": format!("#/components/schemas/{METADATA}")}]);
    properties.insert("metadata".into(), json!({"description": METADATA_OF, "allOf": reference}));
}

fn rewrite_references(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                match child {
                    Value::String(target) if key == "$ref" => {
                        *target = target.replace("#/$defs/", "#/components/schemas/");
                    }
                    child => rewrite_references(child),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(rewrite_references),
        _ => {}
    }
}

fn add_paths(paths: &mut Map<String, Value>, resource: &Resource, schema: &str) {
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
    let content = json!({"application/json": {"schema": schema}});
    let operation = |action: &str, with_body: bool| {
        let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
        let mut operation = json!({"x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind,
            "responses": {"200": {"description": "OK", "content": content}}});
        if with_body {
            let parameters = ["dryRun", "fieldManager", "fieldValidation"].map(parameter);
            operation["parameters"] = parameters.to_vec().into();
            operation["requestBody"] = json!({"content": content});
        }
        operation
    };
    let root = format!("/{}", path_of(&resource.group, &resource.version));
    let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{scope}/{}", resource.plural);
    let mut one = json!({"get": operation("get", false), "put": operation("put", true),
        "patch": operation("patch", true), "delete": operation("delete", false)});
    // Clients read from this list which patches a resource takes.
    let mut types = json!({"application/json-patch+json": {}, "application/merge-patch+json": {},
        "application/apply-patch+yaml": {}});
    if !resource.custom {
        types["application/strategic-merge-patch+json"] = json!({});
    }
    one["patch"]["requestBody"] = json!({"content": types});
    paths.insert(format!("{collection}/{{name}}"), one);
    paths.insert(collection, json!({"get": operation("list", false), "post": operation("post", true)}));
}
