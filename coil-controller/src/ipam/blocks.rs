//! The index's AddressBlocks.

use std::sync::Arc;

use coil_api::{
    crd::AddressBlock,
    names::{LABEL_NODE, LABEL_POOL, LABEL_REQUEST},
};
use ipnet::{Ipv4Net, Ipv6Net};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    index::{Block, Index, Kind, name, parse_block_name, uid},
    layout::BlockNetworks,
    notice::{About, Notice, Reason},
    uid::Uid,
    work::Key,
};

impl Index {
    /// A block appeared or changed. One that cannot be read still takes its name.
    pub fn apply_block(&mut self, meta: &ObjectMeta, block: Result<&AddressBlock, String>) -> Vec<Key> {
        let block_name: Arc<str> = name(meta).into();
        let label = |key: &str| meta.labels.as_ref().and_then(|l| l.get(key)).map_or("", String::as_str);
        let (networks, complaint) = networks(block.as_ref().map(|b| *b).map_err(Clone::clone));
        let (mut pool, mut index) = parse_block_name(&block_name).unwrap_or_default();
        let labelled = label(LABEL_POOL);
        if !labelled.is_empty() {
            // Its name is what keeps another block from being created.
            if labelled != pool {
                index = block.ok().and_then(|b| u64::try_from(b.block.index).ok()).unwrap_or(index);
            }
            pool = labelled;
        }
        let node = label(LABEL_NODE);
        let entry = Block {
            uid: Uid::from(uid(meta)),
            request: Uid::from(label(LABEL_REQUEST)),
            pool: self.shared_pool(pool),
            node: self.nodes.get_key_value(node).map_or_else(|| node.into(), |(name, _)| name.clone()),
            index,
            networks,
            labelled: !labelled.is_empty(),
            malformed: complaint.is_some(),
            seen: self.round(Kind::Blocks),
        };
        let known = self.blocks.get(&block_name).is_some_and(|old| old.malformed && old.uid == entry.uid);
        if let Some(note) = complaint.filter(|_| !known) {
            let (name, uid) = (block_name.clone(), uid(meta).to_owned());
            self.notices.push(Notice { about: About::Block, name, uid, reason: Reason::Malformed, note });
        }
        self.put_block(block_name, entry, meta)
    }

    fn put_block(&mut self, name: Arc<str>, entry: Block, meta: &ObjectMeta) -> Vec<Key> {
        if let Some(old) = self.blocks.get_mut(&name)
            && old.takes_the_same_as(&entry)
        {
            *old = entry;
            return Vec::new();
        }
        // Another one of the same name, or one that was changed by hand.
        let mut keys = self.remove_block(&name);
        entry.networks.iter().for_each(|n| self.networks.insert(n));
        let usage = self.usage_of(&entry.pool);
        usage.add_block(entry.index);
        usage.labelled += u64::from(entry.labelled);
        usage.saw(entry.index, meta.creation_timestamp.as_ref().map(|t| t.0));
        self.changed_pools.insert(entry.pool.clone());
        if !entry.request.is_empty() {
            keys.extend(self.take_back(&entry.request));
            self.answers.insert(entry.request.clone(), name.clone());
        }
        self.blocks.insert(name, entry);
        keys
    }

    fn shared_pool(&self, pool: &str) -> Arc<str> {
        let known = self.pools.get_key_value(pool).map(|(name, _)| name);
        known
            .or_else(|| self.usage.get_key_value(pool).map(|(name, _)| name))
            .cloned()
            .unwrap_or_else(|| pool.into())
    }

    /// A block is gone; its addresses may be given again. Its pool may be waiting for that.
    pub fn delete_block(&mut self, name: &str, uid: &str) -> Vec<Key> {
        let uid = Uid::from(uid);
        if self.blocks.get(name).is_some_and(|b| b.uid == uid) { self.remove_block(name) } else { Vec::new() }
    }

    pub(super) fn remove_block(&mut self, name: &str) -> Vec<Key> {
        let Some(block) = self.blocks.remove(name) else { return Vec::new() };
        if self.answers.get(&block.request).is_some_and(|answer| **answer == *name) {
            self.answers.remove(&block.request);
        }
        block.networks.iter().for_each(|n| self.networks.remove(&n));
        let usage = self.usage_of(&block.pool);
        usage.remove_block(block.index);
        usage.labelled = usage.labelled.saturating_sub(u64::from(block.labelled));
        if usage.is_empty() && !self.pools.contains_key(&block.pool) {
            self.usage.remove(&block.pool);
        }
        self.changed_pools.insert(block.pool.clone());
        self.has_room(&block.pool);
        vec![Key::Pool(block.pool.to_string())]
    }

    /// Blocks whose node is not there.
    #[must_use]
    pub fn orphans(&self) -> Vec<Key> {
        let orphan = |b: &Block| !self.nodes.contains_key(&b.node);
        self.blocks.iter().filter(|(_, b)| orphan(b)).map(|(n, _)| Key::Block(n.to_string())).collect()
    }
}

impl Block {
    fn takes_the_same_as(&self, other: &Self) -> bool {
        (&self.uid, &self.request, &self.pool, self.index, self.networks, self.labelled)
            == (&other.uid, &other.request, &other.pool, other.index, other.networks, other.labelled)
    }
}

/// A block's networks as far as they can be read, and what is wrong with it.
fn networks(block: Result<&AddressBlock, String>) -> (BlockNetworks, Option<String>) {
    let fields = match block {
        Ok(block) => &block.block,
        Err(e) => return (BlockNetworks::default(), Some(format!("it cannot be read: {e}"))),
    };
    let ipv4 = fields.ipv4.as_ref().map(|text| text.parse::<Ipv4Net>().map_err(|_| ("ipv4", text)));
    let ipv6 = fields.ipv6.as_ref().map(|text| text.parse::<Ipv6Net>().map_err(|_| ("ipv6", text)));
    let bad = ipv4.and_then(Result::err).or(ipv6.and_then(Result::err));
    let networks = BlockNetworks {
        ipv4: ipv4.and_then(Result::ok).map(|n| n.trunc()),
        ipv6: ipv6.and_then(Result::ok).map(|n| n.trunc()),
    };
    let complaint = match bad {
        Some((field, text)) => {
            Some(format!("{field} is {text:?}, which is no {field} subnet: no node can use it; delete it"))
        }
        None if networks == BlockNetworks::default() => {
            Some("it has neither ipv4 nor ipv6: no node can use it; delete it".to_owned())
        }
        None if fields.index < 0 => {
            Some(format!("index is {}: it must not be negative; delete it", fields.index))
        }
        None => None,
    };
    (networks, complaint)
}
