//! Who is connected, and who goes when no place is left.
//!
//! Anyone who reaches the port can hold a connection open without asking anything. Places are few, so whoever has
//! been idle longest gives its place up for the next one; an API server that finds its idle connection closed
//! makes a new one. A connection with a request in work keeps its place: requests have a time limit.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All connections.
#[derive(Debug)]
pub(super) struct Peers {
    limit: usize,
    free: Arc<Semaphore>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    serial: u64,
    peers: BTreeMap<u64, Peer>,
}

#[derive(Debug)]
struct Peer {
    /// None while a request is in work.
    idle_since: Option<Instant>,
    /// It was told to go.
    going: bool,
    go: Arc<Notify>,
}

impl Table {
    /// Tells the one that has been idle longest to go, unless there is room or somebody goes already.
    fn make_room(&mut self, limit: usize) {
        if self.peers.len() < limit || self.peers.values().any(|peer| peer.going) {
            return;
        }
        let idle = self.peers.values_mut().filter(|peer| peer.idle_since.is_some());
        if let Some(peer) = idle.min_by_key(|peer| peer.idle_since) {
            peer.going = true;
            peer.go.notify_one();
        }
    }
}

impl Peers {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, free: Arc::new(Semaphore::new(limit)), table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. None when there will be no more.
    pub(super) async fn free(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().acquire_owned().await.ok()
    }

    /// A connection takes a place. With the last one, somebody else goes.
    pub(super) fn enter(self: &Arc<Self>, place: Option<OwnedSemaphorePermit>) -> Connected {
        let go = Arc::new(Notify::new());
        let mut table = self.table();
        table.serial += 1;
        let id = table.serial;
        table.peers.insert(id, Peer { idle_since: Some(Instant::now()), going: false, go: go.clone() });
        table.make_room(self.limit);
        Connected { peers: self.clone(), id, go, asked: AtomicBool::new(false), _place: place }
    }
}

/// One connection. Its place is free when this is dropped.
#[derive(Debug)]
pub(super) struct Connected {
    peers: Arc<Peers>,
    id: u64,
    go: Arc<Notify>,
    asked: AtomicBool,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connected {
    /// A request begins, or ends.
    pub(super) fn works(&self, on_request: bool) {
        self.asked.store(true, Ordering::Relaxed);
        let mut table = self.peers.table();
        if let Some(peer) = table.peers.get_mut(&self.id) {
            peer.idle_since = (!on_request).then(Instant::now);
        }
        table.make_room(self.peers.limit);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.peers.table().peers.get(&self.id).is_none_or(|peer| peer.idle_since.is_some())
    }

    /// Whether it ever asked anything.
    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits until another one needs the place.
    pub(super) async fn must_go(&self) {
        self.go.notified().await;
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.peers.table().peers.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn whoever_is_idle_longest_goes_for_the_next_and_who_works_stays() {
        let peers = Peers::new(3);
        let enter = || peers.enter(peers.free().now_or_never().flatten());
        let told = |one: &Connected| one.must_go().now_or_never().is_some();
        let (first, second) = (enter(), enter());
        first.works(true);
        assert!(!told(&first) && !told(&second), "there is room");
        let third = enter();
        assert!(!told(&first) && told(&second) && !told(&third), "of the idle ones the older goes");
        assert!(peers.free().now_or_never().is_none(), "it has not gone yet");
        first.works(false);
        assert!(!told(&first) && !told(&third), "one is enough");
        drop(second);
        third.works(true);
        let fourth = enter();
        assert!(told(&first) && !told(&third), "idle since its request ended");
        fourth.works(true);
        drop(first);
        let fifth = enter();
        fifth.works(true);
        // All work: nobody can go, until one is idle.
        assert!(told(&fifth), "it was the only idle one when it came");
        drop(fifth);
        let sixth = enter();
        sixth.works(true);
        drop((third, fourth, sixth));
        assert!((0..3).all(|_| peers.free().now_or_never().flatten().is_some()));
    }
}
