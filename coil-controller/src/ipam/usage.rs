//! Which indexes of a pool are taken, and which comes next. Pure.

use std::{collections::BTreeMap, ops::Range};

use k8s_openapi::jiff::Timestamp;

use super::uid::Uid;

/// Who has an index.
#[derive(Debug, Default)]
struct Slot {
    /// AddressBlocks that say they have it; more than one only when they were made by hand.
    blocks: u32,
    /// The request that a block of this index is made for.
    request: Option<Uid>,
}

/// The indexes of a pool that are taken.
#[derive(Debug, Default)]
pub(super) struct Usage {
    slots: BTreeMap<u64, Slot>,
    /// Where the search for a free one starts: behind the last given, so that a block that was
    /// just returned is given last.
    next: u64,
    /// Until the first one is given here: when the latest known block was made.
    latest: Option<Timestamp>,
    given_here: bool,
    /// AddressBlocks with the pool's label.
    pub(super) labelled: u64,
    /// A request was refused for want of blocks.
    pub(super) exhausted: bool,
}

impl Usage {
    /// Whether nothing is taken or about to be.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn taken(&self) -> u64 {
        u64::try_from(self.slots.len()).unwrap_or(u64::MAX)
    }

    /// Somebody made a block of this index at this time. Another leader, or an earlier life: the
    /// search goes on behind the last that was made. API times are whole seconds, so of two in the
    /// same second the higher index counts as the later.
    pub(super) fn saw(&mut self, index: u64, at: Option<Timestamp>) {
        if !self.given_here && (at > self.latest || (at == self.latest && index >= self.next)) {
            self.latest = at;
            self.next = index.saturating_add(1);
        }
    }

    pub(super) fn add_block(&mut self, index: u64) {
        self.slots.entry(index).or_default().blocks += 1;
    }

    pub(super) fn remove_block(&mut self, index: u64) {
        if let Some(slot) = self.slots.get_mut(&index) {
            slot.blocks = slot.blocks.saturating_sub(1);
            self.drop_unused(index);
        }
    }

    /// Gives an index to a request.
    pub(super) fn give(&mut self, index: u64, request: &Uid) {
        self.slots.entry(index).or_default().request = Some(request.clone());
        self.pass(index);
    }

    /// The next search starts behind this index.
    pub(super) fn pass(&mut self, index: u64) {
        self.given_here = true;
        self.next = index.saturating_add(1);
    }

    pub(super) fn take_back(&mut self, index: u64, request: &Uid) {
        if let Some(slot) = self.slots.get_mut(&index)
            && slot.request.as_ref() == Some(request)
        {
            slot.request = None;
            self.drop_unused(index);
        }
    }

    fn drop_unused(&mut self, index: u64) {
        if self.slots.get(&index).is_some_and(|s| s.blocks == 0 && s.request.is_none()) {
            self.slots.remove(&index);
        }
    }

    /// The free indexes below a limit, in the order in which they are to be given.
    pub(super) fn free(&self, limit: u64) -> impl Iterator<Item = u64> {
        let start = if self.next < limit { self.next } else { 0 };
        self.gaps(start..limit).chain(self.gaps(0..start))
    }

    fn gaps(&self, range: Range<u64>) -> impl Iterator<Item = u64> + use<'_> {
        let mut taken = self.slots.range(range.clone()).map(|(index, _)| *index).peekable();
        range.filter(move |index| taken.next_if_eq(index).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(usage: &Usage) -> Option<u64> {
        usage.free(4).next()
    }

    #[test]
    fn an_index_is_free_when_nobody_has_it() {
        let (mut u, a, b) = (Usage::default(), Uid::from("a"), Uid::from("b"));
        u.give(0, &a);
        u.add_block(0);
        u.take_back(0, &b);
        u.take_back(0, &a);
        assert_eq!(u.free(4).collect::<Vec<_>>(), [1, 2, 3], "its block is there");
        u.add_block(0);
        u.remove_block(0);
        assert_eq!(u.taken(), 1, "another block says the same");
        u.remove_block(0);
        assert_eq!(u.free(4).collect::<Vec<_>>(), [1, 2, 3, 0]);
        assert!(u.is_empty());
        u.remove_block(0);
    }

    #[test]
    fn the_search_starts_behind_the_latest() {
        let at = |s: i64| Timestamp::from_second(s).ok();
        let mut u = Usage::default();
        u.saw(1, at(7));
        u.saw(3, at(5));
        assert_eq!(first(&u), Some(2), "made later than 3");
        u.saw(2, at(7));
        u.saw(0, at(7));
        assert_eq!(first(&u), Some(3));
        u.give(0, &Uid::from("a"));
        u.saw(2, at(9));
        assert_eq!(first(&u), Some(1), "our own memory is better");
    }
}
