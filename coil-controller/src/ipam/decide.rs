//! Decisions over the index.

use coil_api::{
    crd::{AddressBlock, AddressPool, BlockFields, REASON_OUT_OF_BLOCKS},
    names::{FINALIZER, LABEL_NODE, LABEL_POOL, LABEL_REQUEST},
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use super::{
    index::{Assigned, Index, Request, Stage, parse_block_name},
    layout::BlockNetworks,
    notice::{About, Notice, Reason},
    uid::Uid,
    work::{Key, Refusal, RequestRef, Work, finalizers},
};

pub(super) fn decide(index: &mut Index, key: &Key) -> Option<Work> {
    match key {
        Key::Pool(name) => pool(index, name),
        Key::Request(name) => request(index, name),
        Key::Block(name) => block(index, name),
        Key::Nodes => Some(Work::ListNodes { known: index.nodes.keys().cloned().collect() }),
    }
}

/// A pool has our finalizer until it is deleted and its last block is gone.
fn pool(index: &Index, name: &str) -> Option<Work> {
    let pool = index.pools.get(name)?;
    let held = pool.finalizers.iter().any(|f| f == FINALIZER);
    let used = index.usage.get(name).is_some_and(|u| !u.is_empty());
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
    let Some((name, block)) = index.blocks.get_key_value(name) else { return unseen(index, name) };
    if index.nodes.contains_key(&block.node) {
        return None;
    }
    Some(Work::Collect { block: name.to_string(), uid: block.uid.to_string(), node: block.node.to_string() })
}

/// A block that was made, and that no event may ever tell of.
fn unseen(index: &Index, name: &str) -> Option<Work> {
    let (pool, position) = parse_block_name(name)?;
    let ours = |a: &Assigned| *a.pool == *pool && a.index == position && index.in_doubt(a);
    let (request, _) = index.assigned.iter().find(|(_, a)| ours(a))?;
    Some(Work::Confirm { request: request.to_string(), block: name.to_owned() })
}

fn request(index: &mut Index, name: &str) -> Option<Work> {
    let Request { reference, open: true, spec, .. } = index.requests.get(name)?.clone() else { return None };
    let uid = Uid::from(reference.uid.as_str());
    let refuse = |reference: RequestRef, reason: &str, message: String| {
        Some(Work::Refuse { request: reference, refusal: Refusal { reason: reason.to_owned(), message } })
    };
    let (node, pool_name) = match spec {
        Ok(spec) => spec,
        Err(e) => return refuse(reference, "malformed request", e),
    };
    // A crash between creating the block and answering: the block is there.
    if let Some(block) = index.answers.get(&uid) {
        return Some(Work::Answer { block: block.to_string(), request: reference });
    }
    if let Some(made) = index.assigned.get(&uid).filter(|a| matches!(a.stage, Stage::Made(_) | Stage::Gone)) {
        return Some(Work::Answer { block: made.block_name(), request: reference });
    }
    let Some(pool) = index.pools.get(pool_name.as_str()) else {
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
    if !index.nodes.contains_key(node.as_str()) {
        let message = format!("Node {node} does not exist");
        let refusal = Refusal { reason: "node not found".to_owned(), message };
        return Some(Work::RefuseWithoutNode { request: reference, node, refusal });
    }
    let owner = OwnerReference {
        api_version: AddressPool::api_version(&()).into_owned(),
        kind: AddressPool::kind(&()).into_owned(),
        name: pool_name.clone(),
        uid: pool.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let (name, position, networks) = match assign(index, &pool_name, &uid) {
        Ok(found) => found,
        Err(clash) => {
            let mut message = format!("pool {pool_name} does not have free blocks");
            if let Some(other) = clash {
                message +=
                    &format!(": what is left of it overlaps blocks outside this pool, such as {other}");
            }
            exhausted(index, &pool_name, &message);
            return refuse(reference, REASON_OUT_OF_BLOCKS, message);
        }
    };
    let labels = [(LABEL_POOL, pool_name), (LABEL_NODE, node), (LABEL_REQUEST, reference.uid.clone())];
    let meta = ObjectMeta {
        name: Some(name),
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

fn exhausted(index: &mut Index, pool: &str, message: &str) {
    index.usage_of(pool).exhausted = true;
    if let Some((name, pool)) = index.pools.get_key_value(pool) {
        let note = format!("{message}: append a subnet to spec.subnets, or delete pods that use it");
        let (name, uid, reason) = (name.clone(), pool.uid.clone(), Reason::OutOfBlocks);
        index.notices.push(Notice { about: About::Pool, name, uid, reason, note });
    }
}

/// How many indexes are tried that clash with other blocks. Only pools that share addresses have any.
const CLASHES: u32 = 1 << 16;

/// Name, index and networks of the block for a request: those it was assigned before, else the next free
/// ones behind the last given. An index whose addresses are in some other block (of a pool that overlaps, or of
/// this one before its subnets were changed) is passed over; the error is the last of those.
fn assign(
    index: &mut Index,
    pool: &str,
    request: &Uid,
) -> Result<(String, u64, BlockNetworks), Option<IpNet>> {
    if let Some(known) = index.assigned.get(request) {
        let layout = index.pools.get(pool).and_then(|p| p.layout.as_ref().ok());
        let same = layout.and_then(|l| l.block(known.index)) == Some(known.networks);
        if *known.pool == *pool && same {
            return writing(index, request).ok_or(None);
        }
        // The pool is another than when it was chosen.
        index.take_back(request);
    }
    let (name, layout) = index
        .pools
        .get_key_value(pool)
        .and_then(|(name, p)| Some((name.clone(), p.layout.as_ref().ok()?)))
        .ok_or(None)?;
    let limit = layout.blocks();
    let (mut clash, mut clashes, mut found) = (None, 0, None);
    let none = super::usage::Usage::default();
    for position in index.usage.get(pool).unwrap_or(&none).free(limit) {
        let Some(networks) = layout.block(position) else { break };
        match networks.iter().find_map(|n| index.networks.overlapping(&n)) {
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
    networks.iter().for_each(|n| index.networks.insert(n));
    index.usage_of(pool).give(position, request);
    let assigned = Assigned { pool: name, index: position, networks, stage: Stage::Chosen, given_up: false };
    index.assigned.insert(request.clone(), assigned);
    writing(index, request).ok_or(None)
}

/// From here on the block may come to exist.
fn writing(index: &mut Index, request: &Uid) -> Option<(String, u64, BlockNetworks)> {
    let listed = index.listed_blocks;
    let assigned = index.assigned.get_mut(request)?;
    assigned.stage = Stage::Writing(listed);
    Some((assigned.block_name(), assigned.index, assigned.networks))
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
