//! Everything the controller knows, in plain memory. Watch events go in through `apply` and
//! `delete`, decisions come out of [`Index::decide`]; nothing here waits for anything.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use coil_api::{
    crd::{AddressBlock, AddressPool, BlockRequest},
    names::{LABEL_NODE, LABEL_POOL, LABEL_REQUEST},
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    layout::Layout,
    networks::Networks,
    work::{Key, RequestRef, Work},
};

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) deleting: bool,
    pub(super) finalizers: Vec<String>,
    pub(super) layout: Result<Layout, String>,
}

/// Who has an index of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// The AddressBlock exists.
    Block,
    /// It is being created for the request with this UID.
    Request(String),
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) holder: Holder,
    pub(super) networks: Vec<IpNet>,
}

/// The indexes of a pool that are taken.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) slots: BTreeMap<u64, Slot>,
    /// Where the search for a free one starts: behind the last given, so that a block that was
    /// just returned is given last.
    pub(super) next: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) uid: String,
    pub(super) pool: String,
    pub(super) index: u64,
    pub(super) node: String,
    pub(super) request: String,
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) reference: RequestRef,
    pub(super) open: bool,
    /// Node and pool; none when the object cannot be read.
    pub(super) spec: Result<(String, String), String>,
}

/// What the API server has, as far as this controller cares.
#[derive(Debug, Default)]
pub struct Index {
    pub(super) pools: BTreeMap<String, Pool>,
    pub(super) usage: BTreeMap<String, Usage>,
    pub(super) blocks: BTreeMap<String, Block>,
    /// Request UID → block.
    pub(super) answers: HashMap<String, String>,
    pub(super) requests: HashMap<String, Request>,
    /// Request UID → the index that was chosen for it.
    pub(super) assigned: HashMap<String, (String, u64)>,
    pub(super) nodes: BTreeSet<String>,
    pub(super) networks: Networks,
}

fn label(meta: &ObjectMeta, name: &str) -> String {
    meta.labels.as_ref().and_then(|l| l.get(name)).cloned().unwrap_or_default()
}

