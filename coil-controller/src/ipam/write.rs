//! Carrying work out against the API server.

use std::{collections::HashSet, sync::Arc};

use coil_api::{
    crd::{
        AddressBlock, AddressPool, BlockRequest, BlockRequestCondition, BlockRequestStatus,
        CONDITION_COMPLETE, CONDITION_FAILED,
    },
    names::{LABEL_POOL, LABEL_REQUEST},
};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use tracing::{info, warn};

use super::work::{Refusal, RequestRef, Work, finalizers};

/// How many nodes one page of a list has.
const NODES_AT_ONCE: u32 = 500;

/// Work that could not be carried out; it is decided anew and tried again.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {source}")]
pub struct WriteError {
    doing: String,
    #[source]
    source: kube::Error,
}

/// What the index learns from finished work.
#[derive(Debug)]
pub enum Outcome {
    /// Written; the watch brings the rest.
    Done,
    /// The block was created.
    Made {
        /// Whether the request could be answered in the same go.
        answered: bool,
    },
    /// The block that was made for the request is there: its event is on the way.
    There,
    /// The block that was made for the request is not there any more.
    Gone,
    /// The name is taken by a block that the index did not know.
    Taken,
    /// What the decision was made on is not true any more; look again.
    Stale,
    /// The node is there, which the index did not know.
    NodeIsThere(String),
    /// The nodes were listed.
    Nodes {
        /// Those that were known before.
        known: Vec<Arc<str>>,
        /// Those that are there.
        listed: HashSet<String>,
    },
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Carries one piece of work out.
///
/// # Errors
/// When the API server refuses or does not answer. Doing the same again is always right.
pub async fn carry_out(client: &Client, work: Work) -> Result<Outcome, WriteError> {
    match work {
        Work::Finalizers { pool, version, finalizers } => {
            set_finalizers(client, &pool, &version, &finalizers).await
        }
        Work::LetGo { pool, version, finalizers } => {
            let blocks = Api::<AddressBlock>::all(client.clone());
            let params = ListParams::default().labels(&format!("{LABEL_POOL}={pool}")).limit(1);
            let left = blocks.list_metadata(&params).await.map_err(|source| WriteError {
                doing: format!("list the blocks of AddressPool {pool}"),
                source,
            })?;
            if !left.items.is_empty() {
                return Ok(Outcome::Stale);
            }
            info!(pool, "its last block is gone; letting it go");
            set_finalizers(client, &pool, &version, &finalizers).await
        }
        Work::Carve { request, block } => carve(client, &request, &block).await,
        Work::Confirm { request, block } => confirm(client, &request, &block).await,
        Work::Answer { request, block } => answer(client, &request, complete(&block)).await,
        Work::Refuse { request, refusal } => refuse(client, &request, &refusal).await,
        Work::RefuseWithoutPool { request, pool, refusal } => {
            let pools = Api::<AddressPool>::all(client.clone());
            let there = pools
                .get_metadata_opt(&pool)
                .await
                .map_err(|source| WriteError { doing: format!("read AddressPool {pool}"), source })?;
            // Its watch event is on the way and brings the request back.
            if there.is_some() { Ok(Outcome::Stale) } else { refuse(client, &request, &refusal).await }
        }
        Work::RefuseWithoutNode { request, node, refusal } => {
            if node_is_there(client, &node).await? {
                return Ok(Outcome::NodeIsThere(node));
            }
            refuse(client, &request, &refusal).await
        }
        Work::ListNodes { known } => Ok(Outcome::Nodes { known, listed: nodes(client).await? }),
        Work::Collect { block, uid, node } => collect(client, &block, &uid, &node).await,
    }
}

/// The names of all nodes, a page at a time.
async fn nodes(client: &Client) -> Result<HashSet<String>, WriteError> {
    let api = Api::<Node>::all(client.clone());
    let (mut names, mut token) = (HashSet::new(), None);
    loop {
        let mut page = ListParams::default().limit(NODES_AT_ONCE);
        page.continue_token = token;
        let list = api
            .list_metadata(&page)
            .await
            .map_err(|source| WriteError { doing: "list the Nodes".to_owned(), source })?;
        names.extend(list.items.into_iter().filter_map(|node| node.metadata.name));
        token = list.metadata.continue_.filter(|token| !token.is_empty());
        if token.is_none() {
            return Ok(names);
        }
    }
}

async fn node_is_there(client: &Client, node: &str) -> Result<bool, WriteError> {
    let there = Api::<Node>::all(client.clone()).get_metadata_opt(node).await;
    there
        .map(|node| node.is_some())
        .map_err(|source| WriteError { doing: format!("read Node {node}"), source })
}

async fn set_finalizers(
    client: &Client,
    pool: &str,
    version: &str,
    list: &[String],
) -> Result<Outcome, WriteError> {
    let patch = json!({"metadata": {"resourceVersion": version, "finalizers": list}});
    let pools = Api::<AddressPool>::all(client.clone());
    match pools.patch_metadata(pool, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(Outcome::Done),
        // Changed since, or gone: the watch says so, and brings the pool back.
        Err(e) if matches!(code(&e), Some(404 | 409)) => Ok(Outcome::Stale),
        Err(source) => Err(WriteError { doing: format!("set the finalizers of AddressPool {pool}"), source }),
    }
}

async fn carve(client: &Client, request: &RequestRef, block: &AddressBlock) -> Result<Outcome, WriteError> {
    let name = block.name_any();
    let blocks = Api::<AddressBlock>::all(client.clone());
    match blocks.create(&PostParams::default(), block).await {
        Ok(_) => {}
        Err(e) if code(&e) == Some(409) => {
            let existing = blocks
                .get_metadata_opt(&name)
                .await
                .map_err(|source| WriteError { doing: format!("read AddressBlock {name}"), source })?;
            match existing {
                // An earlier attempt whose answer was lost.
                Some(ours) if ours.labels().get(LABEL_REQUEST) == Some(&request.uid) => {}
                Some(_) => return Ok(Outcome::Taken),
                None => return Ok(Outcome::Stale),
            }
        }
        Err(e) if code(&e) == Some(422) => {
            let message = format!("the API server refuses block {name}: {e}");
            let refusal = Refusal { reason: "block refused".to_owned(), message };
            return refuse(client, request, &refusal).await;
        }
        Err(source) => return Err(WriteError { doing: format!("create AddressBlock {name}"), source }),
    }
    info!(block = name, request = request.name, "carved a block");
    // Should this fail, the request is looked at again.
    let answered = answer(client, request, complete(&name)).await;
    if let Err(e) = &answered {
        warn!(block = name, request = request.name, error = %e, "the block is there, the answer failed");
    }
    Ok(Outcome::Made { answered: answered.is_ok() })
}

/// Looks whether a block that was made for a request is there.
async fn confirm(client: &Client, request: &str, name: &str) -> Result<Outcome, WriteError> {
    let block = Api::<AddressBlock>::all(client.clone())
        .get_metadata_opt(name)
        .await
        .map_err(|source| WriteError { doing: format!("read AddressBlock {name}"), source })?;
    let there = block.is_some_and(|b| b.labels().get(LABEL_REQUEST).is_some_and(|uid| uid == request));
    Ok(if there { Outcome::There } else { Outcome::Gone })
}

async fn refuse(client: &Client, request: &RequestRef, why: &Refusal) -> Result<Outcome, WriteError> {
    warn!(request = request.name, reason = why.reason, message = why.message, "no block");
    let failure = "completed with failure";
    let status = BlockRequestStatus {
        address_block_name: None,
        conditions: vec![
            condition(CONDITION_COMPLETE, failure, failure),
            condition(CONDITION_FAILED, &why.reason, &why.message),
        ],
    };
    answer(client, request, status).await
}

fn complete(block: &str) -> BlockRequestStatus {
    BlockRequestStatus {
        address_block_name: Some(block.to_owned()),
        conditions: vec![condition(CONDITION_COMPLETE, "allocated", &format!("allocated a block {block}"))],
    }
}

fn condition(type_: &str, reason: &str, message: &str) -> BlockRequestCondition {
    let now = Time(Timestamp::now());
    BlockRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

async fn answer(
    client: &Client,
    request: &RequestRef,
    status: BlockRequestStatus,
) -> Result<Outcome, WriteError> {
    let patch = json!({"metadata": {"resourceVersion": request.version}, "status": status});
    let requests = Api::<BlockRequest>::all(client.clone());
    match requests.patch_status(&request.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(Outcome::Done),
        // Given up by its node, or replaced: the watch says so.
        Err(e) if matches!(code(&e), Some(404 | 409)) => Ok(Outcome::Stale),
        Err(source) => Err(WriteError { doing: format!("answer BlockRequest {}", request.name), source }),
    }
}

async fn collect(client: &Client, name: &str, uid: &str, node: &str) -> Result<Outcome, WriteError> {
    if !node.is_empty() && node_is_there(client, node).await? {
        return Ok(Outcome::Done);
    }
    let blocks = Api::<AddressBlock>::all(client.clone());
    let failed = |source| WriteError { doing: format!("delete AddressBlock {name}"), source };
    let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    match blocks.delete(name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
        Ok(_) => {}
        Err(e) if code(&e) == Some(404) => return Ok(Outcome::Done),
        Err(e) if code(&e) == Some(409) => return Ok(Outcome::Stale),
        Err(e) => return Err(failed(e)),
    }
    // Looked at again: a node that is back may have used the block before it was deleted, but not since.
    if !node.is_empty() && node_is_there(client, node).await? {
        warn!(block = name, node, "its node is back; the block stays until that returns it");
        return Ok(Outcome::Done);
    }
    let Some(block) = blocks.get_metadata_opt(name).await.map_err(failed)? else {
        return Ok(Outcome::Done);
    };
    if block.metadata.uid.as_deref() != Some(uid) {
        return Ok(Outcome::Done);
    }
    let patch = json!({"metadata": {
        "resourceVersion": block.metadata.resource_version,
        "finalizers": finalizers(&block.metadata.finalizers.unwrap_or_default(), false),
    }});
    match blocks.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => {
            info!(block = name, node, "collected: its node is gone");
            Ok(Outcome::Done)
        }
        Err(e) if code(&e) == Some(404) => Ok(Outcome::Done),
        Err(e) if code(&e) == Some(409) => Ok(Outcome::Stale),
        Err(source) => {
            Err(WriteError { doing: format!("remove the finalizer of AddressBlock {name}"), source })
        }
    }
}
