//! A map that the agent alone writes, with a copy of its contents.

use std::collections::BTreeMap;

use aya::{
    Pod,
    maps::{HashMap, LpmTrie, MapData, MapError, lpm_trie},
};

use super::{DatapathError, image::Prefix};

/// The kernel's side of a table.
pub(super) trait Store<K, V> {
    fn entries(&self) -> Result<Vec<(K, V)>, MapError>;
    fn put(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    fn remove(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K: Pod, V: Pod> Store<K, V> for HashMap<MapData, K, V> {
    fn entries(&self) -> Result<Vec<(K, V)>, MapError> {
        self.iter().collect()
    }

    fn put(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.insert(key, value, 0)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        HashMap::remove(self, key)
    }
}

impl<K: Pod, V: Pod> Store<Prefix<K>, V> for LpmTrie<MapData, K, V> {
    fn entries(&self) -> Result<Vec<(Prefix<K>, V)>, MapError> {
        self.iter().map(|entry| entry.map(|(key, value)| ((key.prefix_len(), key.data()), value))).collect()
    }

    fn put(&mut self, (len, data): &Prefix<K>, value: &V) -> Result<(), MapError> {
        self.insert(&lpm_trie::Key::new(*len, *data), value, 0)
    }

    fn remove(&mut self, (len, data): &Prefix<K>) -> Result<(), MapError> {
        LpmTrie::remove(self, &lpm_trie::Key::new(*len, *data))
    }
}

/// Entries that a step added, replaced or removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Added or replaced.
    pub put: usize,
    /// Removed.
    pub removed: usize,
}

impl std::ops::AddAssign for Changes {
    fn add_assign(&mut self, other: Self) {
        self.put += other.put;
        self.removed += other.removed;
    }
}

/// Entries by the bytes of their keys.
type Mirror<K, V> = BTreeMap<Vec<u8>, (K, V)>;

/// A map with a copy of what is in it.
pub(super) struct Table<K, V, S> {
    name: &'static str,
    store: S,
    mirror: Mirror<K, V>,
    identify: fn(&K) -> Vec<u8>,
}

impl<K: Copy, V: Copy + PartialEq, S: Store<K, V>> Table<K, V, S> {
    /// Reads what the map holds.
    pub(super) fn adopt(
        name: &'static str,
        store: S,
        identify: fn(&K) -> Vec<u8>,
    ) -> Result<Self, DatapathError> {
        let mirror = Self::read(name, &store, identify)?;
        Ok(Self { name, store, mirror, identify })
    }

    /// Compares with the map: what differs from the copy is what somebody else has written. Returns how many entries
    /// differ; the next writing of what is wanted makes them good.
    pub(super) fn check(&mut self) -> Result<usize, DatapathError> {
        let there = Self::read(self.name, &self.store, self.identify)?;
        let lost = self
            .mirror
            .iter()
            .filter(|(id, (_, value))| there.get(*id).is_none_or(|(_, there)| there != value));
        let drift = lost.count() + there.keys().filter(|id| !self.mirror.contains_key(*id)).count();
        self.mirror = there;
        Ok(drift)
    }

    fn read(
        name: &'static str,
        store: &S,
        identify: fn(&K) -> Vec<u8>,
    ) -> Result<Mirror<K, V>, DatapathError> {
        let entries =
            store.entries().map_err(|source| DatapathError::Map { name, action: "read it", source })?;
        Ok(entries.into_iter().map(|(key, value)| (identify(&key), (key, value))).collect())
    }

    /// True when a wanted key is missing.
    pub(super) fn lacks(&self, wanted: &[(K, V)]) -> bool {
        wanted.iter().any(|(key, _)| !self.mirror.contains_key(&(self.identify)(key)))
    }

    /// Adds what is missing and replaces what differs.
    pub(super) fn put_all(&mut self, wanted: &[(K, V)]) -> Result<Changes, DatapathError> {
        let mut changes = Changes::default();
        for (key, value) in wanted {
            let id = (self.identify)(key);
            if self.mirror.get(&id).is_some_and(|(_, there)| there == value) {
                continue;
            }
            self.store.put(key, value).map_err(|source| DatapathError::Map {
                name: self.name,
                action: "add an entry",
                source,
            })?;
            self.mirror.insert(id, (*key, *value));
            changes.put += 1;
        }
        Ok(changes)
    }

    /// Removes what is not wanted; the answer is what was removed.
    pub(super) fn remove_others(&mut self, wanted: &[(K, V)]) -> Result<Vec<K>, DatapathError> {
        let wanted: std::collections::BTreeSet<_> =
            wanted.iter().map(|(key, _)| (self.identify)(key)).collect();
        let extra: Vec<_> = self
            .mirror
            .iter()
            .filter(|(id, _)| !wanted.contains(*id))
            .map(|(id, (key, _))| (id.clone(), *key))
            .collect();
        let mut removed = vec![];
        for (id, key) in extra {
            self.remove_one(&id, &key)?;
            removed.push(key);
        }
        Ok(removed)
    }

    /// What the map has for a key.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.mirror.get(&(self.identify)(key)).map(|(_, value)| *value)
    }

    /// What the map has.
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, V)> {
        self.mirror.values().copied()
    }

