use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::DeploymentStrategy,
        core::v1::{PodSpec, SessionAffinityConfig},
    },
    apimachinery::pkg::{apis::meta::v1::Condition, util::intstr::IntOrString},
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A set of gateway pods that translate clients to their own addresses.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "coil.cybozu.com",
    version = "v2",
    doc = "A set of gateway pods that translate clients to their own addresses.",
    kind = "Egress",
    plural = "egresses",
    namespaced,
    status = "EgressStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn = r#"{"name":"Replicas","type":"integer","jsonPath":".spec.replicas"}"#,
    printcolumn = r#"{"name":"Available","type":"integer","jsonPath":".status.replicas"}"#,
    printcolumn = r#"{"name":"Destinations","type":"string","jsonPath":".spec.destinations","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct EgressSpec {
    /// Networks in CIDR format that clients reach through this Egress.
    #[schemars(length(min = 1))]
    pub destinations: Vec<String>,
    /// Wanted number of gateway pods.
    #[serde(default = "one")]
    #[schemars(default = "one", range(min = 1))]
    pub replicas: i32,
    /// How existing gateway pods are replaced by new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<DeploymentStrategy>,
    /// Template of the gateway pods. Its container "egress" is the one that runs coil-egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<EgressPodTemplate>,
    /// ClientIP keeps a client on one gateway, None spreads its flows.
    #[serde(default)]
    #[schemars(default)]
    pub session_affinity: SessionAffinity,
    /// Configuration of the affinity, as in a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// Choose the source port of the encapsulation by a hash of the flow, not the fixed port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fou_source_port_auto: bool,
    /// Only what clients begin themselves goes through this Egress; connections that came in are answered the way
    /// they came. Not set: as each node's coild is told by --enable-originating-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub originating_only: Option<bool>,
    /// Disruption budget of the gateway pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_disruption_budget: Option<EgressPdbSpec>,
}

fn one() -> i32 {
    1
}

/// As in a Service, with another default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionAffinity {
    /// A client keeps its gateway.
    #[default]
    ClientIP,
    /// Each flow has its own choice.
    None,
}

/// Template of gateway pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressPodTemplate {
    /// Labels and annotations of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<EgressMetadata>,
    /// Specification of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PodSpec>,
}

/// The part of an object's metadata that a template may set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EgressMetadata {
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// A PodDisruptionBudget's two numbers; at most one may be given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressPdbSpec {
    /// Pods that must stay available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_available: Option<IntOrString>,
    /// Pods that may be unavailable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
}

/// What the controller saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressStatus {
    /// Available replicas of the Deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of the gateway pods in string form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<Condition>>,
}
