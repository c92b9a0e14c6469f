//! The way to the controllers that judge objects: these are no pods here, so their Services get their
//! endpoints from the lab.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;
use coil_traffic::machine::patience;
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{ResourceExt as _, api::ObjectMeta};
use tokio::time;

use super::bootstrap::POLL;

/// How long the controllers may take until they have certificates and are trusted.
const LIMIT: Duration = Duration::from_secs(60);

/// What the Service's selector would have found.
pub(super) fn slice(service: &Service, control: IpAddr) -> Result<EndpointSlice> {
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
    let until = time::Instant::now() + patience(LIMIT);
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
