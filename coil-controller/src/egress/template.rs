//! The gateway pods of an Egress.

use std::collections::BTreeMap;

use coil_api::{
    crd::Egress,
    names::{
        APP_NAME, COMPONENT_EGRESS, EGRESS_CONTAINER, EGRESS_SERVICE_ACCOUNT, ENV_EGRESS_NAME,
        ENV_POD_ADDRESSES, ENV_POD_NAMESPACE, GATEWAY_HEALTH_PORT, LABEL_APP_COMPONENT, LABEL_APP_INSTANCE,
        LABEL_APP_NAME,
    },
};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
        HostPathVolumeSource, ObjectFieldSelector, PodSpec, PodTemplateSpec, Probe, SecurityContext, Volume,
        VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::Settings;

/// Seconds of the grace period that are not for draining: as many as without one of the template's own (30 s and 25 s).
const TO_END: i64 = 5;

/// Labels of an Egress's objects, and the selector of its pods.
#[must_use]
pub fn labels(egress: &str) -> BTreeMap<String, String> {
    [(LABEL_APP_NAME, APP_NAME), (LABEL_APP_INSTANCE, egress), (LABEL_APP_COMPONENT, COMPONENT_EGRESS)]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// The pod template: the user's, completed so that its container `egress` is a gateway.
#[must_use]
pub fn pod_template(egress: &Egress, settings: &Settings) -> PodTemplateSpec {
    let name = egress.metadata.name.clone().unwrap_or_default();
    let template = egress.spec.template.clone().unwrap_or_default();
    let metadata = template.metadata.unwrap_or_default();
    let mut all_labels = metadata.labels.unwrap_or_default();
    all_labels.extend(labels(&name));

    let mut spec = template.spec.unwrap_or_default();
    spec.service_account_name = Some(EGRESS_SERVICE_ACCOUNT.to_owned());
    add_volumes(&mut spec);
    let position = spec.containers.iter().position(|c| c.name == EGRESS_CONTAINER).unwrap_or_else(|| {
        spec.containers.insert(0, Container { name: EGRESS_CONTAINER.to_owned(), ..Container::default() });
        0
    });
    let grace = spec.termination_grace_period_seconds;
    if let Some(container) = spec.containers.get_mut(position) {
        complete(container, egress, settings, grace);
    }
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            annotations: metadata.annotations,
            labels: Some(all_labels),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

fn add_volumes(spec: &mut PodSpec) {
    let volumes = spec.volumes.get_or_insert_default();
    if volumes.iter().all(|v| v.name != "run") {
        let empty_dir = Some(EmptyDirVolumeSource::default());
        volumes.push(Volume { name: "run".to_owned(), empty_dir, ..Volume::default() });
    }
    if volumes.iter().all(|v| v.name != "modules") {
        let host_path = Some(HostPathVolumeSource { path: "/lib/modules".to_owned(), type_: None });
        volumes.push(Volume { name: "modules".to_owned(), host_path, ..Volume::default() });
    }
}

fn complete(container: &mut Container, egress: &Egress, settings: &Settings, grace: Option<i64>) {
    container.image.get_or_insert_with(|| settings.image.clone());
    if container.command.as_ref().is_none_or(Vec::is_empty) {
        container.command = Some(vec!["coil-egress".to_owned()]);
    }
    if container.args.as_ref().is_none_or(Vec::is_empty) {
        let mut args = vec![format!("--fou-port={}", settings.port)];
        if egress.spec.fou_source_port_auto {
            args.push("--enable-sport-auto=true".to_owned());
        }
        args.push(format!("--backend={}", settings.backend));
        // Flows have the grace period for themselves, but for what coil-egress needs to end. Another image may not know.
        let ours = container.image.as_ref() == Some(&settings.image);
        args.extend(
            grace.filter(|_| ours).map(|seconds| format!("--drain-timeout={}s", (seconds - TO_END).max(0))),
        );
        container.args = Some(args);
    }
    set_env(container.env.get_or_insert_default(), egress);
    let mounts = container.volume_mounts.get_or_insert_default();
    for (name, path, read_only) in [("run", "/run", None), ("modules", "/lib/modules", Some(true))] {
        if mounts.iter().all(|m| m.name != name) {
            let (name, mount_path) = (name.to_owned(), path.to_owned());
            mounts.push(VolumeMount { name, mount_path, read_only, ..VolumeMount::default() });
        }
    }
    container.security_context = Some(SecurityContext {
        privileged: Some(true),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { add: Some(vec!["NET_ADMIN".to_owned()]), drop: None }),
        ..SecurityContext::default()
    });
    let requests = container.resources.get_or_insert_default().requests.get_or_insert_default();
    requests.entry("cpu".to_owned()).or_insert_with(|| Quantity("100m".to_owned()));
    requests.entry("memory".to_owned()).or_insert_with(|| Quantity("200Mi".to_owned()));
    container.ports = Some(vec![port("metrics", 8080), port("health", GATEWAY_HEALTH_PORT.into())]);
    container.liveness_probe = Some(probe("/healthz"));
    container.readiness_probe = Some(probe("/readyz"));
}

/// Ours replace what the template says under the same names: coil-egress depends on them.
fn set_env(env: &mut Vec<EnvVar>, egress: &Egress) {
    let value = |name: &str, value: Option<&String>| EnvVar {
        name: name.to_owned(),
        value: value.cloned(),
        ..EnvVar::default()
    };
    let field = ObjectFieldSelector { api_version: None, field_path: "status.podIPs".to_owned() };
    let addresses = EnvVar {
        name: ENV_POD_ADDRESSES.to_owned(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    };
    let ours = [
        value(ENV_POD_NAMESPACE, egress.metadata.namespace.as_ref()),
        value(ENV_EGRESS_NAME, egress.metadata.name.as_ref()),
        addresses,
    ];
    env.retain(|e| ours.iter().all(|o| o.name != e.name));
    env.extend(ours);
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("health".to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}
