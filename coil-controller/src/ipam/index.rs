//! Everything the controller knows, in plain memory. Watch events go in through `apply` and
//! `delete`, decisions come out of [`Index::decide`]; nothing here waits for anything.
//!
//! Blocks come from the watch alone. Of a block that was just made, only its index is held (for the
//! request, in `assigned`) until the watch shows it: an answer to a write says what was, and the block may
//! be gone again when it comes. Where a new list of blocks may have passed over all of its life, no event will
//! tell of it: then the API server is asked.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use coil_api::{
    crd::{AddressPool, BlockRequest, CONDITION_COMPLETE},
    names::block_name,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    layout::{BlockNetworks, Layout},
    networks::Networks,
    notice::{About, Notice, Reason},
    uid::Uid,
    usage::Usage,
    work::{Key, RequestRef, Work},
};

/// The kinds that the index follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// AddressPools.
    Pools,
    /// AddressBlocks.
    Blocks,
    /// BlockRequests.
    Requests,
    /// Nodes.
    Nodes,
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) deleting: bool,
    pub(super) finalizers: Vec<String>,
    pub(super) layout: Result<Layout, String>,
    seen: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) uid: Uid,
    pub(super) request: Uid,
    pub(super) pool: Arc<str>,
    pub(super) node: Arc<str>,
    pub(super) index: u64,
    pub(super) networks: BlockNetworks,
    /// It has the pool's label; its name alone also keeps the pool's index.
    pub(super) labelled: bool,
    pub(super) malformed: bool,
    pub(super) seen: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) reference: RequestRef,
    pub(super) open: bool,
    /// Node and pool; none when the object cannot be read.
    pub(super) spec: Result<(String, String), String>,
    seen: u32,
}

/// How far the block for a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing is under way.
    Chosen,
    /// It is being created, since the list of this round of the block watch was complete.
    Writing(u32),
    /// It was created, after the list of that round was complete. A later list that does not have it was taken
    /// before it was made, or when it was gone.
    Made(u32),
    /// It was created and is gone. Its request is not known to be closed: until then no other is made for that.
    Gone,
}

/// The index that was chosen for a request whose block the watch has not shown.
#[derive(Debug)]
pub(super) struct Assigned {
    pub(super) pool: Arc<str>,
    pub(super) index: u64,
    pub(super) networks: BlockNetworks,
    pub(super) stage: Stage,
    /// Nobody waits for it any more.
    pub(super) given_up: bool,
}

/// What the API server has, as far as this controller cares.
#[derive(Debug, Default)]
pub struct Index {
    pub(super) pools: BTreeMap<Arc<str>, Pool>,
    pub(super) usage: BTreeMap<Arc<str>, Usage>,
    pub(super) blocks: BTreeMap<Arc<str>, Block>,
    /// Request → name of its block.
    pub(super) answers: HashMap<Uid, Arc<str>>,
    pub(super) requests: BTreeMap<String, Request>,
    pub(super) assigned: BTreeMap<Uid, Assigned>,
    pub(super) nodes: BTreeMap<Arc<str>, u32>,
    pub(super) networks: Networks,
    /// How many complete lists of each kind were begun: what an ended one did not show is gone.
    pub(super) rounds: [u32; 4],
    /// The round of the last complete list of blocks.
    pub(super) listed_blocks: u32,
    pub(super) notices: Vec<Notice>,
    pub(super) changed_pools: BTreeSet<Arc<str>>,
}

pub(super) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

pub(super) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

impl Index {
    pub(super) fn round(&self, kind: Kind) -> u32 {
        self.rounds[kind as usize]
    }

    /// A complete list of a kind begins.
    pub fn begin(&mut self, kind: Kind) {
        self.rounds[kind as usize] += 1;
    }

