use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pool of addresses that blocks are carved from.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "coil.cybozu.com",
    version = "v2",
    doc = "A pool of addresses that blocks are carved from.",
    kind = "AddressPool",
    plural = "addresspools",
    derive = "PartialEq",
    printcolumn = r#"{"name":"BlockSize Bits","type":"integer","jsonPath":".spec.blockSizeBits"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// Size of the blocks carved from this pool: 2^blockSizeBits addresses. 5 gives blocks of 32.
    #[serde(default = "default_block_size_bits")]
    #[schemars(default = "default_block_size_bits", range(min = 0))]
    pub block_size_bits: i32,
    /// Subnets of the pool: all IPv4, all IPv6, or all dual stack. Can only be appended to.
    #[schemars(length(min = 1))]
    pub subnets: Vec<SubnetSet>,
}

fn default_block_size_bits() -> i32 {
    5
}

/// An IPv4 subnet, an IPv6 subnet, or one of each with the same number of host bits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetSet {
    /// An IPv4 subnet such as "10.2.0.0/16".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// An IPv6 subnet such as "fd00:0200::/112".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
}
