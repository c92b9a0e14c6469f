use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coil_api::{crd::AddressBlock, names::LABEL_NODE};
use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, Shared},
};
use ipnet::IpNet;
use kube::{
    Api, Client, ResourceExt,
    core::DeserializeGuard,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tracing::{error, info, warn};

use super::{
    Allocation, AttachmentId,
    departure::{self, Outcome},
    error::IpamError,
    request::{self, Asking},
    table::{BlockInfo, Departure, Table},
};

/// How long one allocation waits for a new block.
const ALLOCATE_LIMIT: Duration = Duration::from_secs(10);
/// How long the controller may take to learn that a block came back.
const RETURN_NEWS: Duration = Duration::from_secs(2);
/// How long a block on its way out waits until table 119 does not have it any more.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(10);

/// Between two attempts of one step of a request. Tests without time have none, and wait for nothing else either.
const PAUSE: Duration = Duration::from_millis(50);

/// News of the node's blocks, as a watch gives them.
pub type BlockEvent = watcher::Event<DeserializeGuard<AddressBlock>>;

type Answer = Shared<BoxFuture<'static, Result<(), IpamError>>>;

/// Gives this node's pods addresses from the blocks that the node owns, and gets and returns
/// blocks as needed.
///
/// Clones share one state. No lock is held while anything is waited for.
#[derive(Clone)]
pub struct NodeIpam {
    inner: Arc<Inner>,
}

/// What is known of table 119.
enum Exported {
    /// There is no such table.
    Nowhere,
    /// There may be anything in it.
    Unknown,
    /// This is in it.
    Known(BTreeSet<IpNet>),
}

struct Inner {
    client: Client,
    node: String,
    table: Mutex<Table>,
    /// Pool → the request that all its waiters share, and whether a block was on its way back when it was made.
    requests: Mutex<HashMap<String, (Answer, bool)>>,
    /// Pool → when this node last returned a block of it.
    returned: Mutex<HashMap<String, Instant>>,
    /// Counts changes of the table; waiters look again at each.
    changes: watch::Sender<u64>,
    on_blocks: watch::Sender<BTreeSet<IpNet>>,
    exported: watch::Sender<Exported>,
    pause: Duration,
    /// The channel had its first value: an empty set is news too.
    published: AtomicBool,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.watcher).take() {
            task.abort();
        }
    }
}

/// The data behind these locks is consistent after each statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the blocks of a pool from being returned while somebody waits for one of its addresses.
struct Waiting<'a> {
    inner: &'a Inner,
    pool: &'a str,
}

impl<'a> Waiting<'a> {
    fn new(inner: &'a Inner, pool: &'a str) -> Self {
        lock(&inner.table).wait(pool);
        Self { inner, pool }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.inner.table).wait_ends(self.pool);
    }
}

impl NodeIpam {
    /// Starts watching the node's blocks, which needs a Tokio runtime. The networks of the blocks
    /// that the node owns go to `on_blocks`, for the first time when the API gave a complete list.
    #[must_use]
    pub fn new(client: Client, node_name: String, on_blocks: watch::Sender<BTreeSet<IpNet>>) -> Self {
        let api = Api::<DeserializeGuard<AddressBlock>>::all(client.clone());
        let config = watcher::Config::default().labels(&format!("{LABEL_NODE}={node_name}"));
        let events = watcher(api, config).default_backoff().filter_map(|event| async move {
            event
                .inspect_err(|e| warn!(error = %e, "watching AddressBlocks; blocks in hand stay in use"))
                .ok()
        });
        Self::following(client, node_name, on_blocks, events, PAUSE)
    }

