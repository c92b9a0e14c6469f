//! The environment of a container: pure, from the pod and its addresses.

use std::{collections::HashMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};
use kube::ResourceExt as _;

/// What a pod's own object does not say.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) pod_ips: Vec<IpAddr>,
    pub(super) host_ips: Vec<IpAddr>,
    pub(super) api: (IpAddr, u16),
}

/// The environment of a container, in order.
///
/// # Errors
/// A sentence when a variable comes from somewhere the lab does not know.
pub(super) fn of(container: &Container, pod: &Pod, facts: &Facts) -> Result<Vec<(String, String)>, String> {
    let mut env = vec![
        ("HOSTNAME".to_owned(), pod.name_any()),
        ("KUBERNETES_SERVICE_HOST".to_owned(), facts.api.0.to_string()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), facts.api.1.to_string()),
    ];
    for variable in container.env.iter().flatten() {
        let value = value(variable, pod, facts)?;
        let value = expand(&value, &env);
        env.push((variable.name.clone(), value));
    }
    Ok(env)
}

fn value(variable: &EnvVar, pod: &Pod, facts: &Facts) -> Result<String, String> {
    let Some(source) = &variable.value_from else { return Ok(variable.value.clone().unwrap_or_default()) };
    match &source.field_ref {
        Some(field) => field_value(&field.field_path, pod, facts)
            .ok_or_else(|| format!("env {}: the lab knows no field {:?}", variable.name, field.field_path)),
        None => Err(format!("env {}: the lab knows only fieldRef as a source", variable.name)),
    }
}

fn field_value(path: &str, pod: &Pod, facts: &Facts) -> Option<String> {
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let spec = pod.spec.as_ref();
    Some(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace()?,
        "metadata.uid" => pod.uid()?,
        "spec.nodeName" => spec?.node_name.clone()?,
        "spec.serviceAccountName" => {
            spec?.service_account_name.clone().unwrap_or_else(|| "default".to_owned())
        }
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => join(&facts.pod_ips),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => join(&facts.host_ips),
        _ => {
            let (map, key) = path.strip_suffix("']")?.split_once("['")?;
            let map = match map {
                "metadata.labels" => pod.labels(),
                "metadata.annotations" => pod.annotations(),
                _ => return None,
            };
            map.get(key).cloned().unwrap_or_default()
        }
    })
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a dollar; unknown names stay.
pub(super) fn expand(text: &str, env: &[(String, String)]) -> String {
    let env: HashMap<&str, &str> = env.iter().map(|(k, v)| (&**k, &**v)).collect();
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts() -> Facts {
        Facts {
            pod_ips: vec!["10.64.0.1".parse().unwrap(), "fd64::1".parse().unwrap()],
            host_ips: vec!["172.18.0.1".parse().unwrap()],
            api: ("172.18.0.10".parse().unwrap(), 6443),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "a literal at each call")]
    fn env(variables: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a.b/c": "x"}},
            "spec": {"nodeName": "node1", "containers": []},
        }))
        .unwrap();
        let container = serde_json::from_value(json!({"name": "c", "env": variables})).unwrap();
        of(&container, &pod, &facts())
    }

    #[test]
    fn fields() {
        let from = |path: &str| json!({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}});
        for (path, expected) in [
            ("status.podIPs", "10.64.0.1,fd64::1"),
            ("status.podIP", "10.64.0.1"),
            ("metadata.namespace", "n"),
            ("spec.nodeName", "node1"),
            ("metadata.labels['a.b/c']", "x"),
            ("metadata.annotations['none']", ""),
        ] {
            let env = env(json!([from(path)])).unwrap();
            assert_eq!(env.last().unwrap().1, expected, "{path}");
        }
        assert!(env(json!([from("status.phase")])).unwrap_err().contains("status.phase"));
        let secret = json!({"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
        assert!(env(json!([secret])).unwrap_err().contains("env X"));
    }

    #[test]
    fn references() {
        let env =
            env(json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(C)-$$(A)-$"}])).unwrap();
        assert_eq!(env.last().unwrap().1, "1-$(C)-$(A)-$");
    }
}
