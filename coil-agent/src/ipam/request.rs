//! One BlockRequest: asking coil-ipam-controller for a block, and waiting for the answer.

use std::{pin::pin, time::Duration};

use coil_api::{
    crd::{
        AddressPool, BlockRequest, BlockRequestSpec, BlockRequestStatus, CONDITION_COMPLETE,
        CONDITION_FAILED, REASON_OUT_OF_BLOCKS,
    },
    names::block_request_name,
};
use futures::TryStreamExt;
use k8s_openapi::{
    api::core::v1::Node,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions, WatchEvent, WatchParams},
};
use tracing::{debug, info};

use super::error::IpamError;

/// Longest single watch of a request; then it is read again.
const WATCH_SECONDS: u32 = 10;

/// Who asks, and how patiently.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) node: &'a str,
    pub(super) pool: &'a str,
    /// The whole of it.
    pub(super) limit: Duration,
    /// Between two attempts of one step.
    pub(super) pause: Duration,
}

impl Asking<'_> {
    async fn pause(&self) {
        if self.pause.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(self.pause).await;
        }
    }
}

/// Gets a block of a pool for a node. Returns the block's name.
///
/// No wake-up can be lost: the watch starts at the resource version that the request was
/// created (or read) with.
///
/// # Errors
/// [`IpamError::Timeout`] when `limit` passes; else what the API or the controller said.
pub(super) async fn block(client: &Client, asking: Asking<'_>) -> Result<String, IpamError> {
    let Asking { node, pool, limit, .. } = asking;
    let name = block_request_name(pool, node);
    let answer = async {
        check_pool(client, pool).await?;
        let api = Api::<BlockRequest>::all(client.clone());
        let request = outstanding(client, &api, &name, asking).await?;
        let status = answered(&api, &name, request, asking).await?;
        judge(&name, pool, &status)
    };
    match tokio::time::timeout(limit, answer).await {
        Ok(result) => result,
        Err(_) => Err(IpamError::Timeout { request: name, waited: limit }),
    }
}

async fn check_pool(client: &Client, pool: &str) -> Result<(), IpamError> {
    match Api::<AddressPool>::all(client.clone()).get_metadata_opt(pool).await {
        Ok(Some(p)) if p.metadata.deletion_timestamp.is_none() => Ok(()),
        Ok(Some(_)) => Err(IpamError::PoolDeleted { pool: pool.to_owned() }),
        Ok(None) => Err(IpamError::PoolNotFound { pool: pool.to_owned() }),
        Err(e) => Err(IpamError::api(format!("read AddressPool {pool:?}"), &e)),
    }
}

/// The request that is waiting for an answer: ours from before if it still is, else a new one.
async fn outstanding(
    client: &Client,
    api: &Api<BlockRequest>,
    name: &str,
    asking: Asking<'_>,
) -> Result<BlockRequest, IpamError> {
    let Asking { node, pool, .. } = asking;
    let failed = |verb: &str, e: &kube::Error| IpamError::api(format!("{verb} BlockRequest {name:?}"), e);
    loop {
        if let Some(old) = api.get_opt(name).await.map_err(|e| failed("read", &e))? {
            let ours = old.spec.node_name == node && old.spec.pool_name == pool;
            let open = old.status.as_ref().is_none_or(|s| s.conditions.is_empty());
            if ours && open && old.metadata.deletion_timestamp.is_none() {
                debug!(request = name, "waiting for the request that was made before");
                return Ok(old);
            }
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: old.uid(), resource_version: None }),
                ..DeleteParams::default()
            };
            match api.delete(name, &params).await {
                Ok(_) => {}
                Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => {}
                Err(e) => return Err(failed("delete the answered", &e)),
            }
        }
        let request = new_request(client, name, node, pool).await?;
        match api.create(&PostParams::default(), &request).await {
            Ok(created) => {
                info!(request = name, "asked for a block");
                return Ok(created);
            }
            // The old one is not gone yet, or somebody was faster.
            Err(kube::Error::Api(s)) if s.code == 409 => {
                asking.pause().await;
            }
            Err(e) => return Err(failed("create", &e)),
        }
    }
}

async fn new_request(client: &Client, name: &str, node: &str, pool: &str) -> Result<BlockRequest, IpamError> {
    let owner = Api::<Node>::all(client.clone())
        .get_metadata_opt(node)
        .await
        .map_err(|e| IpamError::api(format!("read Node {node:?}"), &e))?
        .ok_or_else(|| IpamError::NodeNotFound { node: node.to_owned() })?;
    let mut request =
        BlockRequest::new(name, BlockRequestSpec { node_name: node.to_owned(), pool_name: pool.to_owned() });
    request.metadata = ObjectMeta {
        name: Some(name.to_owned()),
        owner_references: Some(vec![OwnerReference {
            api_version: Node::api_version(&()).into_owned(),
            kind: Node::kind(&()).into_owned(),
            name: node.to_owned(),
            uid: owner.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        }]),
        ..ObjectMeta::default()
    };
    Ok(request)
}

/// Waits until the request has conditions. Only the caller's limit ends this.
async fn answered(
    api: &Api<BlockRequest>,
    name: &str,
    mut request: BlockRequest,
    asking: Asking<'_>,
) -> Result<BlockRequestStatus, IpamError> {
    let vanished = || IpamError::Api {
        doing: format!("wait for BlockRequest {name:?}"),
        message: "it was deleted before it was answered".to_owned(),
    };
    let uid = request.uid();
    let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    loop {
        if request.uid() != uid {
            return Err(vanished());
        }
        if let Some(status) = request.status.take().filter(|s| s.is_true(CONDITION_COMPLETE)) {
            return Ok(status);
        }
        let version = request.resource_version().unwrap_or_default();
        match next_version(api, &params, &version).await {
            Ok(Some(next)) => request = next,
            // The watch ended or failed: read the request and watch from there.
            Ok(None) | Err(_) => {
                request = match api.get_opt(name).await {
                    Ok(Some(read)) => read,
                    Ok(None) => return Err(vanished()),
                    Err(e) => return Err(IpamError::api(format!("read BlockRequest {name:?}"), &e)),
                };
                if request.status.as_ref().is_none_or(|s| s.conditions.is_empty()) {
                    asking.pause().await;
                }
            }
        }
    }
}

async fn next_version(
    api: &Api<BlockRequest>,
    params: &WatchParams,
    version: &str,
) -> Result<Option<BlockRequest>, kube::Error> {
    let mut events = pin!(api.watch(params, version).await?);
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(request) | WatchEvent::Modified(request) => return Ok(Some(request)),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Deleted(_) | WatchEvent::Error(_) => return Ok(None),
        }
    }
    Ok(None)
}

fn judge(request: &str, pool: &str, status: &BlockRequestStatus) -> Result<String, IpamError> {
    let failed = status.conditions.iter().find(|c| c.type_ == CONDITION_FAILED && c.status == "True");
    if let Some(condition) = failed {
        let reason = condition.reason.clone().unwrap_or_default();
        let message = condition.message.clone().unwrap_or_default();
        return Err(if reason == REASON_OUT_OF_BLOCKS {
            IpamError::OutOfBlocks { pool: pool.to_owned(), message }
        } else {
            IpamError::RequestFailed { request: request.to_owned(), pool: pool.to_owned(), reason, message }
        });
    }
    status.address_block_name.clone().ok_or_else(|| IpamError::RequestFailed {
        request: request.to_owned(),
        pool: pool.to_owned(),
        reason: "no block".to_owned(),
        message: "it is Complete but names no AddressBlock".to_owned(),
    })
}
