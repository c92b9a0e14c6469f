//! The loop: watch events into the index, decisions out of it, writes beside it.

use std::{
    collections::HashSet,
    fmt::Debug,
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
use tracing::{error, info, warn};

use super::{
    index::Index,
    metrics::Metrics,
    work::Key,
    write::{Outcome, WriteError, carry_out},
};
use crate::{program::Ready, queue::Queue};

/// How many writes run at once.
const WRITERS: usize = 16;

/// What a user may set.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time between two collections of blocks whose node is gone. One runs at start.
    pub gc_interval: Duration,
}

type Guarded<K> = watcher::Event<DeserializeGuard<K>>;

enum Event {
    Pool(Guarded<AddressPool>),
    Block(Guarded<AddressBlock>),
    Request(Guarded<BlockRequest>),
    Node(watcher::Event<PartialObjectMeta<Node>>),
}

/// Runs until dropped; to be called by the leader alone.
///
/// # Errors
/// When the metrics cannot be registered.
pub async fn run(client: Client, options: Options, registry: &Registry, ready: Ready) -> Result<()> {
    let mut metrics = Metrics::new(registry).context("cannot register metrics")?;
    let unread = "pools, blocks, requests and nodes are not all read yet";
    ready.send_replace(Some(unread.to_owned()));
    let mut controller = Controller::new(client.clone());
    let mut events = select_all([
        watch::<AddressPool>(&client).map(Event::Pool).boxed(),
        watch::<AddressBlock>(&client).map(Event::Block).boxed(),
        watch::<BlockRequest>(&client).map(Event::Request).boxed(),
        nodes(&client).map(Event::Node).boxed(),
    ]);
    let mut collect = tokio::time::interval(options.gc_interval.max(Duration::from_secs(1)));
    collect.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_synced = false;
    loop {
        let synced = controller.synced.all();
        if synced {
            if !was_synced {
                info!("serving block requests");
                ready.send_replace(None);
                was_synced = true;
            }
            controller.start_work();
            metrics.update(&controller.index);
        }
        let due = controller.queue.due();
        tokio::select! {
            Some(event) = events.next() => controller.observe(event),
            Some(ended) = controller.running.join_next() => controller.finish(ended?),
            _ = collect.tick(), if synced => {
                for key in controller.index.orphans() {
                    controller.queue.touch(key);
                }
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
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

fn nodes(client: &Client) -> impl Stream<Item = watcher::Event<PartialObjectMeta<Node>>> + use<> {
    events(
        "nodes".to_owned(),
        watcher(Api::<PartialObjectMeta<Node>>::all(client.clone()), watcher::Config::default()),
    )
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

/// Which kinds were read completely once.
#[derive(Debug, Default)]
struct Synced {
    pools: bool,
    blocks: bool,
    requests: bool,
    nodes: bool,
}

impl Synced {
    fn all(&self) -> bool {
        self.pools && self.blocks && self.requests && self.nodes
    }
}

struct Controller {
    client: Client,
    index: Index,
    queue: Queue<Key>,
    running: JoinSet<(Key, Option<String>, Result<Outcome, WriteError>)>,
    synced: Synced,
    /// What the running list of each kind has brought so far.
    listed: [HashSet<String>; 4],
}

impl Controller {
    fn new(client: Client) -> Self {
        Self {
            client,
            index: Index::default(),
            queue: Queue::default(),
            running: JoinSet::new(),
            synced: Synced::default(),
            listed: Default::default(),
        }
    }

    fn observe(&mut self, event: Event) {
        let keys = match event {
            Event::Pool(event) => self.pool(event),
            Event::Block(event) => self.block(event),
            Event::Request(event) => self.request(event),
            Event::Node(event) => {
                self.node(event);
                Vec::new()
            }
        };
        keys.into_iter().for_each(|key| self.queue.touch(key));
    }

    fn pool(&mut self, event: Guarded<AddressPool>) -> Vec<Key> {
        let listed = &mut self.listed[0];
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitDone => {
                self.synced.pools = true;
                return self.index.retain_pools(listed);
            }
            watcher::Event::Delete(pool) => return self.index.delete_pool(&pool.name_any()),
            watcher::Event::InitApply(pool) | watcher::Event::Apply(pool) => {
                listed.insert(pool.name_any());
                let spec = pool.0.as_ref().map_err(|e| e.error.clone());
                let keys = self.index.apply_pool(pool.meta(), spec);
                if let Some(Err(e)) = self.index.pools.get(&pool.name_any()).map(|p| &p.layout) {
                    error!(pool = pool.name_any(), error = e, "malformed AddressPool gives no blocks");
                }
                return keys;
            }
        }
        Vec::new()
    }

    fn block(&mut self, event: Guarded<AddressBlock>) -> Vec<Key> {
        let listed = &mut self.listed[1];
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitDone => {
                self.synced.blocks = true;
                return self.index.retain_blocks(listed);
            }
            watcher::Event::Delete(block) => {
                return self.index.delete_block(&block.name_any(), &block.uid().unwrap_or_default());
            }
            watcher::Event::InitApply(block) | watcher::Event::Apply(block) => {
                listed.extend(block.uid());
                if let Err(e) = &block.0 {
                    error!(block = block.name_any(), error = %e, "malformed AddressBlock");
                }
                return self.index.apply_block(block.meta(), block.0.as_ref().ok());
            }
        }
        Vec::new()
    }

    fn request(&mut self, event: Guarded<BlockRequest>) -> Vec<Key> {
        let listed = &mut self.listed[2];
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitDone => {
                self.synced.requests = true;
                self.index.retain_requests(listed);
            }
            watcher::Event::Delete(request) => {
                self.index.delete_request(&request.name_any(), &request.uid().unwrap_or_default());
            }
            watcher::Event::InitApply(request) | watcher::Event::Apply(request) => {
                listed.extend(request.uid());
                let object = request.0.as_ref().map_err(|e| e.error.clone());
                return self.index.apply_request(request.meta(), object);
            }
        }
        Vec::new()
    }

    fn node(&mut self, event: watcher::Event<PartialObjectMeta<Node>>) {
        let listed = &mut self.listed[3];
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitDone => {
                self.synced.nodes = true;
                self.index.retain_nodes(listed);
            }
            watcher::Event::Delete(node) => self.index.delete_node(&node.name_any()),
            watcher::Event::InitApply(node) | watcher::Event::Apply(node) => {
                listed.insert(node.name_any());
                self.index.apply_node(&node.name_any());
            }
        }
    }

    /// Decides about what is queued, until all writers are busy.
    fn start_work(&mut self) {
        while self.running.len() < WRITERS {
            let now = Instant::now();
            let Some(key) = self.queue.next(now) else { return };
            let Some(work) = self.index.decide(&key) else {
                self.queue.done(key, true, now);
                continue;
            };
            let request = work.request().map(str::to_owned);
            let client = self.client.clone();
            self.running.spawn(async move { (key, request, carry_out(&client, work).await) });
        }
    }

    fn finish(&mut self, (key, request, result): (Key, Option<String>, Result<Outcome, WriteError>)) {
        let mut ok = true;
        match result {
            Ok(Outcome::Done) => {}
            Ok(Outcome::Created { block, answered }) => {
                self.index.apply_block(&block.metadata, Some(&block));
                ok = answered;
            }
            Ok(Outcome::Taken(block)) => {
                self.index.apply_block(&block.metadata, Some(&block));
                request.iter().for_each(|uid| self.index.forget(uid));
                self.queue.touch(key.clone());
            }
            // The event that made it stale may be behind us already: look again, but not in a spin.
            Ok(Outcome::Stale) => ok = false,
            Err(e) => {
                ok = false;
                warn!(error = %e, "trying again");
            }
        }
        self.queue.done(key, ok, Instant::now());
    }
}
