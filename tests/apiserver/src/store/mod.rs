//! The objects, one global resource version, and the history that watches read.
//!
//! One lock guards everything; under it a write costs a few map operations, whatever
//! the number of objects. Watches hold no queues: each follows its table's history ring
//! at its own pace and learns of new entries through a counter.

mod history;
mod object;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::meta;

pub(crate) use history::{Change, Event, Expired, History};
pub(crate) use object::Object;

/// Names a table: the plural, with the group for all but the core group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TableId(Arc<str>);

impl TableId {
    pub(crate) fn new(group: &str, plural: &str) -> Self {
        if group.is_empty() { Self(plural.into()) } else { Self(format!("{plural}.{group}").into()) }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where an object lives; the namespace is empty for cluster-scoped ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) table: TableId,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn of(table: &TableId, object: &Value) -> Self {
        Self {
            table: table.clone(),
            namespace: meta::namespace(object).to_owned(),
            name: meta::name(object).to_owned(),
        }
    }
}

/// Why a write did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Exists,
    Missing,
    /// The object is not at the version that the writer saw.
    Stale,
}

/// An object that has left the store.
#[derive(Debug, Clone)]
pub(crate) struct Removed {
    pub(crate) key: Key,
    pub(crate) object: Arc<Object>,
}

struct Table {
    objects: BTreeMap<(String, String), Arc<Object>>,
    history: History,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    tables: HashMap<TableId, Table>,
    /// Where each uid lives.
    uids: HashMap<String, Key>,
    /// Owner uid → the objects that name it in their owner references.
    dependents: HashMap<String, HashSet<Key>>,
}

/// The store. Cheap to share behind an `Arc`.
pub(crate) struct Store {
    inner: Mutex<Inner>,
    window: usize,
    removed: mpsc::UnboundedSender<Removed>,
}

impl Store {
    /// A store that remembers `window` events per table and reports what leaves it.
    pub(crate) fn new(window: usize) -> (Self, mpsc::UnboundedReceiver<Removed>) {
        let (removed, receiver) = mpsc::unbounded_channel();
        let inner = Inner { version: 1, ..Inner::default() };
        (Self { inner: Mutex::new(inner), window, removed }, receiver)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest resource version.
    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Object>> {
        let inner = self.lock();
        let table = inner.tables.get(&key.table)?;
        table.objects.get(&(key.namespace.clone(), key.name.clone())).cloned()
    }

    /// All objects of a table (of one namespace), and the version of this snapshot.
    pub(crate) fn list(&self, table: &TableId, namespace: Option<&str>) -> (Vec<Arc<Object>>, u64) {
        let inner = self.lock();
        let Some(table) = inner.tables.get(table) else { return (Vec::new(), inner.version) };
        let objects = match namespace {
            None => table.objects.values().cloned().collect(),
            Some(namespace) => {
                let from = (namespace.to_owned(), String::new());
                table
                    .objects
                    .range((Bound::Included(from), Bound::Unbounded))
                    .take_while(|((have, _), _)| have == namespace)
                    .map(|(_, object)| object.clone())
                    .collect()
            }
        };
        (objects, inner.version)
    }

    /// Whether a table (in one namespace) holds anything.
    pub(crate) fn is_empty(&self, table: &TableId, namespace: Option<&str>) -> bool {
        self.list(table, namespace).0.is_empty()
    }

    pub(crate) fn create(&self, table: &TableId, value: Value) -> Result<Arc<Object>, Refused> {
        let key = Key::of(table, &value);
        let mut inner = self.lock();
        let slot = (key.namespace.clone(), key.name.clone());
        if inner.tables.get(table).is_some_and(|table| table.objects.contains_key(&slot)) {
            return Err(Refused::Exists);
        }
        inner.version += 1;
        let object = Object::new(value, inner.version);
        inner.uids.insert(meta::uid(object.value()).to_owned(), key.clone());
        inner.index_owners(&key, object.value());
        let event = Event { change: Change::Added, object: object.clone(), previous: None };
        self.table(&mut inner, table).record(slot, Some(object.clone()), event);
        Ok(object)
    }

    /// Replaces the object when it is still at version `expected`. Writing what is
    /// already there changes nothing, not even the version.
    pub(crate) fn update(
        &self,
        table: &TableId,
        value: Value,
        expected: u64,
    ) -> Result<Arc<Object>, Refused> {
        let key = Key::of(table, &value);
        let mut inner = self.lock();
        let previous = inner.current(&key, expected)?;
        if previous.same_content(&value) {
            return Ok(previous);
        }
        inner.version += 1;
        let object = Object::new(value, inner.version);
        inner.unindex_owners(&key, previous.value());
        inner.index_owners(&key, object.value());
        let event = Event { change: Change::Modified, object: object.clone(), previous: Some(previous) };
        self.table(&mut inner, table).record((key.namespace, key.name), Some(object.clone()), event);
        Ok(object)
    }

    /// Removes the object when it is still at version `expected`; returns its last
    /// state, at the version of the removal.
    pub(crate) fn remove(&self, key: &Key, expected: u64) -> Result<Arc<Object>, Refused> {
        let mut inner = self.lock();
        let previous = inner.current(key, expected)?;
        inner.version += 1;
        let object = Object::new(previous.value().clone(), inner.version);
        inner.uids.remove(meta::uid(object.value()));
        inner.unindex_owners(key, object.value());
        let event = Event { change: Change::Deleted, object: object.clone(), previous: Some(previous) };
        let slot = (key.namespace.clone(), key.name.clone());
        self.table(&mut inner, &key.table).record(slot, None, event);
        drop(inner);
        // Without a collector (it stops before the store) nobody needs to hear of it.
        let _ = self.removed.send(Removed { key: key.clone(), object: object.clone() });
        Ok(object)
    }

    /// Events of a table after `version`, and the version up to which they are complete.
    pub(crate) fn events_after(
        &self,
        table: &TableId,
        version: u64,
    ) -> Result<(Vec<Arc<Event>>, u64), Expired> {
        let mut inner = self.lock();
        let newest = inner.version;
        let events = self.table(&mut inner, table).history.after(version)?;
        Ok((events, newest))
    }

    /// Fires whenever the table gets a new event.
    pub(crate) fn subscribe(&self, table: &TableId) -> watch::Receiver<u64> {
        self.table(&mut self.lock(), table).version.subscribe()
    }

    pub(crate) fn uid_exists(&self, uid: &str) -> bool {
        self.lock().uids.contains_key(uid)
    }

    pub(crate) fn key_of_uid(&self, uid: &str) -> Option<Key> {
        self.lock().uids.get(uid).cloned()
    }

    /// Objects with an owner reference to `uid`.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<Key> {
        self.lock().dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    fn table<'a>(&self, inner: &'a mut Inner, id: &TableId) -> &'a mut Table {
        let version = inner.version;
        inner.tables.entry(id.clone()).or_insert_with(|| Table {
            objects: BTreeMap::new(),
            history: History::new(self.window),
            version: watch::channel(version).0,
        })
    }
}

