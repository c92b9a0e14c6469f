//! How lists of built-in types merge. The generated types do not carry this, so the
//! lists that matter are named here; every other list is replaced as a whole.

use serde_json::Value;

/// How the elements of a list are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListKeys {
    Atomic,
    Set,
    Map(Vec<String>),
}

/// The list under `field`; `elements` tells lists of the same name apart.
pub(super) fn builtin(field: &str, elements: &[Value]) -> ListKeys {
    let map = |keys: &[&str]| ListKeys::Map(keys.iter().map(ToString::to_string).collect());
    let has = |key: &str| elements.iter().all(|element| element.get(key).is_some());
    match field {
        "finalizers" | "podCIDRs" | "loadBalancerSourceRanges" => ListKeys::Set,
        "ownerReferences" => map(&["uid"]),
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "env"
        | "volumes"
        | "imagePullSecrets"
        | "webhooks"
        | "resourceClaims"
        | "schedulingGates"
            if has("name") =>
        {
            map(&["name"])
        }
        "ports" if has("containerPort") => map(&["containerPort", "protocol"]),
        // Ports of a Service; those of Endpoints and EndpointSlices are atomic.
        "ports" if has("port") && elements.iter().any(|e| e.get("targetPort").is_some()) => {
            map(&["port", "protocol"])
        }
        "volumeMounts" => map(&["mountPath"]),
        "volumeDevices" => map(&["devicePath"]),
        "hostAliases" | "podIPs" | "hostIPs" if has("ip") => map(&["ip"]),
        "topologySpreadConstraints" => map(&["topologyKey", "whenUnsatisfiable"]),
        "conditions" | "addresses" if has("type") => map(&["type"]),
        "taints" => map(&["key"]),
        "secrets" if has("name") => map(&["name"]),
        _ => ListKeys::Atomic,
    }
}

/// Whether two elements have the same value of every key. A port without protocol is TCP.
pub(super) fn same_keys(keys: &[String], a: &Value, b: &Value) -> bool {
    keys.iter().all(|key| key_value(a, key) == key_value(b, key))
}

/// The value of a key, with its default.
pub(super) fn key_value(element: &Value, key: &str) -> Value {
    match element.get(key) {
        None if key == "protocol" => "TCP".into(),
        None => Value::Null,
        Some(value) => value.clone(),
    }
}
