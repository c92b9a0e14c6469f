//! The objects that an Egress owns, as they should be.

use coil_api::crd::{Egress, SessionAffinity};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec},
        core::v1::{Service, ServicePort, ServiceSpec},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::{Resource, ResourceExt};

use super::{
    Settings,
    template::{labels, pod_template},
};

/// The controller reference from an object to its Egress.
#[must_use]
pub fn owner(egress: &Egress) -> OwnerReference {
    OwnerReference {
        api_version: Egress::api_version(&()).into_owned(),
        kind: Egress::kind(&()).into_owned(),
        name: egress.name_any(),
        uid: egress.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn metadata(egress: &Egress) -> ObjectMeta {
    ObjectMeta {
        name: Some(egress.name_any()),
        namespace: egress.namespace(),
        labels: Some(labels(&egress.name_any())),
        owner_references: Some(vec![owner(egress)]),
        ..ObjectMeta::default()
    }
}

fn selector(egress: &Egress) -> LabelSelector {
    LabelSelector { match_labels: Some(labels(&egress.name_any())), match_expressions: None }
}

/// The gateway pods.
#[must_use]
pub fn deployment(egress: &Egress, settings: &Settings) -> Deployment {
    Deployment {
        metadata: metadata(egress),
        spec: Some(DeploymentSpec {
            replicas: Some(egress.spec.replicas),
            selector: selector(egress),
            strategy: egress.spec.strategy.clone(),
            template: pod_template(egress, settings),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// Whose endpoints are the gateways.
#[must_use]
pub fn service(egress: &Egress, settings: &Settings) -> Service {
    let affinity = egress.spec.session_affinity;
    let port = i32::from(settings.port);
    Service {
        metadata: metadata(egress),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(labels(&egress.name_any())),
            ports: Some(vec![ServicePort {
                port,
                target_port: Some(IntOrString::Int(port)),
                protocol: Some("UDP".to_owned()),
                ..ServicePort::default()
            }]),
            session_affinity: Some(
                match affinity {
                    SessionAffinity::ClientIP => "ClientIP",
                    SessionAffinity::None => "None",
                }
                .to_owned(),
            ),
            // The API server refuses a configuration of an affinity that is off.
            session_affinity_config: egress
                .spec
                .session_affinity_config
                .clone()
                .filter(|_| affinity == SessionAffinity::ClientIP),
            ip_family_policy: Some("PreferDualStack".to_owned()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The disruption budget, when one is asked for.
#[must_use]
pub fn disruption_budget(egress: &Egress) -> Option<PodDisruptionBudget> {
    let budget = egress.spec.pod_disruption_budget.as_ref()?;
    Some(PodDisruptionBudget {
        metadata: metadata(egress),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: budget.min_available.clone(),
            max_unavailable: budget.max_unavailable.clone(),
            selector: Some(selector(egress)),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