fn name(meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

fn uid(meta: &ObjectMeta) -> String {
    meta.uid.clone().unwrap_or_default()
}

/// `<pool>-<index>` taken apart.
fn parse_block_name(name: &str) -> Option<(String, u64)> {
    let (pool, index) = name.rsplit_once('-')?;
    Some((pool.to_owned(), index.parse().ok()?))
}

impl Index {
    /// A pool appeared or changed; `spec` is the error when it could not be read.
    pub fn apply_pool(&mut self, meta: &ObjectMeta, pool: Result<&AddressPool, String>) -> Vec<Key> {
        let layout = pool.and_then(|p| Layout::parse(&p.spec).map_err(|e| e.to_string()));
        let entry = Pool {
            uid: uid(meta),
            version: meta.resource_version.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            layout,
        };
        let name = name(meta);
        let mut keys = vec![Key::Pool(name.clone())];
        keys.extend(self.open_requests(&name));
        self.pools.insert(name, entry);
        keys
    }

    /// A pool is gone.
    pub fn delete_pool(&mut self, name: &str) -> Vec<Key> {
        self.pools.remove(name);
        self.open_requests(name)
    }

    fn open_requests(&self, pool: &str) -> Vec<Key> {
        let of_pool = |r: &&Request| r.open && r.spec.as_ref().is_ok_and(|(_, p)| p == pool);
        self.requests.values().filter(of_pool).map(|r| Key::Request(r.reference.name.clone())).collect()
    }

    /// A block appeared or changed. One that cannot be read still takes its name.
    pub fn apply_block(&mut self, meta: &ObjectMeta, block: Option<&AddressBlock>) -> Vec<Key> {
        let block_name = name(meta);
        let (mut pool, mut index) = parse_block_name(&block_name).unwrap_or_default();
        if let Some(labelled) = Some(label(meta, LABEL_POOL)).filter(|p| !p.is_empty()) {
            // Its name is what keeps another block from being created.
            if labelled != pool {
                index = block.and_then(|b| u64::try_from(b.block.index).ok()).unwrap_or(index);
            }
            pool = labelled;
        }
        let networks: Vec<IpNet> = block
            .into_iter()
            .flat_map(|b| [b.block.ipv4.as_ref(), b.block.ipv6.as_ref()])
            .flatten()
            .filter_map(|n| n.parse::<IpNet>().ok())
            .map(|n| n.trunc())
            .collect();
        let entry = Block {
            uid: uid(meta),
            node: label(meta, LABEL_NODE),
            request: label(meta, LABEL_REQUEST),
            pool: pool.clone(),
            index,
        };
        if !entry.request.is_empty() {
            self.assigned.remove(&entry.request);
            self.answers.insert(entry.request.clone(), block_name.clone());
        }
        self.take(&pool, index, Slot { holder: Holder::Block, networks });
        let usage = self.usage.entry(pool).or_default();
        if self.blocks.insert(block_name, entry).is_none() {
            usage.next = usage.next.max(index + 1);
        }
        Vec::new()
    }

    pub(super) fn take(&mut self, pool: &str, index: u64, slot: Slot) {
        slot.networks.iter().for_each(|n| self.networks.insert(*n));
        let usage = self.usage.entry(pool.to_owned()).or_default();
        if let Some(old) = usage.slots.insert(index, slot) {
            old.networks.iter().for_each(|n| self.networks.remove(n));
        }
    }

    pub(super) fn release(&mut self, pool: &str, index: u64) {
        let Some(usage) = self.usage.get_mut(pool) else { return };
        if let Some(old) = usage.slots.remove(&index) {
            old.networks.iter().for_each(|n| self.networks.remove(n));
        }
    }

    /// A block is gone; its addresses may be given again. Its pool may be waiting for that.
    pub fn delete_block(&mut self, name: &str, uid: &str) -> Vec<Key> {
        if self.blocks.get(name).is_none_or(|b| b.uid != uid) {
            return Vec::new();
        }
        let Some(block) = self.blocks.remove(name) else { return Vec::new() };
        self.answers.remove(&block.request);
        self.release(&block.pool, block.index);
        vec![Key::Pool(block.pool)]
    }

    /// A request appeared or changed.
    pub fn apply_request(&mut self, meta: &ObjectMeta, request: Result<&BlockRequest, String>) -> Vec<Key> {
        let name = name(meta);
        let answered =
            request.as_ref().is_ok_and(|r| r.status.as_ref().is_some_and(|s| !s.conditions.is_empty()));
        let entry = Request {
            reference: RequestRef {
                name: name.clone(),
                uid: uid(meta),
                version: meta.resource_version.clone().unwrap_or_default(),
            },
            open: !answered && meta.deletion_timestamp.is_none(),
            spec: request.map(|r| (r.spec.node_name.clone(), r.spec.pool_name.clone())),
        };
        if let Some(old) = self.requests.insert(name.clone(), entry)
            && Some(&old.reference.uid) != meta.uid.as_ref()
        {
            self.forget(&old.reference.uid);
        }
        vec![Key::Request(name)]
    }

    /// A request is gone.
    pub fn delete_request(&mut self, name: &str, uid: &str) {
        if self.requests.get(name).is_some_and(|r| r.reference.uid == uid) {
            self.requests.remove(name);
            self.forget(uid);
        }
    }

    /// Nobody asks for the index any more. Should its block be created nevertheless, then the
    /// API server refuses a second one of that name.
    pub fn forget(&mut self, request: &str) {
        if let Some((pool, index)) = self.assigned.remove(request) {
            let ours = |s: &Slot| s.holder == Holder::Request(request.to_owned());
            if self.usage.get(&pool).and_then(|u| u.slots.get(&index)).is_some_and(ours) {
                self.release(&pool, index);
            }
        }
    }

    /// A node is there.
    pub fn apply_node(&mut self, name: &str) {
        self.nodes.insert(name.to_owned());
    }

    /// A node is gone. Its blocks are collected at the next round.
    pub fn delete_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// After a complete list of pools: what else was known is gone.
    pub fn retain_pools(&mut self, names: &HashSet<String>) -> Vec<Key> {
        let gone: Vec<String> = self.pools.keys().filter(|n| !names.contains(*n)).cloned().collect();
        gone.iter().flat_map(|n| self.delete_pool(n)).collect()
    }

    /// After a complete list of blocks, by UID.
    pub fn retain_blocks(&mut self, uids: &HashSet<String>) -> Vec<Key> {
        let gone: Vec<(String, String)> = self
            .blocks
            .iter()
            .filter(|(_, b)| !uids.contains(&b.uid))
            .map(|(n, b)| (n.clone(), b.uid.clone()))
            .collect();
        gone.iter().flat_map(|(n, uid)| self.delete_block(n, uid)).collect()
    }

    /// After a complete list of requests, by UID.
    pub fn retain_requests(&mut self, uids: &HashSet<String>) {
        let gone: Vec<RequestRef> = self
            .requests
            .values()
            .filter(|r| !uids.contains(&r.reference.uid))
            .map(|r| r.reference.clone())
            .collect();
        gone.iter().for_each(|r| self.delete_request(&r.name, &r.uid));
    }

    /// After a complete list of nodes.
    pub fn retain_nodes(&mut self, names: &HashSet<String>) {
        self.nodes.retain(|n| names.contains(n));
    }

    /// Blocks whose node is not there.
    #[must_use]
    pub fn orphans(&self) -> Vec<Key> {
        let orphan = |b: &Block| !self.nodes.contains(&b.node);
        self.blocks.iter().filter(|(_, b)| orphan(b)).map(|(n, _)| Key::Block(n.clone())).collect()
    }

    /// Pool → (blocks it has room for, blocks given). None of room when the pool is malformed.
    pub fn counts(&self) -> impl Iterator<Item = (&str, Option<u64>, usize)> {
        self.pools.iter().map(|(name, pool)| {
            let given = self.usage.get(name).map_or(0, |u| u.slots.len());
            (name.as_str(), pool.layout.as_ref().ok().map(Layout::blocks), given)
        })
    }

    /// What is to be done about an object now, if anything.
    pub fn decide(&mut self, key: &Key) -> Option<Work> {
        super::decide::decide(self, key)
    }
}
