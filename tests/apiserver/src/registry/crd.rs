//! CustomResourceDefinitions: their check, their conditions, and the resources that
//! they declare.

use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{CrdColumn, Resource, ScalePaths, SchemaSource};
use crate::meta::{self, str_at};
use crate::names::NameRule;
use crate::schema::{Refs, Schema, check_rules};
use crate::status::FieldError;
use crate::store::TableId;

/// The resources of a CRD, one per served version, the storage version first.
pub(super) fn resources(crd: &Value) -> Vec<Resource> {
    let mut versions: Vec<&Value> = versions(crd).filter(|version| version["served"] == true).collect();
    versions.sort_by_key(|version| version["storage"] != true);
    versions.into_iter().filter_map(|version| resource(crd, version)).collect()
}

fn versions(crd: &Value) -> impl Iterator<Item = &Value> {
    meta::at(crd, &["spec", "versions"]).and_then(Value::as_array).into_iter().flatten()
}

fn resource(crd: &Value, version: &Value) -> Option<Resource> {
    let group = str_at(crd, &["spec", "group"])?;
    let names = meta::at(crd, &["spec", "names"])?;
    let kind = str_at(names, &["kind"])?;
    let plural = str_at(names, &["plural"])?;
    let texts = |key: &str| {
        let list = names.get(key).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let subresources = version.get("subresources").unwrap_or(&Value::Null);
    let schema = meta::at(version, &["schema", "openAPIV3Schema"]).cloned().unwrap_or_else(|| json!({}));
    Some(Resource {
        group: group.into(),
        version: str_at(version, &["name"])?.into(),
        kind: kind.into(),
        list_kind: str_at(names, &["listKind"]).map_or_else(|| format!("{kind}List"), str::to_owned),
        plural: plural.into(),
        singular: str_at(names, &["singular"]).map_or_else(|| kind.to_lowercase(), str::to_owned),
        short_names: texts("shortNames"),
        categories: texts("categories"),
        namespaced: str_at(crd, &["spec", "scope"]) == Some("Namespaced"),
        name_rule: NameRule::Subdomain,
        table: TableId::new(group, plural),
        has_status: subresources.get("status").is_some_and(|status| !status.is_null()),
        has_generation: true,
        scale: subresources.get("scale").and_then(scale_paths),
        subresources: &[],
        columns: columns(version),
        custom: true,
        source: SchemaSource::Custom(schema),
        compiled: OnceLock::new(),
    })
}

fn scale_paths(scale: &Value) -> Option<ScalePaths> {
    Some(ScalePaths {
        spec: str_at(scale, &["specReplicasPath"])?.into(),
        status: str_at(scale, &["statusReplicasPath"])?.into(),
        selector: str_at(scale, &["labelSelectorPath"]).map(str::to_owned),
    })
}

fn columns(version: &Value) -> Vec<CrdColumn> {
    let list = version.get("additionalPrinterColumns").and_then(Value::as_array).into_iter().flatten();
    let text = |column: &Value, key: &str| str_at(column, &[key]).unwrap_or_default().to_owned();
    list.map(|column| CrdColumn {
        name: text(column, "name"),
        kind: text(column, "type"),
        format: text(column, "format"),
        description: text(column, "description"),
        priority: column.get("priority").and_then(Value::as_i64).unwrap_or(0),
        path: text(column, "jsonPath"),
    })
    .collect()
}

/// What is wrong with a CRD.
pub(crate) fn validate(crd: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let text = |path: &[&str]| str_at(crd, path).unwrap_or_default().to_owned();
    let (group, plural) = (text(&["spec", "group"]), text(&["spec", "names", "plural"]));
    for (path, value) in [
        ("spec.group", &group),
        ("spec.names.plural", &plural),
        ("spec.names.kind", &text(&["spec", "names", "kind"])),
    ] {
        if value.is_empty() {
            errors.push(FieldError::required(path, ""));
        }
    }
    if meta::name(crd) != format!("{plural}.{group}") {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", &meta::name(crd).into(), detail));
    }
    let scopes = [json!("Cluster"), json!("Namespaced")];
    let scope = meta::at(crd, &["spec", "scope"]).cloned().unwrap_or(json!(""));
    if !scopes.contains(&scope) {
        errors.push(FieldError::not_supported("spec.scope", &scope, &scopes));
    }
    if versions(crd).filter(|version| version["storage"] == true).count() != 1 {
        let given = meta::at(crd, &["spec", "versions"]).cloned().unwrap_or(Value::Null);
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", &given, detail));
    }
    // The server thinks of a schema that all versions share as the definition's own.
    let schemas: Vec<&Value> = versions(crd).map(|version| &version["schema"]).collect();
    let shared = schemas.iter().all(|schema| *schema == schemas[0]);
    for (index, version) in versions(crd).enumerate() {
        if shared && index > 0 {
            break;
        }
        let path = match shared {
            true => "spec.validation.openAPIV3Schema".to_owned(),
            false => format!("spec.versions[{index}].schema.openAPIV3Schema"),
        };
        let Some(schema) = meta::at(version, &["schema", "openAPIV3Schema"]) else {
            errors.push(FieldError::required(path, "schemas are required"));
            continue;
        };
        if schema["type"] != "object" {
            errors.push(FieldError::invalid(
                format!("{path}.type"),
                &schema["type"],
                "must be object at the root",
            ));
        }
        match Schema::compile(schema, Refs::none()) {
            Ok(compiled) => errors.extend(check_rules(&compiled, schema, &path)),
            Err(error) => errors.push(FieldError::invalid(path, &Value::Null, error)),
        }
    }
    errors
}

/// Accepts the names and establishes the CRD: writes the status that the
/// apiextensions controllers of a real server would write.
pub(crate) fn established(crd: &mut Value) {
    let names = crd["spec"]["names"].clone();
    let stored = versions(crd).find(|version| version["storage"] == true);
    let stored = stored.and_then(|version| str_at(version, &["name"])).unwrap_or_default().to_owned();
    let status = meta::child_mut(crd, "status");
    status.insert("acceptedNames".into(), names);
    status.insert("storedVersions".into(), json!([stored]));
    let since = status
        .get("conditions")
        .and_then(|conditions| conditions.get(0)?.get("lastTransitionTime").cloned())
        .unwrap_or_else(|| meta::now().into());
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": since});
    let conditions = json!([
        condition("NamesAccepted", "NoConflicts", "no conflicts found"),
        condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    ]);
    status.insert("conditions".into(), conditions);
}