    /// [`NodeIpam::new`] with given news of the node's blocks, in order, and a pause between attempts.
    #[must_use]
    pub fn following(
        client: Client,
        node_name: String,
        on_blocks: watch::Sender<BTreeSet<IpNet>>,
        events: impl Stream<Item = BlockEvent> + Send + 'static,
        pause: Duration,
    ) -> Self {
        let inner = Arc::new(Inner {
            client,
            node: node_name,
            table: Mutex::default(),
            requests: Mutex::default(),
            returned: Mutex::default(),
            changes: watch::Sender::new(0),
            on_blocks,
            exported: watch::Sender::new(Exported::Nowhere),
            pause,
            published: AtomicBool::new(false),
            watcher: Mutex::default(),
        });
        // The task must not keep its own owner alive.
        let weak = Arc::downgrade(&inner);
        let task = tokio::spawn(async move {
            let mut listed = Vec::new();
            let mut events = events.boxed();
            while let Some(event) = events.next().await {
                let Some(inner) = weak.upgrade() else { return };
                inner.observe(event, &mut listed);
            }
        });
        *lock(&inner.watcher) = Some(task);
        Self { inner }
    }

    /// Takes over attachments that were found on the node. To be called before anything is allocated.
    pub fn recover(&self, found: Vec<Allocation>) {
        for allocation in found {
            let owner = allocation.owner.clone();
            let mut table = lock(&self.inner.table);
            // Before the first list no block is known; the address is taken when its block appears.
            if !table.recover(allocation) && table.synced() {
                warn!(%owner, "its address is in no AddressBlock of this node");
            }
        }
        self.inner.changed();
    }

    /// The addresses of an attachment: those it has, else free ones of the pool's blocks in hand,
    /// else of a new block. Asking twice for the same owner gives the same addresses.
    ///
    /// # Errors
    /// Only when no block in hand has a free address; see [`IpamError`].
    pub async fn allocate(&self, pool: &str, owner: &AttachmentId) -> Result<Allocation, IpamError> {
        let inner = &self.inner;
        if let Some(allocation) = lock(&inner.table).allocate(pool, owner) {
            return Ok(allocation);
        }
        let deadline = Instant::now() + ALLOCATE_LIMIT;
        let _waiting = Waiting::new(inner, pool);
        let mut changes = inner.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if let Some(allocation) = lock(&inner.table).allocate(pool, owner) {
                return Ok(allocation);
            }
            let synced = lock(&inner.table).synced();
            let answer = async {
                // Nothing is asked for before it is known what is in hand.
                if !synced {
                    std::future::pending::<()>().await;
                }
                let (answer, returning) = inner.request(pool);
                answer.await.map_err(|e| (e, returning))
            };
            tokio::select! {
                biased;
                result = answer => if let Err((e, returning)) = result {
                    // Meanwhile an address may have been freed.
                    if let Some(allocation) = lock(&inner.table).allocate(pool, owner) {
                        return Ok(allocation);
                    }
                    // However long the answer took: the controller may have given it before it knew.
                    let returns = returning || inner.returns(pool);
                    if matches!(e, IpamError::OutOfBlocks { .. }) && returns && Instant::now() < deadline {
                        let changed = tokio::time::timeout(inner.pause * 2, changes.changed());
                        let _ = changed.await;
                        continue;
                    }
                    // The one who asked may have waited longer than this one.
                    if !matches!(e, IpamError::Timeout { .. }) || Instant::now() >= deadline {
                        return Err(e);
                    }
                },
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(deadline) => {
                    return Err(if synced {
                        let request = coil_api::names::block_request_name(pool, &inner.node);
                        IpamError::Timeout { request, waited: ALLOCATE_LIMIT }
                    } else {
                        IpamError::NotListed { node: inner.node.clone() }
                    });
                }
            }
        }
    }

    /// The addresses that an attachment has.
    #[must_use]
    pub fn get(&self, owner: &AttachmentId) -> Option<Allocation> {
        lock(&self.inner.table).get(owner).cloned()
    }

    /// Frees an attachment's addresses; none when it has none. A block that this leaves empty is
    /// returned to its pool in the background; when that fails, [`NodeIpam::gc`] tries again.
    pub async fn free(&self, owner: &AttachmentId) -> Option<Allocation> {
        let (allocation, empty) = lock(&self.inner.table).free(owner)?;
        self.inner.changed();
        for departure in empty {
            // In a task of its own: a caller that goes away does not leave it half done.
            tokio::spawn(self.inner.clone().depart(departure));
        }
        Some(allocation)
    }

    /// Waits until the API gave a complete list of the node's blocks.
    pub async fn synced(&self) {
        let mut changes = self.inner.changes.subscribe();
        while !lock(&self.inner.table).synced() {
            // The sender lives in `self`.
            let _ = changes.changed().await;
        }
    }

    /// The node's blocks are exported to a table: from now on a block is returned only when
    /// [`NodeIpam::exported`] told that the table does not have it.
    pub fn will_export(&self) {
        self.inner.exported.send_replace(Exported::Unknown);
    }

    /// What the table has now.
    pub fn exported(&self, networks: BTreeSet<IpNet>) {
        self.inner.exported.send_replace(Exported::Known(networks));
    }

    /// The pools that are being deleted. Their blocks give no more addresses, and go with their pods.
    pub fn drain(&self, pools: BTreeSet<String>) {
        lock(&self.inner.table).drain(pools);
        self.inner.changed();
    }

    /// Returns all blocks without pods.
    ///
    /// # Errors
    /// The first block that could not be returned; the others were tried.
    pub async fn gc(&self) -> Result<(), IpamError> {
        let idle = lock(&self.inner.table).depart_idle();
        let mut first = Ok(());
        for departure in idle {
            let result = match tokio::spawn(self.inner.clone().depart(departure)).await {
                Ok(result) => result,
                Err(e) => Err(IpamError::Api { doing: "return a block".to_owned(), message: e.to_string() }),
            };
            first = first.and(result);
        }
        first
    }
}

