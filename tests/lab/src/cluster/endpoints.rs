//! EndpointSlices: one per Service and address family.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::{
        core::v1::{Pod, Service, ServicePort},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use super::{controller_ref, is_controlled_by, is_finished, is_race, matches_labels, pod_is};
use crate::config::Ip;

/// Names a slice's Service.
pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_BY: (&str, &str) =
    ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");

pub(super) async fn reconcile(
    client: &Client,
    services: &[Service],
    pods: &[Pod],
    slices: &[EndpointSlice],
) -> Result<()> {
    for service in services.iter().filter(|s| s.metadata.deletion_timestamp.is_none()) {
        one(client, service, pods, slices).await.with_context(|| {
            format!("Service {}/{}", service.namespace().unwrap_or_default(), service.name_any())
        })?;
    }
    Ok(())
}

async fn one(client: &Client, service: &Service, pods: &[Pod], slices: &[EndpointSlice]) -> Result<()> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &service.namespace().unwrap_or_default());
    let mut spare: Vec<&EndpointSlice> =
        slices.iter().filter(|s| is_controlled_by(*s, service.metadata.uid.as_deref())).collect();
    for wanted in wanted(service, pods)? {
        let name = wanted.name_any();
        let have = spare.iter().position(|s| s.name_any() == name).map(|at| spare.swap_remove(at));
        let written = match have {
            Some(have) if same(have, &wanted) => continue,
            Some(have) => {
                let mut slice = wanted;
                slice.metadata.resource_version.clone_from(&have.metadata.resource_version);
                api.replace(&name, &PostParams::default(), &slice).await
            }
            None => api.create(&PostParams::default(), &wanted).await,
        };
        written.with_context(|| format!("cannot write EndpointSlice {name}"))?;
    }
    for slice in spare {
        match api.delete(&slice.name_any(), &DeleteParams::default()).await {
            Err(e) if !is_race(&e) => return Err(e).context("cannot delete an EndpointSlice"),
            _ => {}
        }
    }
    Ok(())
}

/// Whether two slices say the same; an empty list and none are the same.
fn same(a: &EndpointSlice, b: &EndpointSlice) -> bool {
    a.endpoints == b.endpoints
        && a.ports.as_deref().unwrap_or_default() == b.ports.as_deref().unwrap_or_default()
        && a.labels() == b.labels()
}

/// The slices that a Service should have. None without a selector.
fn wanted(service: &Service, pods: &[Pod]) -> Result<Vec<EndpointSlice>> {
    let spec = service.spec.clone().unwrap_or_default();
    let Some(selector) = spec.selector.as_ref().filter(|s| !s.is_empty()) else { return Ok(Vec::new()) };
    let mut members: Vec<&Pod> = pods
        .iter()
        .filter(|p| {
            p.namespace() == service.namespace() && matches_labels(selector, p.labels()) && !is_finished(p)
        })
        .collect();
    members.sort_by_key(|p| p.name_any());
    let publish = spec.publish_not_ready_addresses.unwrap_or_default();
    let families = spec.ip_families.clone().unwrap_or_default();
    [Ip::V4, Ip::V6]
        .into_iter()
        .filter(|ip| families.iter().any(|f| f == ip.name()))
        .map(|ip| {
            let mut labels = service.labels().clone();
            labels.insert(SERVICE_LABEL.to_owned(), service.name_any());
            labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
            let ports: Vec<Value> =
                spec.ports.iter().flatten().filter_map(|port| slice_port(port, &members)).collect();
            Ok(serde_json::from_value(json!({
                "metadata": {
                    "name": format!("{}-{}", service.name_any(), ip.name().to_lowercase()),
                    "namespace": service.namespace(),
                    "labels": labels,
                    "ownerReferences": controller_ref(service),
                },
                "addressType": ip.name(),
                "endpoints": members.iter().filter_map(|pod| endpoint(pod, ip, publish)).collect::<Vec<_>>(),
                "ports": ports,
            }))?)
        })
        .collect()
}

fn endpoint(pod: &Pod, ip: Ip, publish: bool) -> Option<Value> {
    let ips = pod.status.as_ref()?.pod_ips.as_deref()?;
    let address = ips.iter().filter_map(|i| i.ip.parse::<IpAddr>().ok()).find(|a| Ip::of(*a) == ip)?;
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = pod_is(pod, "Ready");
    Some(json!({
        "addresses": [address],
        "conditions": {
            "ready": publish || (serving && !terminating),
            "serving": publish || serving,
            "terminating": terminating,
        },
        "nodeName": pod.spec.as_ref()?.node_name,
        "targetRef": {"kind": "Pod", "namespace": pod.namespace(), "name": pod.name_any(), "uid": pod.uid()},
    }))
}

/// A Service's port on its pods. A named one is looked up in the first pod that has it.
fn slice_port(port: &ServicePort, pods: &[&Pod]) -> Option<Value> {
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => pods
            .iter()
            .flat_map(|pod| pod.spec.iter().flat_map(|s| &s.containers))
            .flat_map(|c| c.ports.iter().flatten())
            .find(|p| p.name.as_ref() == Some(name))
            .map(|p| p.container_port)?,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    Some(json!({"name": port.name.as_deref().unwrap_or_default(), "protocol": protocol, "port": number}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: &str, deleted: bool) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "n", "labels": {"app": "a"}},
            "spec": {"nodeName": "node1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {
                "podIPs": [{"ip": "10.64.0.1"}, {"ip": "fd64::1"}],
                "conditions": [{"type": "Ready", "status": ready}],
            },
        });
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(pod).unwrap()
    }

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "n", "uid": "u"},
            "spec": {
                "selector": {"app": "a"}, "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"port": 80, "targetPort": "web"}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn one_slice_per_family_with_conditions() {
        let pods = [pod("b", "True", true), pod("a", "True", false), pod("c", "False", false)];
        let slices = wanted(&service(), &pods).unwrap();
        let types: Vec<_> = slices.iter().map(|s| &*s.address_type).collect();
        assert_eq!(types, ["IPv4", "IPv6"]);
        assert_eq!(slices[1].endpoints[0].addresses, ["fd64::1"]);
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
        let flags: Vec<_> = slices[0]
            .endpoints
            .iter()
            .map(|e| e.conditions.clone().unwrap())
            .map(|c| (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap()))
            .collect();
        assert_eq!(flags, [(true, true, false), (false, true, true), (false, false, false)]);
    }

    #[test]
    fn no_selector_no_slices() {
        let mut service = service();
        service.spec.as_mut().unwrap().selector = None;
        assert!(wanted(&service, &[]).unwrap().is_empty());
    }
}