    /// The list is complete: what it did not show is gone.
    pub fn end(&mut self, kind: Kind) -> Vec<Key> {
        let round = self.round(kind);
        match kind {
            Kind::Pools => {
                let old = self.pools.iter().filter(|(_, p)| p.seen != round).map(|(n, _)| n.clone());
                old.collect::<Vec<_>>().iter().flat_map(|name| self.delete_pool(name)).collect()
            }
            Kind::Blocks => {
                let old = self.blocks.iter().filter(|(_, b)| b.seen != round).map(|(n, _)| n.clone());
                let gone: Vec<_> = old.collect();
                let mut keys: Vec<Key> = gone.iter().flat_map(|name| self.remove_block(name)).collect();
                self.listed_blocks = round;
                let doubtful = self.assigned.values().filter(|a| self.in_doubt(a));
                keys.extend(doubtful.map(|a| Key::Block(a.block_name())));
                keys
            }
            Kind::Requests => {
                let old = self.requests.values().filter(|r| r.seen != round).map(|r| r.reference.clone());
                old.collect::<Vec<_>>().iter().flat_map(|r| self.delete_request(&r.name, &r.uid)).collect()
            }
            Kind::Nodes => {
                self.nodes.retain(|_, seen| *seen == round);
                Vec::new()
            }
        }
    }

    /// A pool appeared or changed; the error says why it could not be read.
    pub fn apply_pool(&mut self, meta: &ObjectMeta, pool: Result<&AddressPool, String>) -> Vec<Key> {
        let layout = pool.and_then(|p| Layout::parse(&p.spec).map_err(|e| e.to_string()));
        let name: Arc<str> = name(meta).into();
        let same = self.pools.get(&name).is_some_and(|p| p.uid == uid(meta) && p.layout == layout);
        if !same {
            self.judge_pool(&name, uid(meta), &layout);
        }
        let entry = Pool {
            uid: uid(meta).to_owned(),
            version: meta.resource_version.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            layout,
            seen: self.round(Kind::Pools),
        };
        self.pools.insert(name.clone(), entry);
        self.changed_pools.insert(name.clone());
        self.has_room(&name);
        let mut keys = vec![Key::Pool(name.to_string())];
        keys.extend(self.open_requests(&name));
        keys
    }

    fn judge_pool(&mut self, name: &Arc<str>, uid: &str, layout: &Result<Layout, String>) {
        let mut tell = |reason, note| {
            let notice = Notice { about: About::Pool, name: name.clone(), uid: uid.to_owned(), reason, note };
            self.notices.push(notice);
        };
        match layout {
            Err(e) => tell(Reason::Malformed, format!("it gives no blocks: {e}")),
            Ok(layout) => {
                for (other, pool) in self.pools.iter().filter(|(n, _)| *n != name) {
                    if pool.layout.as_ref().is_ok_and(|l| l.overlaps(layout)) {
                        let note = format!(
                            "it shares addresses with AddressPool {other}: each gives only blocks that the \
                             other has not given; delete one of them"
                        );
                        tell(Reason::Overlap, note);
                    }
                }
            }
        }
    }

    /// A pool is gone.
    pub fn delete_pool(&mut self, name: &str) -> Vec<Key> {
        if let Some((name, _)) = self.pools.remove_entry(name) {
            if self.usage.get(&name).is_some_and(Usage::is_empty) {
                self.usage.remove(&name);
            }
            self.changed_pools.insert(name);
        }
        self.open_requests(name)
    }

    fn open_requests(&self, pool: &str) -> Vec<Key> {
        let of_pool = |r: &&Request| r.open && r.spec.as_ref().is_ok_and(|(_, p)| p == pool);
        self.requests.values().filter(of_pool).map(|r| Key::Request(r.reference.name.clone())).collect()
    }

    /// Says so when a pool that was exhausted is not any more.
    pub(super) fn has_room(&mut self, pool: &str) {
        let Some((name, usage)) = self.pools.get_key_value(pool).zip(self.usage.get_mut(pool)) else {
            return;
        };
        let ((name, pool), room) = (name, |l: &Layout| usage.taken() < l.blocks());
        if usage.exhausted && !pool.deleting && pool.layout.as_ref().is_ok_and(room) {
            usage.exhausted = false;
            let note = "it has free blocks again".to_owned();
            let (uid, reason) = (pool.uid.clone(), Reason::BlocksAvailable);
            self.notices.push(Notice { about: About::Pool, name: name.clone(), uid, reason, note });
        }
    }

