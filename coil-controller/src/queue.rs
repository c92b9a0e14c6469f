//! Which object is looked at next. Pure; time is passed in.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// A queue in which each key stands once, is worked on once at a time, and comes back later and
/// later while it fails. A key in trouble delays no other.
#[derive(Debug)]
pub struct Queue<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    busy: HashSet<K>,
    /// Touched while busy: looked at again as soon as that ends.
    again: HashSet<K>,
    delayed: BTreeMap<(Instant, u64), K>,
    /// Where a key stands in `delayed`.
    due_of: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    serial: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            busy: HashSet::new(),
            again: HashSet::new(),
            delayed: BTreeMap::new(),
            due_of: HashMap::new(),
            failures: HashMap::new(),
            serial: 0,
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Something about the key changed.
    pub fn touch(&mut self, key: K) {
        if self.busy.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// The next key to work on. It is busy until [`Queue::done`].
    pub fn next(&mut self, now: Instant) -> Option<K> {
        while let Some(entry) = self.delayed.first_entry().filter(|e| e.key().0 <= now) {
            let key = entry.remove();
            self.due_of.remove(&key);
            self.touch(key);
        }
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.busy.insert(key.clone());
        Some(key)
    }

    /// When the next delayed key is due.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((at, _), _)| *at)
    }

    /// The key comes back at a time, if nothing brings it back before.
    pub fn later(&mut self, key: K, at: Instant) {
        if self.due_of.contains_key(&key) {
            return;
        }
        self.serial += 1;
        let due = (at, self.serial);
        self.due_of.insert(key.clone(), due);
        self.delayed.insert(due, key);
    }

    /// Work on a key ended. After a failure it comes back by itself; returns when.
    pub fn done(&mut self, key: K, ok: bool, now: Instant) -> Option<Duration> {
        self.busy.remove(&key);
        if ok {
            self.failures.remove(&key);
            if let Some(due) = self.due_of.remove(&key) {
                self.delayed.remove(&due);
            }
            if self.again.remove(&key) {
                self.touch(key);
            }
            return None;
        }
        self.again.remove(&key);
        let failures = self.failures.entry(key.clone()).or_default();
        let delay = FIRST_RETRY.saturating_mul(1 << (*failures).min(16)).min(LAST_RETRY);
        *failures += 1;
        self.serial += 1;
        let due = (now + delay, self.serial);
        // One attempt is to come, however often the key was touched meanwhile.
        if let Some(earlier) = self.due_of.insert(key.clone(), due) {
            self.delayed.remove(&earlier);
        }
        self.delayed.insert(due, key);
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_once_and_is_busy_once() {
        let (mut q, now) = (Queue::default(), Instant::now());
        q.touch("a");
        q.touch("a");
        assert_eq!(q.next(now), Some("a"));
        q.touch("a");
        assert_eq!(q.next(now), None, "still busy");
        q.done("a", true, now);
        assert_eq!(q.next(now), Some("a"), "touched meanwhile");
        q.done("a", true, now);
        assert_eq!(q.next(now), None);
    }

    #[test]
    fn a_failing_key_that_is_touched_again_and_again_has_one_attempt_to_come() {
        let (mut q, now) = (Queue::default(), Instant::now());
        for _ in 0..10 {
            q.touch("bad");
            assert_eq!(q.next(now), Some("bad"));
            q.done("bad", false, now);
        }
        let late = now + LAST_RETRY;
        assert_eq!(q.next(late), Some("bad"));
        assert_eq!(q.next(late), None);
        q.done("bad", true, late);
        assert_eq!((q.next(late), q.due()), (None, None));
    }

    #[test]
    fn a_key_that_is_to_be_looked_at_later_comes_once() {
        let (mut q, now) = (Queue::default(), Instant::now());
        let later = now + Duration::from_secs(10);
        q.touch("a");
        assert_eq!(q.next(now), Some("a"));
        q.done("a", true, now);
        q.later("a", later);
        q.later("a", later + Duration::from_secs(1));
        assert_eq!((q.next(now), q.due()), (None, Some(later)));
        q.touch("a");
        assert_eq!(q.next(now), Some("a"), "touched before");
        q.done("a", true, now);
        assert_eq!((q.next(later), q.due()), (None, None), "and so not due any more");
    }

    #[test]
    fn a_failing_key_waits_longer_each_time_and_delays_nobody() {
        let (mut q, mut now) = (Queue::default(), Instant::now());
        q.touch("bad");
        q.touch("good");
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            assert_eq!(q.next(now), Some("bad"));
            if last.is_zero() {
                assert_eq!(q.next(now), Some("good"));
            }
            let delay = q.done("bad", false, now).unwrap();
            assert!(delay >= last && delay <= LAST_RETRY);
            assert_eq!(q.next(now), None);
            assert_eq!(q.due(), Some(now + delay));
            (now, last) = (now + delay, delay);
        }
        assert_eq!(last, LAST_RETRY);
        assert_eq!(q.next(now), Some("bad"));
        q.done("bad", true, now);
        q.touch("bad");
        q.next(now);
        assert_eq!(q.done("bad", false, now), Some(FIRST_RETRY), "success forgets the failures");
    }
}