    /// Removes the entries of some keys; the answer is how many there were.
    pub(super) fn remove(&mut self, keys: &[K]) -> Result<usize, DatapathError> {
        let mut removed = 0;
        for key in keys {
            let id = (self.identify)(key);
            if self.mirror.contains_key(&id) {
                self.remove_one(&id, key)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn remove_one(&mut self, id: &[u8], key: &K) -> Result<(), DatapathError> {
        match self.store.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(source) => {
                return Err(DatapathError::Map { name: self.name, action: "remove an entry", source });
            }
        }
        self.mirror.remove(id);
        Ok(())
    }
}

/// The bytes of a plain key.
pub(super) fn plain<K: bytemuck::Pod>(key: &K) -> Vec<u8> {
    bytemuck::bytes_of(key).to_vec()
}

/// The bytes of a prefix key. Shorter ones come first: in that order they are removed, so that what is no longer taken never
/// falls to a shorter one.
pub(super) fn prefixed<K: bytemuck::Pod>((len, data): &Prefix<K>) -> Vec<u8> {
    [&len.to_be_bytes(), bytemuck::bytes_of(data)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fake {
        entries: BTreeMap<u32, u32>,
        writes: usize,
    }

    impl Store<u32, u32> for Fake {
        fn entries(&self) -> Result<Vec<(u32, u32)>, MapError> {
            Ok(self.entries.iter().map(|(k, v)| (*k, *v)).collect())
        }

        fn put(&mut self, key: &u32, value: &u32) -> Result<(), MapError> {
            self.writes += 1;
            self.entries.insert(*key, *value);
            Ok(())
        }

        fn remove(&mut self, key: &u32) -> Result<(), MapError> {
            self.writes += 1;
            self.entries.remove(key).map(|_| ()).ok_or(MapError::KeyNotFound)
        }
    }

    fn table(entries: &[(u32, u32)]) -> Table<u32, u32, Fake> {
        let store = Fake { entries: entries.iter().copied().collect(), writes: 0 };
        Table::adopt("test", store, plain).unwrap()
    }

    #[test]
    fn only_differences_are_written() {
        let mut table = table(&[(1, 10), (2, 20), (3, 30)]);
        let wanted = [(1, 10), (2, 21), (4, 40)];
        assert_eq!(table.put_all(&wanted).unwrap(), Changes { put: 2, removed: 0 });
        assert_eq!(table.remove_others(&wanted).unwrap(), [3]);
        assert_eq!(table.store.entries, wanted.into());
        assert_eq!(table.store.writes, 3);
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let mut table = table(&[]);
        let wanted = [(1, 10)];
        assert_eq!(table.put_all(&wanted).unwrap().put, 1);
        assert_eq!(table.put_all(&wanted).unwrap(), Changes::default());
        assert!(table.remove_others(&wanted).unwrap().is_empty());
        assert_eq!(table.store.writes, 1);
    }

    #[test]
    fn some_entries_go_and_the_others_stay() {
        let mut table = table(&[(1, 10), (2, 20)]);
        assert_eq!(table.remove(&[2, 3]).unwrap(), 1);
        assert_eq!(table.store.entries, [(1, 10)].into());
        assert_eq!((table.get(&1), table.get(&2)), (Some(10), None));
        assert_eq!(table.put_all(&[(2, 20)]).unwrap().put, 1, "it is known to be gone");
    }

    #[test]
    fn what_others_write_is_found_and_made_good() {
        let mut table = table(&[(1, 10), (2, 20), (3, 30)]);
        assert_eq!(table.check().unwrap(), 0);
        table.store.entries = [(1, 10), (2, 21), (4, 40)].into();
        assert_eq!(table.check().unwrap(), 3, "one changed, one lost, one too many");
        let wanted = [(1, 10), (2, 20), (3, 30)];
        table.put_all(&wanted).unwrap();
        table.remove_others(&wanted).unwrap();
        assert_eq!(table.store.entries, wanted.into());
        assert_eq!(table.check().unwrap(), 0);
    }

    /// Keys of a longest prefix match, in the order in which they are removed.
    #[derive(Default)]
    struct Prefixes {
        entries: Vec<(Prefix<[u8; 4]>, u32)>,
        removed: Vec<u32>,
    }

    impl Store<Prefix<[u8; 4]>, u32> for Prefixes {
        fn entries(&self) -> Result<Vec<(Prefix<[u8; 4]>, u32)>, MapError> {
            Ok(self.entries.clone())
        }

        fn put(&mut self, _: &Prefix<[u8; 4]>, _: &u32) -> Result<(), MapError> {
            Ok(())
        }

        fn remove(&mut self, (len, _): &Prefix<[u8; 4]>) -> Result<(), MapError> {
            self.removed.push(*len);
            Ok(())
        }
    }

    #[test]
    fn shorter_prefixes_go_first() {
        let entries = [(16, [10, 9, 0, 0]), (0, [0; 4]), (24, [9, 9, 9, 0]), (12, [172, 16, 0, 0])];
        let store = Prefixes { entries: entries.map(|prefix| (prefix, 1)).into(), removed: vec![] };
        let mut table = Table::adopt("test", store, prefixed).unwrap();
        assert_eq!(table.remove_others(&[]).unwrap().len(), 4);
        assert_eq!(table.store.removed, [0, 12, 16, 24]);
    }

    #[test]
    fn an_entry_that_is_gone_already_is_no_error() {
        let mut table = table(&[(1, 10)]);
        table.store.entries.clear();
        assert_eq!(table.remove_others(&[]).unwrap(), [1]);
    }
}
