//! The custom resources of `coil.cybozu.com/v2`.

mod block;
mod egress;
mod pod;
mod pool;
mod request;
pub mod rules;
mod schema;

pub use block::{AddressBlock, BlockFields, address_block_crd};
pub use egress::{
    Egress, EgressMetadata, EgressPdbSpec, EgressPodTemplate, EgressSpec, EgressStatus, SessionAffinity,
};
pub use pool::{AddressPool, AddressPoolSpec, SubnetSet};
pub use request::{
    BlockRequest, BlockRequestCondition, BlockRequestSpec, BlockRequestStatus, CONDITION_COMPLETE,
    CONDITION_FAILED, REASON_OUT_OF_BLOCKS,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// All definitions, as they stand in `deploy/crds/`.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    [AddressPool::crd(), address_block_crd(), BlockRequest::crd(), Egress::crd()]
        .into_iter()
        .map(schema::finish)
        .collect()
}
