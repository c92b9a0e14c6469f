use std::borrow::Cow;

use k8s_openapi::{
    ClusterResourceScope, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::schema;
use crate::names::{GROUP, VERSION};

/// A block of addresses that one node owns. Its fields stand at the top level: it has no spec.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressBlock {
    /// Always `coil.cybozu.com/v2`.
    pub api_version: String,
    /// Always `AddressBlock`.
    pub kind: String,
    /// Name, labels, owner, finalizer.
    pub metadata: ObjectMeta,
    /// The block's fields.
    #[serde(flatten)]
    pub block: BlockFields,
}

/// What an AddressBlock says beside its metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockFields {
    /// Position of this block in its pool, from 0.
    #[schemars(range(min = 0))]
    pub index: i32,
    /// The block's IPv4 subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// The block's IPv6 subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
}

impl AddressBlock {
    /// A block with its type filled in.
    #[must_use]
    pub fn new(metadata: ObjectMeta, block: BlockFields) -> Self {
        Self {
            api_version: <Self as Resource>::api_version(&()).into_owned(),
            kind: <Self as Resource>::kind(&()).into_owned(),
            metadata,
            block,
        }
    }
}

impl Resource for AddressBlock {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "AddressBlock".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }
    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "addressblocks".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The definition of [`AddressBlock`]; kube's derive knows only kinds with a spec.
#[must_use]
pub fn address_block_crd() -> CustomResourceDefinition {
    let mut fields = schema::of::<BlockFields>();
    fields["description"] = json!("A block of addresses that one node owns.");
    schema::definition(&json!({
        "metadata": {"name": format!("addressblocks.{GROUP}")},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": "AddressBlock",
                "plural": "addressblocks",
                "singular": "addressblock",
                "listKind": "AddressBlockList",
            },
            "scope": "Cluster",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": fields},
                "additionalPrinterColumns": [
                    {"name": "Node", "type": "string", "jsonPath": r".metadata.labels['coil\.cybozu\.com/node']"},
                    {"name": "Pool", "type": "string", "jsonPath": r".metadata.labels['coil\.cybozu\.com/pool']"},
                    {"name": "IPv4", "type": "string", "jsonPath": ".ipv4"},
                    {"name": "IPv6", "type": "string", "jsonPath": ".ipv6"},
                ],
            }],
        },
    }))
}
