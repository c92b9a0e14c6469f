//! Configurations of admission webhooks.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::meta::{self, default_to, str_at};
use crate::registry::Resource;
use crate::status::FieldError;

const MAX_TIMEOUT: u64 = 30;

fn hooks(object: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let list = object.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten();
    list.filter_map(Value::as_object_mut)
}

pub(super) fn prepare(resource: &Resource, object: &mut Value) {
    let mutating = resource.plural.starts_with("mutating");
    for hook in hooks(object) {
        default_to(hook, "failurePolicy", "Fail");
        default_to(hook, "matchPolicy", "Equivalent");
        default_to(hook, "namespaceSelector", json!({}));
        default_to(hook, "objectSelector", json!({}));
        default_to(hook, "timeoutSeconds", 10);
        if mutating {
            default_to(hook, "reinvocationPolicy", "Never");
        }
        for rule in hook.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
            default_to(meta::as_map(rule), "scope", "*");
        }
        let service = hook.get_mut("clientConfig").and_then(|client| client.get_mut("service"));
        if let Some(Value::Object(service)) = service {
            default_to(service, "port", 443);
        }
    }
}

pub(super) fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    let hooks = object.get("webhooks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, hook) in hooks.iter().enumerate() {
        let at = format!("webhooks[{index}]");
        let name = str_at(hook, &["name"]).unwrap_or_default();
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if name.split('.').count() < 3 {
            let detail = "should be a domain with at least three segments separated by dots";
            errors.push(FieldError::invalid(format!("{at}.name"), &name.into(), detail));
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), &name.into()));
        }
        check_hook(hook, &at, &mut errors);
        check_client(&hook["clientConfig"], &format!("{at}.clientConfig"), &mut errors);
        for (index, rule) in hook["rules"].as_array().into_iter().flatten().enumerate() {
            check_rule(rule, &format!("{at}.rules[{index}]"), &mut errors);
        }
    }
    errors
}

fn check_hook(hook: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let versions = hook["admissionReviewVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.is_empty() {
        let detail = "must specify one of v1, v1beta1";
        errors.push(FieldError::required(format!("{at}.admissionReviewVersions"), detail));
    } else if !versions.contains(&json!("v1")) {
        let detail = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(format!("{at}.admissionReviewVersions"), &versions.into(), detail));
    }
    for (key, supported) in [
        ("sideEffects", ["None", "NoneOnDryRun"]),
        ("failurePolicy", ["Fail", "Ignore"]),
        ("matchPolicy", ["Equivalent", "Exact"]),
    ] {
        match &hook[key] {
            Value::Null => errors
                .push(FieldError::required(format!("{at}.{key}"), "must specify one of None, NoneOnDryRun")),
            value if !supported.iter().any(|known| *value == **known) => {
                let supported = supported.map(Value::from);
                errors.push(FieldError::not_supported(format!("{at}.{key}"), value, &supported));
            }
            _ => {}
        }
    }
    if hook["timeoutSeconds"].as_u64().is_none_or(|seconds| !(1..=MAX_TIMEOUT).contains(&seconds)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(format!("{at}.timeoutSeconds"), &hook["timeoutSeconds"], detail));
    }
    if hook["matchConditions"].as_array().is_some_and(|conditions| !conditions.is_empty()) {
        let detail = "this embedded API server does not evaluate match conditions; use rules and selectors";
        errors.push(FieldError::forbidden(format!("{at}.matchConditions"), detail));
    }
}

fn check_client(client: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let url = str_at(client, &["url"]);
    let service = client.get("service").filter(|service| service.is_object());
    match (url, service) {
        (Some(url), None) if !url.starts_with("https://") => {
            let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
            let detail = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
            errors.push(FieldError::invalid(format!("{at}.url"), &scheme.into(), detail));
        }
        (Some(_), None) => {}
        (None, Some(service)) => {
            for key in ["name", "namespace"] {
                if str_at(service, &[key]).is_none_or(str::is_empty) {
                    errors.push(FieldError::required(format!("{at}.service.{key}"), ""));
                }
            }
        }
        _ => errors.push(FieldError::required(at, "exactly one of url or service is required")),
    }
}

fn check_rule(rule: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for key in ["operations", "apiGroups", "apiVersions", "resources"] {
        let list = rule[key].as_array().map(Vec::as_slice).unwrap_or_default();
        if list.is_empty() {
            errors.push(FieldError::required(format!("{at}.{key}"), ""));
        } else if key != "resources" && list.len() > 1 && list.contains(&json!("*")) {
            let detail = "if '*' is present, must not specify other values";
            errors.push(FieldError::invalid(format!("{at}.{key}"), &rule[key], detail));
        }
    }
    let operations = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"].map(Value::from);
    for (index, operation) in rule["operations"].as_array().into_iter().flatten().enumerate() {
        if !operations.contains(operation) {
            let path = format!("{at}.operations[{index}]");
            errors.push(FieldError::not_supported(path, operation, &operations));
        }
    }
}
