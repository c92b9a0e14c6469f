use std::time::Duration;

use coil_api::cni::code;

/// Why a pod gets no address now. Each message names the object and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// The namespace asks for a pool that is not there.
    #[error(
        "AddressPool {pool:?} does not exist: create it, or change the annotation {} of the pod's namespace",
        coil_api::names::ANN_POOL
    )]
    PoolNotFound {
        /// The pool's name.
        pool: String,
    },
    /// The pool is being deleted: its blocks drain, and it gives no new ones.
    #[error("AddressPool {pool:?} is being deleted and gives no more blocks: use another pool")]
    PoolDeleted {
        /// The pool's name.
        pool: String,
    },
    /// All blocks of the pool are taken.
    #[error(
        "AddressPool {pool:?} is out of blocks: append a subnet to spec.subnets, or delete pods that use it ({message})"
    )]
    OutOfBlocks {
        /// The pool's name.
        pool: String,
        /// What the controller wrote into the BlockRequest.
        message: String,
    },
    /// The controller refused the request for another reason.
    #[error("BlockRequest {request:?} for AddressPool {pool:?} failed: {reason}: {message}")]
    RequestFailed {
        /// The request's name.
        request: String,
        /// The pool's name.
        pool: String,
        /// Reason of its Failed condition.
        reason: String,
        /// Message of its Failed condition.
        message: String,
    },
    /// The controller did not answer in time.
    #[error(
        "BlockRequest {request:?} was not answered within {} s: is coil-ipam-controller running?",
        waited.as_secs()
    )]
    Timeout {
        /// The request's name.
        request: String,
        /// How long the allocation waited.
        waited: Duration,
    },
    /// The API server did not list this node's blocks yet, so what is in hand is not known.
    #[error("the AddressBlocks of node {node:?} are not listed yet: is the API server reachable?")]
    NotListed {
        /// The node's name.
        node: String,
    },
    /// Table 119 could not be made to drop a block that leaves.
    #[error("AddressBlock {block:?} is still announced after {} s, so it cannot be returned; coild's log says why", waited.as_secs())]
    StillExported {
        /// The block's name.
        block: String,
        /// How long its withdrawal was waited for.
        waited: Duration,
    },
    /// This node is not in the API.
    #[error(
        "Node {node:?} does not exist in the API: set {} to the node's name",
        coil_api::names::ENV_NODE_NAME
    )]
    NodeNotFound {
        /// The node's name.
        node: String,
    },
    /// The API server could not be used, and no block in hand has a free address.
    #[error("cannot {doing}: {message}")]
    Api {
        /// What was being done to which object.
        doing: String,
        /// The client's error, or why there was no answer. Text, because one error answers all waiters.
        message: String,
    },
}

impl IpamError {
    /// The code of the CNI specification for this error.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Timeout { .. } | Self::NotListed { .. } | Self::StillExported { .. } | Self::Api { .. } => {
                code::TRY_AGAIN_LATER
            }
            Self::PoolNotFound { .. }
            | Self::PoolDeleted { .. }
            | Self::OutOfBlocks { .. }
            | Self::RequestFailed { .. }
            | Self::NodeNotFound { .. } => code::INTERNAL,
        }
    }

    pub(super) fn api(doing: impl Into<String>, error: &kube::Error) -> Self {
        let message = match error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        Self::Api { doing: doing.into(), message }
    }
}
