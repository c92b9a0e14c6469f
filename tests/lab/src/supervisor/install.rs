//! The shipped objects, created; those that stand for pods' endpoints lead to the lab's processes.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::{Service, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind, TypeMeta},
};
use tokio::time;

use super::{bootstrap::POLL, manifests::Manifests, webhooks};
use crate::{access::Access, state::StateDir};

/// Longer than any lab lives.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// Creates everything, and waits until each definition is served. The controllers listen at `control`.
pub(super) async fn objects(client: &Client, manifests: &Manifests, control: IpAddr) -> Result<()> {
    let mut definitions = Vec::new();
    for object in &manifests.objects {
        let types = object.types.clone().context("an object without a kind")?;
        let name = object.name_any();
        create(client, object, &types, control)
            .await
            .with_context(|| format!("cannot create {} {name}", types.kind))?;
        if types.kind == "CustomResourceDefinition" {
            definitions.push(name);
        }
    }
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for name in definitions {
        while !is_established(&api.get(&name).await?) {
            time::sleep(POLL).await;
        }
    }
    Ok(())
}

async fn create(client: &Client, object: &DynamicObject, types: &TypeMeta, control: IpAddr) -> Result<()> {
    let parameters = PostParams::default();
    let namespace = object.namespace();
    if types.kind == "Service" {
        let mut service: Service = object.clone().try_parse()?;
        let namespace = namespace.context("it has no namespace")?;
        let slice = webhooks::slice(&service, control)?;
        // Its endpoints are the lab's business.
        service.spec.get_or_insert_default().selector = None;
        Api::namespaced(client.clone(), &namespace).create(&parameters, &service).await?;
        Api::namespaced(client.clone(), &namespace).create(&parameters, &slice).await?;
        return Ok(());
    }
    let resource = resource(types)?;
    let api: Api<DynamicObject> = match &namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    api.create(&parameters, object).await?;
    Ok(())
}

fn resource(types: &TypeMeta) -> Result<ApiResource> {
    let kind = GroupVersionKind::try_from(types).context("its apiVersion is malformed")?;
    Ok(ApiResource::from_gvk(&kind))
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    let conditions = crd.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Established" && c.status == "True")
}

/// Writes a kubeconfig of a service account, for a program of the lab.
pub(super) async fn account(
    client: &Client,
    (namespace, name): (&str, &str),
    access: &Access,
    state: &StateDir,
) -> Result<PathBuf> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let spec = TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let made: TokenRequest = api
        .create_subresource("token", name, &PostParams::default(), &request)
        .await
        .with_context(|| format!("cannot make a token of ServiceAccount {namespace}/{name}"))?;
    let token = made.status.context("the API server made no token")?.token;
    let path = state.inner_kubeconfig(&format!("account-{name}"));
    Access { token, ..access.clone() }.write(&path, name)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_resource_and_the_services_lead_to_control() {
        let mut services = 0;
        for object in Manifests::read("auto").unwrap().objects {
            let types = object.types.clone().unwrap();
            assert!(!resource(&types).unwrap().plural.is_empty());
            if types.kind == "Service" {
                let slice =
                    webhooks::slice(&object.try_parse().unwrap(), "fd00::1".parse().unwrap()).unwrap();
                assert_eq!(slice.address_type, "IPv6");
                assert!(matches!(slice.ports.unwrap()[0].port, Some(9443 | 9444)));
                services += 1;
            }
        }
        assert_eq!(services, 2);
    }
}
