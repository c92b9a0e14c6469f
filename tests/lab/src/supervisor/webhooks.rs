//! Has the API server ask the controllers about pools and Egresses, as the manifests in `deploy/webhooks` say.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::{
    admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
    },
    core::v1::Service,
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, ListParams, PostParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use serde::Deserialize as _;
use serde_json::json;
use tokio::time;

use super::bootstrap::POLL;

/// The manifests as they are shipped.
const MANIFESTS: [&str; 2] = [
    include_str!("../../../../deploy/webhooks/ipam.yaml"),
    include_str!("../../../../deploy/webhooks/egress.yaml"),
];

/// Applies the manifests. The controllers are no pods in the lab: they are at `address`.
pub(super) async fn install(client: &Client, address: IpAddr) -> Result<()> {
    for document in MANIFESTS.into_iter().flat_map(serde_yaml_ng::Deserializer::from_str) {
        let object = DynamicObject::deserialize(document).context("deploy/webhooks has no manifest")?;
        let types = object.types.clone().unwrap_or_default();
        let Ok(kind) = GroupVersionKind::try_from(&types) else {
            bail!("deploy/webhooks: what is {types:?}?")
        };
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let name = object.name_any();
        let made = api.create(&PostParams::default(), &object).await;
        made.with_context(|| format!("cannot create {} {name}", kind.kind))?;
        if kind.kind == "Service" {
            endpoint(client, &serde_json::from_value(serde_json::to_value(&object)?)?, address).await?;
        }
    }
    Ok(())
}

async fn endpoint(client: &Client, service: &Service, address: IpAddr) -> Result<()> {
    let (name, namespace) = (service.name_any(), service.namespace().unwrap_or_default());
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let ports: Vec<_> =
        ports.iter().map(|p| json!({"name": "", "port": p.target_port, "protocol": "TCP"})).collect();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "ports": ports,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    }))?;
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &namespace);
    api.create(&PostParams::default(), &slice)
        .await
        .with_context(|| format!("cannot create the EndpointSlice of {name}"))?;
    Ok(())
}

/// Waits until the controllers have written their authorities: until then pools and Egresses are refused.
pub(super) async fn wait_until_trusted(client: &Client) -> Result<()> {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    loop {
        let one = mutating.list(&ListParams::default()).await.context("cannot list webhooks")?;
        let other = validating.list(&ListParams::default()).await.context("cannot list webhooks")?;
        let one = one.items.into_iter().flat_map(|c| c.webhooks.unwrap_or_default()).map(|w| w.client_config);
        let other =
            other.items.into_iter().flat_map(|c| c.webhooks.unwrap_or_default()).map(|w| w.client_config);
        if one.chain(other).all(|client: WebhookClientConfig| client.ca_bundle.is_some()) {
            return Ok(());
        }
        time::sleep(POLL).await;
    }
}
