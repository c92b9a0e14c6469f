//! Pods: defaults as kubectl and the controllers expect to read them back.

use serde_json::{Map, Value, json};

use crate::backend::Backend;
use crate::meta::{self, default_to};
use crate::status::{FieldError, Result};

/// Default of `terminationGracePeriodSeconds`.
const GRACE_SECONDS: u64 = 30;

pub(super) fn prepare(backend: &Backend, pod: &mut Value, old: Option<&Value>) -> Result<()> {
    let spec = meta::child_mut(pod, "spec");
    default_spec(spec);
    if old.is_some() {
        return Ok(());
    }
    default_to(spec, "serviceAccountName", "default");
    let account = spec["serviceAccountName"].clone();
    spec.insert("serviceAccount".into(), account);
    default_to(spec, "preemptionPolicy", "PreemptLowerPriority");
    default_to(spec, "priority", priority(backend, spec.get("priorityClassName")));
    tolerate_node_failures(spec);
    pod["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"});
    Ok(())
}

fn priority(backend: &Backend, class: Option<&Value>) -> i64 {
    match class.and_then(Value::as_str) {
        Some("system-node-critical") => 2_000_001_000,
        Some("system-cluster-critical") => 2_000_000_000,
        Some(name) => {
            let classes = backend.registry.builtin("scheduling.k8s.io", "priorityclasses");
            let class = backend.get(&classes, "", name).ok();
            class.and_then(|class| class.value().get("value")?.as_i64()).unwrap_or(0)
        }
        None => 0,
    }
}

fn tolerate_node_failures(spec: &mut Map<String, Value>) {
    let slot = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Value::Array(list) = slot else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = list.iter().any(|have| {
            let key_matches = have.get("key").is_none_or(|have| have == key);
            key_matches && have.get("effect").is_none_or(|effect| effect == "NoExecute")
        });
        if !covered {
            list.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
}

/// Defaults that pods and pod templates share.
pub(super) fn default_spec(spec: &mut Map<String, Value>) {
    default_to(spec, "restartPolicy", "Always");
    default_to(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "schedulerName", "default-scheduler");
    default_to(spec, "terminationGracePeriodSeconds", GRACE_SECONDS);
    default_to(spec, "enableServiceLinks", true);
    default_to(spec, "securityContext", json!({}));
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        spec.insert("serviceAccount".into(), account);
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            default_container(container);
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        for (source, mode) in
            [("configMap", "defaultMode"), ("secret", "defaultMode"), ("projected", "defaultMode")]
        {
            if let Some(Value::Object(source)) = volume.get_mut(source) {
                default_to(source, mode, 0o644);
            }
        }
        if let Some(Value::Object(source)) = volume.get_mut("hostPath") {
            default_to(source, "type", "");
        }
    }
}

fn default_container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let tag = image.rsplit('/').next().unwrap_or_default();
    let latest = !tag.contains('@') && (tag.ends_with(":latest") || !tag.contains(':'));
    default_to(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    default_to(container, "terminationMessagePath", "/dev/termination-log");
    default_to(container, "terminationMessagePolicy", "File");
    default_to(container, "resources", json!({}));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        default_to(meta::as_map(port), "protocol", "TCP");
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(Value::Object(probe)) = container.get_mut(probe) else { continue };
        for (key, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            default_to(probe, key, value);
        }
        if let Some(Value::Object(http)) = probe.get_mut("httpGet") {
            default_to(http, "path", "/");
            default_to(http, "scheme", "HTTP");
        }
    }
    for env in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(Value::Object(field)) = env.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef"))
        {
            default_to(field, "apiVersion", "v1");
        }
    }
}

/// Containers need names and images; a pod's spec does not change except for images.
pub(super) fn validate(pod: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = validate_containers(pod, "spec");
    if let Some(old) = old
        && mutable_removed(pod) != mutable_removed(old)
    {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
    errors
}

/// The spec without what an update may change.
fn mutable_removed(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    let map = meta::as_map(&mut spec);
    for key in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"] {
        map.remove(key);
    }
    for list in ["containers", "initContainers"] {
        for container in map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let container = meta::as_map(container);
            container.remove("image");
            container.remove("imagePullPolicy");
        }
    }
    spec
}

/// Checks the containers of the pod spec at `path` (`spec` or `spec.template.spec`).
pub(super) fn validate_containers(object: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = path.split('.').try_fold(object, |value, key| value.get(key)).unwrap_or(&Value::Null);
    let containers = spec.get("containers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    for (index, container) in containers.iter().enumerate() {
        let at = format!("{path}.containers[{index}]");
        let missing = |key: &str| container.get(key).and_then(Value::as_str).is_none_or(str::is_empty);
        if missing("name") {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if containers[..index].iter().any(|other| other["name"] == container["name"]) {
            errors.push(FieldError::duplicate(format!("{at}.name"), &container["name"]));
        }
        if missing("image") && path == "spec" {
            errors.push(FieldError::required(format!("{at}.image"), ""));
        }
    }
    errors
}