impl Inner {
    /// The pool's outstanding request; a new one when there is none.
    fn request(self: &Arc<Self>, pool: &str) -> (Answer, bool) {
        let returning = self.returns(pool);
        let mut requests = lock(&self.requests);
        if let Some(running) = requests.get(pool) {
            return running.clone();
        }
        // A task of its own: it goes on when the waiter that started it gives up, and takes itself
        // off the map, so that nobody gets an old answer.
        let (inner, key) = (self.clone(), pool.to_owned());
        let task = tokio::spawn(async move {
            let result = inner.get_block(&key).await;
            lock(&inner.requests).remove(&key);
            let name = result?;
            // Whoever it was for may have got another address meanwhile, or have given up: then nobody needs it.
            let needless = lock(&inner.table).depart(&name);
            if let Some(departure) = needless {
                tokio::spawn(inner.depart(departure));
            }
            Ok(())
        });
        let answer = async move {
            task.await.unwrap_or_else(|e| {
                Err(IpamError::Api { doing: "request a block".to_owned(), message: e.to_string() })
            })
        };
        let asked = (answer.boxed().shared(), returning);
        requests.insert(pool.to_owned(), asked.clone());
        asked
    }

    /// Asks for a block, and takes it in hand. Returns its name.
    async fn get_block(&self, pool: &str) -> Result<String, IpamError> {
        let asking = Asking { node: &self.node, pool, limit: ALLOCATE_LIMIT, pause: self.pause };
        let name = request::block(&self.client, asking).await?;
        if lock(&self.table).contains(&name) {
            return Ok(name);
        }
        // The watch may be late; the block is there.
        let block = Api::<AddressBlock>::all(self.client.clone())
            .get_opt(&name)
            .await
            .map_err(|e| IpamError::api(format!("read AddressBlock {name:?}"), &e))?;
        // An old answer may name one that is gone; then whoever waits asks again.
        if let Some(block) = block {
            self.upsert(&block);
            self.changed();
        }
        Ok(name)
    }

