//! The loop: watch events into the index, decisions out of it, writes beside it.

use std::{
    fmt::{self, Debug},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use coil_api::crd::{AddressBlock, AddressPool, BlockRequest};
use futures::{Stream, StreamExt, stream::select_all};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{WatchStreamExt, watcher},
};
use prometheus::Registry;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{
    index::{Index, Kind},
    metrics::Metrics,
    notice::Teller,
    work::Key,
    write::{Outcome, WriteError, carry_out},
};
use crate::{program::Ready, queue::Queue};

/// How many writes run at once.
const WRITERS: usize = 32;

/// What a user may set.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time between two collections of blocks whose node is gone. One runs at start.
    pub gc_interval: Duration,
}

type Guarded<K> = watcher::Event<DeserializeGuard<K>>;

/// News from the API server.
#[derive(Debug)]
pub enum Event {
    /// Of AddressPools.
    Pool(Guarded<AddressPool>),
    /// Of AddressBlocks.
    Block(Guarded<AddressBlock>),
    /// Of BlockRequests.
    Request(Guarded<BlockRequest>),
    /// Of Nodes.
    Node(watcher::Event<PartialObjectMeta<Node>>),
}

/// Runs until dropped; to be called by the leader alone.
///
/// # Errors
/// When the metrics cannot be registered.
pub async fn run(client: Client, options: Options, registry: &Registry, ready: Ready) -> Result<()> {
    let unread = "pools, blocks, requests and nodes are not all read yet";
    ready.send_replace(Some(unread.to_owned()));
    let mut events = select_all([
        watch::<AddressPool>(&client).map(Event::Pool).boxed(),
        watch::<AddressBlock>(&client).map(Event::Block).boxed(),
        watch::<BlockRequest>(&client).map(Event::Request).boxed(),
        nodes(&client).map(Event::Node).boxed(),
    ]);
    let mut controller = Controller::new(client, registry).context("cannot register metrics")?;
    let mut collect = tokio::time::interval(options.gc_interval.max(Duration::from_secs(1)));
    collect.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_synced = false;
    loop {
        let synced = controller.synced();
        if synced && !was_synced {
            info!("serving block requests");
            // The lists were much larger than what is kept of them.
            coil_program::memory::trim();
            ready.send_replace(None);
            was_synced = true;
        }
        controller.start_work(Instant::now());
        let due = controller.due();
        let wake = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into());
        tokio::select! {
            // In this order: what was learnt from a write, what is due, and then news.
            biased;
            Some(ended) = controller.running.join_next() => controller.finish(ended?, Instant::now()),
            _ = collect.tick(), if synced => controller.collect(),
            () = wake, if due.is_some() => {}
            Some(event) = events.next() => controller.observe(event),
        }
    }
}

fn watch<K>(client: &Client) -> impl Stream<Item = Guarded<K>> + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let api = Api::<DeserializeGuard<K>>::all(client.clone());
    events(K::plural(&()).into_owned(), watcher(api, watcher::Config::default()))
}

/// Of nodes only the names matter; a Node is large, and written every few seconds.
fn nodes(client: &Client) -> impl Stream<Item = watcher::Event<PartialObjectMeta<Node>>> + use<> {
    let stream = watcher(Api::<PartialObjectMeta<Node>>::all(client.clone()), watcher::Config::default());
    events("nodes".to_owned(), stream)
}

/// The events of a watch; errors are logged, and the watch starts again by itself.
fn events<K: Send + 'static>(
    what: String,
    stream: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
) -> impl Stream<Item = watcher::Event<K>> {
    stream.default_backoff().filter_map(move |event| {
        let event = event.inspect_err(|e| warn!(error = %e, "watching {what}; trying again")).ok();
        async move { event }
    })
}

type Ended = (Key, Option<String>, Result<Outcome, WriteError>);

/// The controller between two events. Time is passed in; writes run in tasks of their own.
pub struct Controller {
    client: Client,
    index: Index,
    queue: Queue<Key>,
    running: JoinSet<Ended>,
    /// Which kinds were read completely once.
    synced: [bool; 4],
    metrics: Metrics,
    teller: Teller,
}

