//! Services: ports, families and cluster IPs.

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::meta::{self, default_to};
use crate::registry::Resource;
use crate::services::Reservation;
use crate::status::{ApiError, FieldError, Result};

pub(super) fn prepare(
    backend: &Backend,
    resource: &Resource,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<Reservation> {
    let name = meta::name(service).to_owned();
    let spec = meta::child_mut(service, "spec");
    default_to(spec, "type", "ClusterIP");
    default_to(spec, "sessionAffinity", "None");
    if spec["type"] != "ExternalName" {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
        default_to(spec, "externalTrafficPolicy", "Cluster");
    }
    if spec["sessionAffinity"] == "ClientIP" {
        default_to(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    } else {
        spec.remove("sessionAffinityConfig");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let port = meta::as_map(port);
        default_to(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_default();
        default_to(port, "targetPort", number);
    }
    let reservation = backend
        .services
        .assign(spec, old)
        .map_err(|error| ApiError::invalid(&resource.group, &resource.kind, &name, &[error]))?;
    meta::child_mut(service, "status").entry("loadBalancer").or_insert_with(|| json!({}));
    Ok(reservation)
}

pub(super) fn validate(service: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let headless = spec["clusterIP"] == "None" || spec["type"] == "ExternalName";
    if ports.is_empty() && !headless {
        errors.push(FieldError::required("spec.ports", ""));
    }
    for (index, port) in ports.iter().enumerate() {
        let number = port["port"].as_i64().unwrap_or(0);
        if !(1..=65535).contains(&number) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(format!("spec.ports[{index}].port"), &port["port"], detail));
        }
        if ports.len() > 1 && port["name"].as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required(format!("spec.ports[{index}].name"), ""));
        }
    }
    let was = old.map(|old| &old["spec"]["clusterIP"]).filter(|ip| ip.is_string());
    if let Some(was) = was
        && *was != spec["clusterIP"]
        && spec["type"] != "ExternalName"
    {
        errors.push(FieldError::invalid("spec.clusterIPs[0]", &spec["clusterIP"], "may not change once set"));
    }
    errors
}
