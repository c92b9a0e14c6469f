//! Decisions over the index.

use std::ops::Range;

use coil_api::{
    crd::{AddressBlock, AddressPool, BlockFields, REASON_OUT_OF_BLOCKS},
    names::{FINALIZER, LABEL_NODE, LABEL_POOL, LABEL_REQUEST, block_name},
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use super::{
    index::{Holder, Index, Request, Slot, Usage},
    layout::BlockNetworks,
    work::{Key, Refusal, RequestRef, Work, finalizers},
};

pub(super) fn decide(index: &mut Index, key: &Key) -> Option<Work> {
    match key {
        Key::Pool(name) => pool(index, name),
        Key::Request(name) => request(index, name),
        Key::Block(name) => block(index, name),
    }
}

/// A pool has our finalizer until it is deleted and its last block is gone.
fn pool(index: &Index, name: &str) -> Option<Work> {
    let pool = index.pools.get(name)?;
    let held = pool.finalizers.iter().any(|f| f == FINALIZER);
    let used = index.usage.get(name).is_some_and(|u| !u.slots.is_empty());
    let (pool_name, version) = (name.to_owned(), pool.version.clone());
    match (pool.deleting, held, used) {
        (false, false, _) => Some(Work::Finalizers {
            pool: pool_name,
            version,
            finalizers: finalizers(&pool.finalizers, true),
        }),
        (true, true, false) => {
            Some(Work::LetGo { pool: pool_name, version, finalizers: finalizers(&pool.finalizers, false) })
        }
        _ => None,
    }
}

fn block(index: &Index, name: &str) -> Option<Work> {
    let block = index.blocks.get(name).filter(|b| !index.nodes.contains(&b.node))?;
    Some(Work::Collect { block: name.to_owned(), uid: block.uid.clone(), node: block.node.clone() })
}

fn request(index: &mut Index, name: &str) -> Option<Work> {
    let Request { reference, open: true, spec } = index.requests.get(name)?.clone() else { return None };
    let refuse = |reference: RequestRef, reason: &str, message: String| {
        Some(Work::Refuse { request: reference, refusal: Refusal { reason: reason.to_owned(), message } })
    };
    let (node, pool_name) = match spec {
        Ok(spec) => spec,
        Err(e) => return refuse(reference, "malformed request", e),
    };
    // A crash between creating the block and answering: the block is there.
    if let Some(block) = index.answers.get(&reference.uid) {
        return Some(Work::Answer { block: block.clone(), request: reference });
    }
    let Some(pool) = index.pools.get(&pool_name) else {
        let message = format!("AddressPool {pool_name} does not exist");
        let refusal = Refusal { reason: "pool not found".to_owned(), message };
        return Some(Work::RefuseWithoutPool { request: reference, pool: pool_name, refusal });
    };
    if pool.deleting {
        let message = format!("AddressPool {pool_name} is being deleted");
        return refuse(reference, "pool is being deleted", message);
    }
    if let Err(e) = &pool.layout {
        let message = format!("AddressPool {pool_name}: {e}");
        return refuse(reference, "malformed pool", message);
    }
    let owner = OwnerReference {
        api_version: AddressPool::api_version(&()).into_owned(),
        kind: AddressPool::kind(&()).into_owned(),
        name: pool_name.clone(),
        uid: pool.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let (position, networks) = match assign(index, &pool_name, &reference.uid) {
        Ok(found) => found,
        Err(None) => {
            let message = format!("pool {pool_name} does not have free blocks");
            return refuse(reference, REASON_OUT_OF_BLOCKS, message);
        }
        Err(Some(other)) => {
            let message = format!(
                "pool {pool_name} does not have free blocks: what is left of it overlaps blocks \
                 outside this pool, such as {other}"
            );
            return refuse(reference, REASON_OUT_OF_BLOCKS, message);
        }
    };
    let labels =
        [(LABEL_POOL, pool_name.clone()), (LABEL_NODE, node), (LABEL_REQUEST, reference.uid.clone())];
    let number = u32::try_from(position).unwrap_or(u32::MAX);
    let meta = ObjectMeta {
        name: Some(block_name(&pool_name, number)),
        labels: Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        finalizers: Some(vec![FINALIZER.to_owned()]),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    let fields = BlockFields {
        index: i32::try_from(position).unwrap_or(i32::MAX),
        ipv4: networks.ipv4.map(|n| n.to_string()),
        ipv6: networks.ipv6.map(|n| n.to_string()),
    };
    Some(Work::Carve { request: reference, block: Box::new(AddressBlock::new(meta, fields)) })
}

/// How many indexes are tried that clash with other blocks. Only pools that share addresses have any.
const CLASHES: u32 = 1 << 16;

/// The index for a request: the one it was assigned before, else the next free one behind the
/// last given. One whose addresses are in some other block (of a pool that overlaps, or of this
/// one before its subnets were changed) is passed over; the error is the last of those.
fn assign(index: &mut Index, pool: &str, request: &str) -> Result<(u64, BlockNetworks), Option<IpNet>> {
    let layout = index.pools.get(pool).and_then(|p| p.layout.as_ref().ok()).ok_or(None)?;
    if let Some((_, position)) = index.assigned.get(request).filter(|(p, _)| p == pool)
        && let Some(networks) = layout.block(*position)
    {
        return Ok((*position, networks));
    }
    let empty = Usage::default();
    let usage = index.usage.get(pool).unwrap_or(&empty);
    let start = if usage.next < layout.blocks() { usage.next } else { 0 };
    let free = |range: Range<u64>| {
        let mut taken = usage.slots.range(range.clone()).map(|(i, _)| *i).peekable();
        range.filter(move |i| taken.next_if_eq(i).is_none())
    };
    let (mut clash, mut clashes) = (None, 0);
    let mut found = None;
    for position in free(start..layout.blocks()).chain(free(0..start)) {
        let Some(networks) = layout.block(position) else { break };
        match members(&networks).iter().find_map(|n| index.networks.overlapping(n)) {
            None => {
                found = Some((position, networks));
                break;
            }
            other => clash = other,
        }
        clashes += 1;
        if clashes == CLASHES {
            break;
        }
    }
    let (position, networks) = found.ok_or(clash)?;
    let holder = Holder::Request(request.to_owned());
    index.take(pool, position, Slot { holder, networks: members(&networks) });
    index.usage.entry(pool.to_owned()).or_default().next = position + 1;
    index.assigned.insert(request.to_owned(), (pool.to_owned(), position));
    Ok((position, networks))
}

fn members(networks: &BlockNetworks) -> Vec<IpNet> {
    networks.ipv4.map(IpNet::V4).into_iter().chain(networks.ipv6.map(IpNet::V6)).collect()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