impl Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("index", &self.index)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl Controller {
    /// A controller that knows nothing yet. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the names of its metrics are taken in this registry.
    pub fn new(client: Client, registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            metrics: Metrics::new(registry)?,
            teller: Teller::new(client.clone()),
            client,
            index: Index::default(),
            queue: Queue::default(),
            running: JoinSet::new(),
            synced: [false; 4],
        })
    }

    /// Whether every kind was read completely. Nothing is decided before.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.synced.iter().all(|s| *s)
    }

    /// Looks for nodes that are gone, and then at their blocks.
    pub fn collect(&mut self) {
        self.queue.touch(Key::Nodes);
    }

    /// When something is to be tried again; with all writers busy, that waits for one of them.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.queue.due().filter(|_| self.running.len() < WRITERS)
    }

    /// Takes in news. Each kind's must be in order; kinds may lag behind each other.
    pub fn observe(&mut self, event: Event) {
        let (index, synced) = (&mut self.index, &mut self.synced);
        let keys = match event {
            Event::Pool(event) => news(
                (index, synced, Kind::Pools),
                event,
                |index, pool| index.apply_pool(pool.meta(), pool.0.as_ref().map_err(|e| e.error.clone())),
                |index, pool| index.delete_pool(&pool.name_any()),
            ),
            Event::Block(event) => news(
                (index, synced, Kind::Blocks),
                event,
                |index, block| index.apply_block(block.meta(), block.0.as_ref().map_err(|e| e.error.clone())),
                |index, block| {
                    index.delete_block(&block.name_any(), block.meta().uid.as_deref().unwrap_or_default())
                },
            ),
            Event::Request(event) => news(
                (index, synced, Kind::Requests),
                event,
                |index, request| {
                    index.apply_request(request.meta(), request.0.as_ref().map_err(|e| e.error.clone()))
                },
                |index, request| {
                    index.delete_request(
                        &request.name_any(),
                        request.meta().uid.as_deref().unwrap_or_default(),
                    )
                },
            ),
            Event::Node(event) => news(
                (index, synced, Kind::Nodes),
                event,
                |index, node| {
                    index.apply_node(&node.name_any());
                    Vec::new()
                },
                |index, node| {
                    index.delete_node(&node.name_any());
                    Vec::new()
                },
            ),
        };
        keys.into_iter().for_each(|key| self.queue.touch(key));
    }

    /// Decides about what is queued, until all writers are busy, and shows what changed.
    pub fn start_work(&mut self, now: Instant) {
        while self.synced() && self.running.len() < WRITERS {
            let Some(key) = self.queue.next(now) else { break };
            let Some(work) = self.index.decide(&key) else {
                self.queue.done(key, true, now);
                continue;
            };
            let request = work.request().map(str::to_owned);
            let client = self.client.clone();
            self.running.spawn(async move { (key, request, carry_out(&client, work).await) });
        }
        self.show();
    }

    /// Takes in the results of the writes that have ended.
    pub fn finish_ended(&mut self, now: Instant) {
        while let Some(ended) = self.running.try_join_next() {
            match ended {
                Ok(ended) => self.finish(ended, now),
                Err(e) => warn!(error = %e, "a write ended unexpectedly"),
            }
        }
    }

    fn finish(&mut self, (key, request, result): Ended, now: Instant) {
        let request = request.as_deref().unwrap_or_default();
        let (ok, keys) = match result {
            Ok(Outcome::Made { answered }) => (answered, self.index.made(request)),
            // Asked again, unless its event has come by then: another list may pass over its end.
            Ok(Outcome::There) => (false, Vec::new()),
            Ok(Outcome::Gone) => (true, self.index.gone(request)),
            Ok(Outcome::Taken) => (false, self.index.taken(request)),
            // Nothing was to be made: it was only asked.
            Ok(Outcome::Stale) | Err(_) if matches!(key, Key::Block(_)) => (false, Vec::new()),
            Ok(Outcome::Done) => (true, self.index.not_made(request)),
            // Its watch event is on the way, or never comes where nodes may not be watched.
            Ok(Outcome::NodeIsThere(node)) => {
                self.index.apply_node(&node);
                (true, vec![key.clone()])
            }
            Ok(Outcome::Nodes { known, listed }) => {
                self.index.listed_nodes(&known, &listed);
                (true, self.index.orphans())
            }
            // The event that made it stale may be behind us already: look again, but not in a spin.
            Ok(Outcome::Stale) => (false, self.index.not_made(request)),
            Err(e) => {
                warn!(error = %e, "trying again");
                (false, self.index.not_made(request))
            }
        };
        keys.into_iter().for_each(|key| self.queue.touch(key));
        self.queue.done(key, ok, now);
    }

    /// Shows what changed to people and to Prometheus.
    fn show(&mut self) {
        for (pool, counts) in self.index.changed_counts() {
            self.metrics.set(&pool, counts);
        }
        for notice in self.index.take_notices() {
            self.teller.tell(notice);
        }
    }
}

/// One event of one kind into the index.
fn news<K>(
    (index, synced, kind): (&mut Index, &mut [bool; 4], Kind),
    event: watcher::Event<K>,
    apply: impl FnOnce(&mut Index, &K) -> Vec<Key>,
    delete: impl FnOnce(&mut Index, &K) -> Vec<Key>,
) -> Vec<Key> {
    match event {
        watcher::Event::Init => {
            index.begin(kind);
            Vec::new()
        }
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => apply(index, &object),
        watcher::Event::Delete(object) => delete(index, &object),
        watcher::Event::InitDone => {
            synced[kind as usize] = true;
            index.end(kind)
        }
    }
}
