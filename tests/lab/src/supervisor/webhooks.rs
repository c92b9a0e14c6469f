//! The shipped webhook configurations, and the way to the controllers that answer: these are no pods
//! here, so their Services get their endpoints from the lab.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, ObjectMeta, PostParams},
    core::{ApiResource, GroupVersionKind, TypeMeta},
};
use serde::Deserialize as _;
use tokio::time;

use super::bootstrap::POLL;

/// As they are shipped.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/webhooks");
/// How long the controllers may take until they have certificates and are trusted.
const LIMIT: Duration = Duration::from_secs(60);

/// Creates everything of `deploy/webhooks`; the controllers listen at `control`.
pub(super) async fn install(client: &Client, control: IpAddr) -> Result<()> {
    let files = std::fs::read_dir(MANIFESTS).with_context(|| format!("cannot read {MANIFESTS}"))?;
    for path in files.flatten().map(|file| file.path()).filter(|p| p.extension().is_some_and(|e| e == "yaml"))
    {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for object in objects(&text).with_context(|| format!("{} is no manifest", path.display()))? {
            let name = object.name_any();
            create(client, object, control).await.with_context(|| format!("cannot create {name}"))?;
        }
    }
    Ok(())
}

fn objects(manifest: &str) -> Result<Vec<DynamicObject>> {
    let documents = serde_yaml_ng::Deserializer::from_str(manifest);
    Ok(documents.map(DynamicObject::deserialize).collect::<Result<_, _>>()?)
}

async fn create(client: &Client, object: DynamicObject, control: IpAddr) -> Result<()> {
    let types = object.types.clone().context("it has no kind")?;
    let parameters = PostParams::default();
    if types.kind == "Service" {
        let mut service: Service = object.try_parse()?;
        let namespace = service.namespace().context("it has no namespace")?;
        let slice = slice(&service, control)?;
        service.spec.get_or_insert_default().selector = None;
        Api::namespaced(client.clone(), &namespace).create(&parameters, &service).await?;
        Api::namespaced(client.clone(), &namespace).create(&parameters, &slice).await?;
        return Ok(());
    }
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource(&types)?);
    api.create(&parameters, &object).await?;
    Ok(())
}

fn resource(types: &TypeMeta) -> Result<ApiResource> {
    let kind = GroupVersionKind::try_from(types).context("its apiVersion is malformed")?;
    Ok(ApiResource::from_gvk(&kind))
}

/// What the Service's selector would have found.
fn slice(service: &Service, control: IpAddr) -> Result<EndpointSlice> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let name = service.name_any();
    let port = |port: &ServicePort| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: port.target_port.as_ref().and_then(|target| match target {
            IntOrString::Int(port) => Some(*port),
            IntOrString::String(_) => None,
        }),
        protocol: port.protocol.clone(),
        ..EndpointPort::default()
    };
    let metadata = ObjectMeta {
        name: Some(format!("{name}-lab")),
        namespace: service.namespace(),
        labels: Some([("kubernetes.io/service-name".to_owned(), name)].into()),
        ..ObjectMeta::default()
    };
    Ok(EndpointSlice {
        metadata,
        address_type: if control.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        endpoints: vec![Endpoint {
            addresses: vec![control.to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            ..Endpoint::default()
        }],
        ports: Some(ports.iter().map(port).collect()),
    })
}

/// Does a write that a webhook judges, until the webhook answers: the controllers start beside it.
pub(super) async fn once_answered<T>(write: impl AsyncFn() -> Result<T, kube::Error>) -> Result<T> {
    let until = time::Instant::now() + LIMIT;
    loop {
        match write().await {
            Ok(done) => return Ok(done),
            Err(kube::Error::Api(status)) if status.code == 500 && time::Instant::now() < until => {
                time::sleep(POLL).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_endpoints_are_where_the_controller_listens() {
        let mut found = 0;
        for file in std::fs::read_dir(MANIFESTS).unwrap().flatten() {
            for object in objects(&std::fs::read_to_string(file.path()).unwrap()).unwrap() {
                let types = object.types.clone().unwrap();
                assert!(!resource(&types).unwrap().plural.is_empty());
                if types.kind == "Service" {
                    let slice = slice(&object.try_parse().unwrap(), "fd00::1".parse().unwrap()).unwrap();
                    assert_eq!(slice.address_type, "IPv6");
                    assert!(matches!(slice.ports.unwrap()[0].port, Some(9443 | 9444)));
                    found += 1;
                }
            }
        }
        assert_eq!(found, 2);
    }
}
