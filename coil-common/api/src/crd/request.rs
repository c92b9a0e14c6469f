use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Condition type: the request is done with, well or not.
pub const CONDITION_COMPLETE: &str = "Complete";
/// Condition type: there is no block to give.
pub const CONDITION_FAILED: &str = "Failed";
/// Reason of [`CONDITION_FAILED`] when the pool is exhausted.
pub const REASON_OUT_OF_BLOCKS: &str = "out of blocks";

/// A node's request for one more block of a pool.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "coil.cybozu.com",
    version = "v2",
    doc = "A node's request for one more block of a pool.",
    kind = "BlockRequest",
    plural = "blockrequests",
    status = "BlockRequestStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct BlockRequestSpec {
    /// Name of the requesting node.
    pub node_name: String,
    /// Name of the AddressPool.
    pub pool_name: String,
}

/// How far a request has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockRequestStatus {
    /// Name of the block that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_block_name: Option<String>,
    /// Complete and Failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<BlockRequestCondition>,
}

/// One condition of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockRequestCondition {
    /// Complete or Failed.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// One-phrase reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Details for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Last time the condition was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<Time>,
    /// Last time the condition changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
}

impl BlockRequestStatus {
    /// Whether the condition of this type is True.
    #[must_use]
    pub fn is_true(&self, condition: &str) -> bool {
        self.conditions.iter().any(|c| c.type_ == condition && c.status == "True")
    }
}
