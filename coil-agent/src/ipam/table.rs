//! The node's blocks and who has which address. Pure: watch events and API answers come in
//! as method calls, the caller does the I/O.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
};

use coil_api::{
    crd::AddressBlock,
    names::{FINALIZER, LABEL_POOL, LABEL_RESERVED},
};
use ipnet::IpNet;

use super::{
    Allocation, AttachmentId,
    slots::{Networks, NetworksError, Slots},
};

/// How many UIDs of departed blocks are remembered. A late watch event concerns one of the last few.
const REMEMBERED: usize = 1024;

/// What the table keeps of an AddressBlock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockInfo {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) pool: String,
    pub(super) index: i32,
    pub(super) networks: Networks,
    pub(super) reserved: bool,
    pub(super) deleting: bool,
    pub(super) finalizer: bool,
}

impl TryFrom<&AddressBlock> for BlockInfo {
    type Error = NetworksError;

    fn try_from(block: &AddressBlock) -> Result<Self, NetworksError> {
        let meta = &block.metadata;
        let label = |name: &str| meta.labels.as_ref().and_then(|l| l.get(name)).cloned();
        Ok(Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            pool: label(LABEL_POOL).unwrap_or_default(),
            index: block.block.index,
            networks: Networks::parse(&block.block)?,
            reserved: label(LABEL_RESERVED).is_some_and(|v| v == "true"),
            deleting: meta.deletion_timestamp.is_some(),
            finalizer: meta.finalizers.iter().flatten().any(|f| f == FINALIZER),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In hand.
    Active,
    /// Being returned; may still turn out to stay.
    Returning,
    /// The step that lets others have it was tried, and its outcome is unknown.
    Doubtful,
}

#[derive(Debug)]
struct Block {
    info: BlockInfo,
    slots: Slots,
    state: State,
    exported: bool,
    /// The decisive step may be under way, whatever later attempts say of theirs.
    doubted: bool,
}

impl Block {
    fn gives(&self, pool: &str) -> bool {
        self.info.pool == pool && self.state == State::Active && !self.info.reserved && !self.info.deleting
    }
}

/// A block that was chosen for return. Nobody allocates from it until the outcome is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Departure {
    pub(super) name: String,
    pub(super) uid: String,
    /// Whether our finalizer still holds it: then deleting it takes nothing away yet.
    pub(super) finalizer: bool,
    pub(super) networks: Networks,
    pub(super) pool: String,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    blocks: BTreeMap<String, Block>,
    owners: HashMap<AttachmentId, Allocation>,
    /// Pool → allocations that wait for an address of it.
    waiting: HashMap<String, usize>,
    /// Pools that are being deleted: their blocks give no addresses any more, and so come back.
    draining: BTreeSet<String>,
    gone: VecDeque<String>,
    synced: bool,
}

fn addresses(a: &Allocation) -> impl Iterator<Item = IpAddr> + use<> {
    a.ipv4.map(IpAddr::V4).into_iter().chain(a.ipv6.map(IpAddr::V6))
}

impl Table {
    /// A block appeared or changed. Addresses that pods already have in it are taken.
    pub(super) fn upsert(&mut self, info: BlockInfo) {
        if self.gone.contains(&info.uid) {
            return;
        }
        let known = self.blocks.get_mut(&info.name).filter(|known| known.info.uid == info.uid);
        // What was said of this very block before holds, also when somebody changed its addresses by hand.
        let (state, exported, doubted) =
            known.as_ref().map_or((State::Active, true, false), |k| (k.state, k.exported, k.doubted));
        if let Some(known) = known.filter(|known| known.info.networks == info.networks) {
            known.info = info;
            return;
        }
        let mut slots = Slots::new(info.networks);
        for allocation in self.owners.values() {
            slots.hold(addresses(allocation));
        }
        // Half returned by an earlier life of this agent, whose last step may still be on its way: an attempt of
        // this life that fails takes nothing of that back.
        let half_returned = info.deleting && slots.is_empty();
        let (exported, doubted) = (exported && !half_returned, doubted || half_returned);
        let block = Block { slots, state, exported, doubted, info };
        self.blocks.insert(block.info.name.clone(), block);
    }

    /// A block is no longer in the API. Whether pods still have addresses of it.
    pub(super) fn remove(&mut self, name: &str, uid: &str) -> bool {
        self.gone.push_back(uid.to_owned());
        if self.gone.len() > REMEMBERED {
            self.gone.pop_front();
        }
        if self.blocks.get(name).is_some_and(|b| b.info.uid == uid) {
            return self.blocks.remove(name).is_some_and(|b| !b.slots.is_empty());
        }
        false
    }

    /// A complete list was read: everything else is gone. Names of lost blocks with pods in them.
    pub(super) fn retain(&mut self, uids: &HashSet<String>) -> Vec<String> {
        let absent: Vec<(String, String)> = self
            .blocks
            .values()
            .filter(|b| !uids.contains(&b.info.uid))
            .map(|b| (b.info.name.clone(), b.info.uid.clone()))
            .collect();
        self.synced = true;
        absent
            .into_iter()
            .filter_map(|(name, uid)| {
                let block = self.blocks.remove(&name)?;
                debug_assert_eq!(block.info.uid, uid);
                (!block.slots.is_empty()).then_some(name)
            })
            .collect()
    }