impl Table {
    fn record(&mut self, slot: (String, String), object: Option<Arc<Object>>, event: Event) {
        match object {
            Some(object) => self.objects.insert(slot, object),
            None => self.objects.remove(&slot),
        };
        let version = event.version();
        self.history.push(event);
        self.version.send_replace(version);
    }
}

impl Inner {
    fn current(&self, key: &Key, expected: u64) -> Result<Arc<Object>, Refused> {
        let table = self.tables.get(&key.table).ok_or(Refused::Missing)?;
        let object = table.objects.get(&(key.namespace.clone(), key.name.clone())).ok_or(Refused::Missing)?;
        if object.version() == expected { Ok(object.clone()) } else { Err(Refused::Stale) }
    }

    fn index_owners(&mut self, key: &Key, object: &Value) {
        for owner in meta::owners(object).filter_map(|owner| owner.get("uid")?.as_str()) {
            self.dependents.entry(owner.to_owned()).or_default().insert(key.clone());
        }
    }

    fn unindex_owners(&mut self, key: &Key, object: &Value) {
        for owner in meta::owners(object).filter_map(|owner| owner.get("uid")?.as_str()) {
            if let Some(keys) = self.dependents.get_mut(owner) {
                keys.remove(key);
                if keys.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, owner: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "a", "uid": name, "ownerReferences": [{"uid": owner}]}})
    }

    #[test]
    fn create_update_remove_are_one_history() {
        let table = TableId::new("", "pods");
        let (store, mut removed) = Store::new(10);
        let start = store.version();
        let created = store.create(&table, pod("p", "o")).unwrap();
        assert_eq!(store.create(&table, pod("p", "o")).unwrap_err(), Refused::Exists);
        assert_eq!(store.dependents("o").len(), 1);
        let mut next = created.value().clone();
        next["spec"] = json!({"x": 1});
        assert_eq!(store.update(&table, next.clone(), start).unwrap_err(), Refused::Stale);
        let updated = store.update(&table, next.clone(), created.version()).unwrap();
        assert!(updated.version() > created.version());
        let same = store.update(&table, next, updated.version()).unwrap();
        assert_eq!(same.version(), updated.version(), "no change, no version");
        let key = Key::of(&table, same.value());
        store.remove(&key, same.version()).unwrap();
        assert!(store.dependents("o").is_empty());
        assert!(!store.uid_exists("p"));
        assert_eq!(removed.try_recv().unwrap().key, key);
        let changes: Vec<Change> =
            store.events_after(&table, start).unwrap().0.iter().map(|event| event.change).collect();
        assert_eq!(changes, [Change::Added, Change::Modified, Change::Deleted]);
    }

    #[test]
    fn a_list_of_one_namespace_stops_at_its_end() {
        let table = TableId::new("", "pods");
        let (store, _removed) = Store::new(10);
        for (namespace, name) in [("a", "x"), ("ab", "y"), ("b", "z")] {
            store.create(&table, json!({"metadata": {"name": name, "namespace": namespace}})).unwrap();
        }
        assert_eq!(store.list(&table, Some("a")).0.len(), 1);
        assert_eq!(store.list(&table, None).0.len(), 3);
        assert!(store.is_empty(&table, Some("c")));
    }
}