    fn observe(
        &self,
        event: watcher::Event<DeserializeGuard<AddressBlock>>,
        listed: &mut Vec<DeserializeGuard<AddressBlock>>,
    ) {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(block) => listed.push(block),
            watcher::Event::InitDone => {
                let uids = listed.iter().filter_map(ResourceExt::uid).collect();
                for name in lock(&self.table).retain(&uids) {
                    error!(block = name, "an AddressBlock with pods in it is gone from the API");
                }
                listed.drain(..).for_each(|block| self.upsert_guarded(&block));
            }
            watcher::Event::Apply(block) => self.upsert_guarded(&block),
            watcher::Event::Delete(block) => {
                let (name, uid) = (block.name_any(), block.uid().unwrap_or_default());
                if lock(&self.table).remove(&name, &uid) {
                    error!(block = name, "an AddressBlock with pods in it was deleted");
                }
            }
        }
        self.changed();
    }

    fn upsert_guarded(&self, block: &DeserializeGuard<AddressBlock>) {
        match &block.0 {
            Ok(block) => self.upsert(block),
            Err(e) => error!(block = block.name_any(), error = %e, "malformed AddressBlock is not used"),
        }
    }

    fn upsert(&self, block: &AddressBlock) {
        // A block given away since: the name's label decides, whoever sent us this.
        if block.labels().get(LABEL_NODE) != Some(&self.node) {
            return;
        }
        match BlockInfo::try_from(block) {
            Ok(info) => lock(&self.table).upsert(info),
            Err(e) => error!(block = block.name_any(), error = %e, "malformed AddressBlock is not used"),
        }
    }

    /// Wakes waiters, and tells the exporter when the set of owned blocks is known and new.
    fn changed(&self) {
        self.on_blocks.send_if_modified(|known| {
            // Read under the channel's lock, so that two callers cannot publish in the wrong order.
            let table = lock(&self.table);
            if !table.synced() {
                return false;
            }
            let networks = table.networks();
            let first = !self.published.swap(true, Ordering::Relaxed);
            let new = *known != networks;
            *known = networks;
            first || new
        });
        self.changes.send_modify(|n| *n += 1);
    }

    /// Waits until table 119 does not have a block any more: two nodes that announce one block would
    /// lose the packets of both.
    async fn withdrawn(&self, d: &Departure) -> Result<(), IpamError> {
        let mut exported = self.exported.subscribe();
        let gone = exported.wait_for(|exported| match exported {
            Exported::Nowhere => true,
            Exported::Unknown => false,
            Exported::Known(table) => d.networks.iter().all(|network| !table.contains(&network)),
        });
        match tokio::time::timeout(WITHDRAW_LIMIT, gone).await {
            Ok(_) => Ok(()),
            Err(_) => Err(IpamError::StillExported { block: d.name.clone(), waited: WITHDRAW_LIMIT }),
        }
    }

    /// Whether a block of the pool is on its way back, or was so recently that the controller may not know
    /// yet that it is free.
    fn returns(&self, pool: &str) -> bool {
        let recent = |at: &Instant| !self.pause.is_zero() && at.elapsed() < RETURN_NEWS;
        lock(&self.table).returning(pool) || lock(&self.returned).get(pool).is_some_and(recent)
    }

    async fn depart(self: Arc<Self>, d: Departure) -> Result<(), IpamError> {
        let api = Api::all(self.client.clone());
        let leaves = async {
            lock(&self.table).leaves(&d);
            self.changed();
            self.withdrawn(&d).await
        };
        let outcome = departure::run(&api, &d, leaves).await;
        let result = match outcome {
            Outcome::Gone => {
                lock(&self.table).remove(&d.name, &d.uid);
                lock(&self.returned).insert(d.pool.clone(), Instant::now());
                info!(block = d.name, "returned to its pool");
                Ok(())
            }
            Outcome::Stays(e) => {
                lock(&self.table).stays(&d);
                warn!(block = d.name, error = %e, "not returned; it stays in use");
                Err(e)
            }
            Outcome::Doubtful(e) => {
                lock(&self.table).doubtful(&d);
                warn!(block = d.name, error = %e, "whether it was returned is unknown; it is tried again later");
                Err(e)
            }
        };
        self.changed();
        result
    }
}