    /// A request appeared or changed.
    pub fn apply_request(&mut self, meta: &ObjectMeta, request: Result<&BlockRequest, String>) -> Vec<Key> {
        let mut keys = Vec::new();
        let name = name(meta).to_owned();
        if self.requests.get(&name).is_some_and(|old| old.reference.uid != uid(meta)) {
            let old = self.requests.get(&name).map(|old| old.reference.uid.clone()).unwrap_or_default();
            keys.extend(self.delete_request(&name, &old));
        }
        let status = request.as_ref().ok().and_then(|r| r.status.as_ref());
        let answered = status.is_some_and(|s| !s.conditions.is_empty());
        if let (Ok(request), Some(status)) = (&request, status) {
            // The block may be gone by now; that it was the last one given is still known.
            let given = status.address_block_name.as_deref().and_then(parse_block_name);
            let complete = status.conditions.iter().find(|c| c.type_ == CONDITION_COMPLETE);
            let at = complete.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
            if let Some((pool, index)) = given.filter(|(pool, _)| *pool == request.spec.pool_name) {
                self.usage_of(pool).saw(index, at);
            }
        }
        let spec = request.and_then(|r| match (r.spec.node_name.as_str(), r.spec.pool_name.as_str()) {
            ("", _) => Err("spec.nodeName is empty: set it to the node's name".to_owned()),
            (_, "") => Err("spec.poolName is empty: set it to the name of an AddressPool".to_owned()),
            (node, pool) => Ok((node.to_owned(), pool.to_owned())),
        });
        let open = !answered && meta.deletion_timestamp.is_none();
        if let (true, Err(e)) = (open, &spec) {
            let (uid, reason) = (uid(meta).to_owned(), Reason::Malformed);
            let note = format!("it gets no block: {e}");
            self.notices.push(Notice {
                about: About::Request,
                name: name.as_str().into(),
                uid,
                reason,
                note,
            });
        }
        let reference = RequestRef {
            name: name.clone(),
            uid: uid(meta).to_owned(),
            version: meta.resource_version.clone().unwrap_or_default(),
        };
        let entry = Request { reference, open, spec, seen: self.round(Kind::Requests) };
        self.requests.insert(name.clone(), entry);
        if open {
            keys.push(Key::Request(name));
        } else {
            keys.extend(self.give_up(&Uid::from(uid(meta))));
        }
        keys
    }

    /// A request is gone.
    pub fn delete_request(&mut self, name: &str, uid: &str) -> Vec<Key> {
        if self.requests.get(name).is_some_and(|r| r.reference.uid == uid) {
            self.requests.remove(name);
            return self.give_up(&Uid::from(uid));
        }
        Vec::new()
    }

    /// Nobody asks for the index any more. While its block may exist unseen, the index stays taken.
    fn give_up(&mut self, request: &Uid) -> Vec<Key> {
        match self.assigned.get_mut(request) {
            Some(assigned) if matches!(assigned.stage, Stage::Writing(_) | Stage::Made(_)) => {
                assigned.given_up = true;
                Vec::new()
            }
            _ => self.take_back(request),
        }
    }

    /// The index that a request had is free, unless a block has it.
    pub(super) fn take_back(&mut self, request: &Uid) -> Vec<Key> {
        let Some(assigned) = self.assigned.remove(request) else { return Vec::new() };
        assigned.networks.iter().for_each(|n| self.networks.remove(&n));
        if let Some(usage) = self.usage.get_mut(&assigned.pool) {
            usage.take_back(assigned.index, request);
        }
        self.has_room(&assigned.pool);
        vec![Key::Pool(assigned.pool.to_string())]
    }

    /// The block for a request was created. The watch will show it, or has passed over it.
    pub fn made(&mut self, request: &str) -> Vec<Key> {
        let Some(assigned) = self.assigned.get_mut(&Uid::from(request)) else { return Vec::new() };
        if let Stage::Writing(since) = assigned.stage {
            assigned.stage = Stage::Made(since);
        }
        let name = assigned.block_name();
        let doubtful = self.assigned.get(&Uid::from(request)).is_some_and(|a| self.in_doubt(a));
        if doubtful { vec![Key::Block(name)] } else { Vec::new() }
    }

