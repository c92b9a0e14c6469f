//! Deployments and their relatives.

use serde_json::{Value, json};

use super::pod;
use crate::meta::{self, default_to};
use crate::registry::Resource;
use crate::status::FieldError;

pub(super) fn prepare(resource: &Resource, object: &mut Value) {
    let spec = meta::child_mut(object, "spec");
    match resource.plural.as_str() {
        "deployments" => {
            default_to(spec, "replicas", 1);
            default_to(spec, "revisionHistoryLimit", 10);
            default_to(spec, "progressDeadlineSeconds", 600);
            let strategy = meta::as_map(spec.entry("strategy").or_insert_with(|| json!({})));
            default_to(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                let rolling = meta::as_map(strategy.entry("rollingUpdate").or_insert_with(|| json!({})));
                default_to(rolling, "maxSurge", "25%");
                default_to(rolling, "maxUnavailable", "25%");
            }
        }
        "replicasets" | "statefulsets" => default_to(spec, "replicas", 1),
        "daemonsets" => {
            default_to(spec, "revisionHistoryLimit", 10);
            let strategy = meta::as_map(spec.entry("updateStrategy").or_insert_with(|| json!({})));
            default_to(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                default_to(strategy, "rollingUpdate", json!({"maxSurge": 0, "maxUnavailable": 1}));
            }
        }
        "jobs" => {
            default_to(spec, "completions", 1);
            default_to(spec, "parallelism", 1);
            default_to(spec, "backoffLimit", 6);
        }
        _ => return,
    }
    if let Some(Value::Object(template)) = spec.get_mut("template")
        && let Some(Value::Object(pod)) = template.get_mut("spec")
    {
        pod::default_spec(pod);
    }
}

pub(super) fn validate(resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    if resource.plural == "controllerrevisions" {
        return Vec::new();
    }
    let mut errors = Vec::new();
    let selector = &object["spec"]["selector"];
    let labels = selector["matchLabels"].as_object();
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else if labels
        .into_iter()
        .flatten()
        .any(|(key, value)| object["spec"]["template"]["metadata"]["labels"].get(key) != Some(value))
    {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            &object["spec"]["template"]["metadata"]["labels"],
            "`selector` does not match template `labels`",
        ));
    }
    if let Some(old) = old
        && old["spec"]["selector"] != *selector
    {
        errors.push(FieldError::invalid("spec.selector", selector, "field is immutable"));
    }
    if object["spec"]["replicas"].as_i64().is_some_and(|replicas| replicas < 0) {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid("spec.replicas", &object["spec"]["replicas"], detail));
    }
    errors.extend(pod::validate_containers(object, "spec.template.spec"));
    errors
}
