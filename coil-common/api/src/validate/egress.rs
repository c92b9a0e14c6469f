//! Egress.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::{
    Findings, Reason, Violation, labels,
    network::{self, host_bits_warning},
};
use crate::{
    crd::{EgressMetadata, EgressPdbSpec, EgressSpec},
    names::EGRESS_CONTAINER,
};

/// JSON patch operations that a new Egress gets: a template without containers gets the special one.
#[must_use]
pub fn defaults(egress: &Value) -> Vec<Value> {
    let template = &egress["spec"]["template"];
    if !template.is_object() {
        return vec![];
    }
    let containers = json!([{"name": EGRESS_CONTAINER}]);
    let spec = &template["spec"];
    if !spec.is_object() {
        let value = json!({"containers": containers});
        return vec![json!({"op": "add", "path": "/spec/template/spec", "value": value})];
    }
    if spec["containers"].as_array().is_some_and(|list| !list.is_empty()) {
        return vec![];
    }
    vec![json!({"op": "add", "path": "/spec/template/spec/containers", "value": containers})]
}

/// Judges a new Egress.
#[must_use]
pub fn on_create(name: &str, spec: &EgressSpec) -> Findings {
    let mut findings = on_update(spec);
    if !labels::is_service_name(name) {
        findings.violations.insert(
            0,
            Violation::new(
                "metadata.name",
                Reason::Invalid,
                name,
                "the Egress gets a Service of the same name, which no Service can have; use at most 63 lower case letters, digits and '-', beginning with a letter and not ending with '-'",
            ),
        );
    }
    findings
}

/// Judges what a changed Egress has become.
#[must_use]
pub fn on_update(spec: &EgressSpec) -> Findings {
    let mut findings = Findings::default();
    let Findings { violations, warnings } = &mut findings;
    if spec.destinations.is_empty() {
        violations.push(Violation::new(
            "spec.destinations",
            Reason::Required,
            Value::Null,
            "an Egress has at least one destination; 0.0.0.0/0 and ::/0 are everything",
        ));
    }
    for (i, text) in spec.destinations.iter().enumerate() {
        let field = format!("spec.destinations[{i}]");
        match network::either(text) {
            Ok(network) => warnings.extend(host_bits_warning(&field, network)),
            Err(detail) => violations.push(Violation::new(field, Reason::Invalid, text.as_str(), detail)),
        }
    }
    if spec.replicas < 1 {
        violations.push(Violation::new(
            "spec.replicas",
            Reason::Invalid,
            spec.replicas,
            "must be at least 1; delete the Egress to have none",
        ));
    }
    if let Some(strategy) = &spec.strategy {
        let type_ = strategy.type_.as_deref().unwrap_or_default();
        if !matches!(type_, "Recreate" | "RollingUpdate") {
            violations.push(Violation::new(
                "spec.strategy.type",
                Reason::NotSupported,
                type_,
                "supported values: \"Recreate\", \"RollingUpdate\"",
            ));
        }
    }
    if let Some(metadata) = spec.template.as_ref().and_then(|t| t.metadata.as_ref()) {
        judge_metadata(metadata, violations);
    }
    if let Some(pdb) = &spec.pod_disruption_budget {
        judge_pdb(pdb, violations);
    }
    findings
}

fn judge_metadata(metadata: &EgressMetadata, violations: &mut Vec<Violation>) {
    for (key, value) in metadata.labels.iter().flatten() {
        let field = "spec.template.metadata.labels";
        if let Some(detail) = labels::key_error(key) {
            violations.push(Violation::new(field, Reason::Invalid, key.as_str(), detail));
        }
        if let Some(detail) = labels::value_error(value) {
            let detail = format!("{detail}, in the label {key:?}");
            violations.push(Violation::new(field, Reason::Invalid, value.as_str(), detail));
        }
    }
    for key in metadata.annotations.iter().flat_map(|a| a.keys()) {
        if let Some(detail) = labels::key_error(key) {
            let field = "spec.template.metadata.annotations";
            violations.push(Violation::new(field, Reason::Invalid, key.as_str(), detail));
        }
    }
}

fn judge_pdb(pdb: &EgressPdbSpec, violations: &mut Vec<Violation>) {
    let path = "spec.podDisruptionBudget";
    if let (Some(min), Some(max)) = (&pdb.min_available, &pdb.max_unavailable) {
        let value = json!({"minAvailable": min, "maxUnavailable": max});
        let detail = "minAvailable and maxUnavailable cannot both be set; remove one of them";
        violations.push(Violation::new(path, Reason::Invalid, value, detail));
    }
    let numbers = [("minAvailable", &pdb.min_available), ("maxUnavailable", &pdb.max_unavailable)];
    for (name, number) in numbers {
        let Some(number) = number else { continue };
        if let Some(detail) = number_error(number) {
            let value = match number {
                IntOrString::Int(n) => json!(n),
                IntOrString::String(s) => json!(s),
            };
            violations.push(Violation::new(format!("{path}.{name}"), Reason::Invalid, value, detail));
        }
    }
}

fn number_error(number: &IntOrString) -> Option<&'static str> {
    match number {
        IntOrString::Int(n) => (*n < 0).then_some("must be a number of pods, 0 or more"),
        IntOrString::String(text) => {
            let digits =
                text.strip_suffix('%').filter(|d| !d.is_empty() && d.chars().all(|c| c.is_ascii_digit()));
            match digits.map(str::parse::<u32>) {
                None => Some("must be a number of pods, such as 1, or a percentage, such as \"50%\""),
                Some(Ok(0..=100)) => None,
                Some(_) => Some("must not be greater than 100%"),
            }
        }
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