    /// Whether a block that was made, and that the watch has not shown, may be gone for good.
    pub(super) fn in_doubt(&self, assigned: &Assigned) -> bool {
        matches!(assigned.stage, Stage::Made(since) if since < self.listed_blocks)
    }

    /// The block that was made for a request is not there any more.
    pub fn gone(&mut self, request: &str) -> Vec<Key> {
        let request = Uid::from(request);
        // Since it was asked for, the watch may have shown it, and the request got another.
        if !self.assigned.get(&request).is_some_and(|a| self.in_doubt(a)) {
            return Vec::new();
        }
        match self.assigned.get_mut(&request) {
            Some(assigned) if !assigned.given_up => assigned.stage = Stage::Gone,
            _ => return self.take_back(&request),
        }
        Vec::new()
    }

    /// Creating the block for a request failed, or nobody knows: the name decides when it is tried again.
    pub fn not_made(&mut self, request: &str) -> Vec<Key> {
        let request = Uid::from(request);
        match self.assigned.get_mut(&request) {
            Some(assigned) if matches!(assigned.stage, Stage::Writing(_)) => {
                if assigned.given_up {
                    return self.take_back(&request);
                }
                assigned.stage = Stage::Chosen;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// A block of that name is there already, which the watch has not shown: another index, please.
    pub fn taken(&mut self, request: &str) -> Vec<Key> {
        let request = Uid::from(request);
        if let Some(assigned) = self.assigned.get(&request)
            && let Some(usage) = self.usage.get_mut(&assigned.pool)
        {
            usage.pass(assigned.index);
        }
        self.take_back(&request)
    }

    /// A node is there.
    pub fn apply_node(&mut self, name: &str) {
        let round = self.round(Kind::Nodes);
        match self.nodes.get_mut(name) {
            Some(seen) => *seen = round,
            None => drop(self.nodes.insert(name.into(), round)),
        }
    }

    /// A node is gone. Its blocks are collected at the next round.
    pub fn delete_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// The nodes were listed: those that are there are known, and those of `known` that are not there are gone.
    /// A node that came since is in neither, and stays. All of this is a hint: nothing is refused or collected
    /// for want of a node before that node was asked for.
    pub fn listed_nodes(&mut self, known: &[Arc<str>], listed: &HashSet<String>) {
        known.iter().filter(|name| !listed.contains(&***name)).for_each(|name| self.delete_node(name));
        listed.iter().for_each(|name| self.apply_node(name));
    }

    pub(super) fn usage_of(&mut self, pool: &str) -> &mut Usage {
        let name = match self.usage.get_key_value(pool).or(None).map(|(name, _)| name.clone()) {
            Some(name) => name,
            None => self.pools.get_key_value(pool).map_or_else(|| pool.into(), |(name, _)| name.clone()),
        };
        self.usage.entry(name).or_default()
    }

    /// Pools whose numbers may have changed since this was asked last. No block fits a malformed pool.
    pub fn changed_counts(&mut self) -> Vec<PoolCount> {
        let count = |name: &Arc<str>| {
            let pool = self.pools.get(name)?;
            let fit = pool.layout.as_ref().map_or(0, Layout::blocks);
            Some((fit, self.usage.get(name).map_or(0, |u| u.labelled)))
        };
        std::mem::take(&mut self.changed_pools).into_iter().map(|name| (name.clone(), count(&name))).collect()
    }

    /// What people should hear of since this was asked last.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// What is to be done about an object now, if anything.
    pub fn decide(&mut self, key: &Key) -> Option<Work> {
        super::decide::decide(self, key)
    }
}

/// A pool's name, with the blocks that fit and those given; none when the pool is gone.
pub type PoolCount = (Arc<str>, Option<(u64, u64)>);

/// `<pool>-<index>` taken apart.
pub(super) fn parse_block_name(name: &str) -> Option<(&str, u64)> {
    let (pool, index) = name.rsplit_once('-')?;
    Some((pool, index.parse().ok()?))
}

impl Assigned {
    /// Name of the block.
    pub(super) fn block_name(&self) -> String {
        block_name(&self.pool, u32::try_from(self.index).unwrap_or(u32::MAX))
    }
}