    /// Whether a complete list of blocks was read once.
    pub(super) fn synced(&self) -> bool {
        self.synced
    }

    /// What the node announces: all its blocks but those on their way out.
    pub(super) fn networks(&self) -> BTreeSet<IpNet> {
        self.blocks.values().filter(|b| b.exported).flat_map(|b| b.info.networks.iter()).collect()
    }

    pub(super) fn get(&self, owner: &AttachmentId) -> Option<&Allocation> {
        self.owners.get(owner)
    }

    /// Whether a block of this pool is on its way back.
    pub(super) fn returning(&self, pool: &str) -> bool {
        self.blocks.values().any(|b| b.info.pool == pool && b.state == State::Returning)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.blocks.contains_key(name)
    }

    /// An attachment found on the node when the agent started.
    /// False when its addresses are in no block that is known now.
    pub(super) fn recover(&mut self, allocation: Allocation) -> bool {
        if self.owners.contains_key(&allocation.owner) {
            return true;
        }
        let mut found = false;
        for block in self.blocks.values_mut() {
            if addresses(&allocation).any(|a| block.slots.contains(a)) {
                found = true;
                // The list was faster: the block looked empty, and may have been taken out of the table.
                block.exported |= block.state == State::Active;
            }
            block.slots.hold(addresses(&allocation));
        }
        self.owners.insert(allocation.owner.clone(), allocation);
        found
    }

    /// The owner's addresses: those it has, or the next free ones of the pool's lowest block in hand.
    pub(super) fn allocate(&mut self, pool: &str, owner: &AttachmentId) -> Option<Allocation> {
        if let Some(known) = self.owners.get(owner) {
            return Some(known.clone());
        }
        if self.draining.contains(pool) {
            return None;
        }
        let mut candidates: Vec<&mut Block> = self.blocks.values_mut().filter(|b| b.gives(pool)).collect();
        candidates.sort_by_key(|b| b.info.index);
        let (ipv4, ipv6) = candidates.into_iter().find_map(|b| b.slots.take())?;
        let allocation = Allocation { pool: pool.to_owned(), owner: owner.clone(), ipv4, ipv6 };
        self.owners.insert(owner.clone(), allocation.clone());
        Some(allocation)
    }

    /// Gives an owner's addresses back, and chooses the blocks that this left empty for return.
    pub(super) fn free(&mut self, owner: &AttachmentId) -> Option<(Allocation, Vec<Departure>)> {
        let allocation = self.owners.remove(owner)?;
        let touched: Vec<String> = self
            .blocks
            .iter_mut()
            .filter_map(|(name, b)| b.slots.release(addresses(&allocation)).then(|| name.clone()))
            .collect();
        let empty = touched.iter().filter_map(|name| self.depart(name)).collect();
        Some((allocation, empty))
    }

    /// Chooses all blocks without pods for return.
    pub(super) fn depart_idle(&mut self) -> Vec<Departure> {
        let names: Vec<String> = self.blocks.keys().cloned().collect();
        names.iter().filter_map(|name| self.depart(name)).collect()
    }

    /// Chooses a block for return, when it has no pods. A pool that somebody waits on keeps its blocks: the waiter takes the
    /// address.
    pub(super) fn depart(&mut self, name: &str) -> Option<Departure> {
        let block = self.blocks.get_mut(name)?;
        let pool = &block.info.pool;
        let wanted = block.gives(pool) && self.waiting.contains_key(pool) && !self.draining.contains(pool);
        if block.state == State::Returning || block.info.reserved || !block.slots.is_empty() || wanted {
            return None;
        }
        block.state = State::Returning;
        Some(Departure {
            name: block.info.name.clone(),
            uid: block.info.uid.clone(),
            finalizer: block.info.finalizer,
            networks: block.info.networks,
            pool: block.info.pool.clone(),
        })
    }

    fn departing(&mut self, d: &Departure) -> Option<&mut Block> {
        self.blocks.get_mut(&d.name).filter(|b| b.info.uid == d.uid)
    }

    /// Nothing was taken away: the block is in hand as before, unless an earlier attempt may still take it.
    pub(super) fn stays(&mut self, d: &Departure) {
        if let Some(block) = self.departing(d) {
            if block.doubted {
                block.state = State::Doubtful;
                return;
            }
            block.state = State::Active;
            block.exported = true;
        }
    }

    /// From here on another node may get the block: stop announcing it.
    pub(super) fn leaves(&mut self, d: &Departure) {
        if let Some(block) = self.departing(d) {
            block.exported = false;
        }
    }

    /// The decisive step had no answer. The block is not used until it is tried again.
    pub(super) fn doubtful(&mut self, d: &Departure) {
        if let Some(block) = self.departing(d) {
            block.state = State::Doubtful;
            block.doubted = true;
        }
    }

    pub(super) fn drain(&mut self, pools: BTreeSet<String>) {
        self.draining = pools;
    }

    pub(super) fn wait(&mut self, pool: &str) {
        *self.waiting.entry(pool.to_owned()).or_default() += 1;
    }

    pub(super) fn wait_ends(&mut self, pool: &str) {
        if let Some(n) = self.waiting.get_mut(pool) {
            *n -= 1;
            if *n == 0 {
                self.waiting.remove(pool);
            }
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
