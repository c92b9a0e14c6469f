//! A controller and an agent as processes: each has a runtime of its own, and what dies leaves nothing but
//! the requests that it sent.

use std::{collections::BTreeSet, time::Instant};

use coil_agent::ipam::{Allocation, AttachmentId, BlockEvent, IpamError, NodeIpam};
use coil_controller::ipam::{Controller, Event};
use ipnet::IpNet;
use kube::{Resource, ResourceExt, runtime::watcher};
use prometheus::Registry;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::api::{ApiModel, State};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

/// Lets every task run until it waits for something that is not in this process.
fn settle(runtime: &Runtime) {
    runtime.block_on(async {
        for _ in 0..40 {
            tokio::task::yield_now().await;
        }
    });
}

/// How far one watch of one process is.
pub(crate) struct Cursor {
    plural: &'static str,
    /// Only objects with this `coil.cybozu.com/node`.
    node: Option<String>,
    at: Option<usize>,
}

impl Cursor {
    fn new(plural: &'static str, node: Option<String>) -> Self {
        Self { plural, node, at: None }
    }

    fn selects(&self, object: &Value) -> bool {
        let label = object["metadata"]["labels"]["coil.cybozu.com/node"].as_str();
        self.node.as_deref().is_none_or(|node| label == Some(node))
    }

    /// A complete list, and the watch goes on from there.
    fn list<K: DeserializeOwned>(&mut self, api: &State) -> Vec<watcher::Event<K>> {
        self.at = Some(api.history.len());
        let objects = api.all(self.plural).into_iter().filter(|o| self.selects(o));
        let objects = objects.map(|o| watcher::Event::InitApply(serde_json::from_value(o).unwrap()));
        [watcher::Event::Init].into_iter().chain(objects).chain([watcher::Event::InitDone]).collect()
    }

    /// The next news, if there is any. The first is a list.
    fn next<K: DeserializeOwned>(&mut self, api: &State) -> Vec<watcher::Event<K>> {
        let Some(mut at) = self.at else { return self.list(api) };
        while let Some(change) = api.history.get(at) {
            at += 1;
            self.at = Some(at);
            if change.plural == self.plural && self.selects(&change.object) {
                let object = serde_json::from_value(change.object.clone()).unwrap();
                let deleted = change.kind == "DELETED";
                return vec![if deleted {
                    watcher::Event::Delete(object)
                } else {
                    watcher::Event::Apply(object)
                }];
            }
        }
        Vec::new()
    }

    pub(crate) fn is_behind(&self, api: &State) -> bool {
        self.at.is_none_or(|at| at < api.history.len())
    }
}

/// coil-ipam-controller.
pub(crate) struct ControllerProcess {
    controller: Controller,
    pub(crate) registry: Registry,
    cursors: [Cursor; 4],
    runtime: Runtime,
}

impl ControllerProcess {
    pub(crate) fn start(api: &ApiModel) -> Self {
        let runtime = runtime();
        let registry = Registry::new();
        let inside = runtime.enter();
        let controller = Controller::new(api.client(), &registry).unwrap();
        let cursors =
            ["addresspools", "addressblocks", "blockrequests", "nodes"].map(|p| Cursor::new(p, None));
        drop(inside);
        Self { controller, registry, cursors, runtime }
    }

    pub(crate) fn behind(&self, api: &State) -> Vec<usize> {
        (0..4).filter(|n| self.cursors[*n].is_behind(api)).collect()
    }

    pub(crate) fn has_listed(&self, kind: usize) -> bool {
        self.cursors[kind].at.is_some()
    }

    /// One event of one kind arrives, or a whole new list of it.
    pub(crate) fn deliver(&mut self, api: &State, kind: usize, list: bool) {
        fn take<K: DeserializeOwned>(cursor: &mut Cursor, api: &State, list: bool) -> Vec<watcher::Event<K>> {
            if list { cursor.list(api) } else { cursor.next(api) }
        }
        let cursor = &mut self.cursors[kind];
        let events: Vec<Event> = match kind {
            0 => take(cursor, api, list).into_iter().map(Event::Pool).collect(),
            1 => take(cursor, api, list).into_iter().map(Event::Block).collect(),
            2 => take(cursor, api, list).into_iter().map(Event::Request).collect(),
            _ => take(cursor, api, list).into_iter().map(Event::Node).collect(),
        };
        let _inside = self.runtime.enter();
        events.into_iter().for_each(|event| self.controller.observe(event));
    }

    pub(crate) fn collect(&mut self) {
        if self.controller.synced() {
            self.controller.collect();
        }
    }

    pub(crate) fn run(&mut self, now: Instant) {
        for _ in 0..2 {
            settle(&self.runtime);
            let _inside = self.runtime.enter();
            self.controller.finish_ended(now);
            self.controller.start_work(now);
        }
        settle(&self.runtime);
    }
}

type Add = JoinHandle<Result<Allocation, IpamError>>;

/// coild, as far as addresses go.
pub(crate) struct AgentProcess {
    pub(crate) ipam: NodeIpam,
    cursor: Cursor,
    /// UIDs of blocks that it heard are being deleted, and of those that it hears of only now.
    leaving: BTreeSet<String>,
    heard: Vec<String>,
    events: mpsc::UnboundedSender<BlockEvent>,
    pub(crate) blocks: watch::Receiver<BTreeSet<IpNet>>,
    pub(crate) adds: Vec<(AttachmentId, Add)>,
    pub(crate) frees: Vec<(AttachmentId, JoinHandle<()>)>,
    gc: Option<JoinHandle<()>>,
    said: bool,
    /// It was told what table 119 has.
    pub(crate) told: bool,
    runtime: Runtime,
}

impl AgentProcess {
    pub(crate) fn start(api: &ApiModel, node: &str, found: Vec<Allocation>) -> Self {
        let runtime = runtime();
        let (events, receiver) = mpsc::unbounded_channel();
        let (sender, blocks) = watch::channel(BTreeSet::new());
        let inside = runtime.enter();
        let pause = std::time::Duration::ZERO;
        let stream = UnboundedReceiverStream::new(receiver);
        let ipam = NodeIpam::following(api.client(), node.to_owned(), sender, stream, pause);
        ipam.will_export();
        ipam.recover(found);
        drop(inside);
        let cursor = Cursor::new("addressblocks", Some(node.to_owned()));
        Self {
            ipam,
            cursor,
            leaving: BTreeSet::new(),
            heard: Vec::new(),
            events,
            blocks,
            adds: Vec::new(),
            frees: Vec::new(),
            gc: None,
            said: false,
            told: false,
            runtime,
        }
    }

    pub(crate) fn is_behind(&self, api: &State) -> bool {
        self.cursor.is_behind(api)
    }

    pub(crate) fn deliver(&mut self, api: &State, list: bool) {
        let events: Vec<BlockEvent> = if list { self.cursor.list(api) } else { self.cursor.next(api) };
        for event in events {
            if let watcher::Event::Apply(block) | watcher::Event::InitApply(block) = &event
                && block.meta().deletion_timestamp.is_some()
            {
                self.heard.extend(block.uid());
            }
            self.events.send(event).unwrap();
        }
    }

    /// Whether the agent said which blocks to export.
    pub(crate) fn said_blocks(&mut self) -> bool {
        self.said |= self.blocks.has_changed().unwrap_or_default();
        self.said
    }

    pub(crate) fn busy(&self, owner: &AttachmentId) -> bool {
        self.adds.iter().any(|(o, _)| o == owner) || self.frees.iter().any(|(o, _)| o == owner)
    }

    pub(crate) fn add(&mut self, pool: &str, owner: &AttachmentId) {
        let (ipam, pool, attachment) = (self.ipam.clone(), pool.to_owned(), owner.clone());
        let task = self.runtime.spawn(async move { ipam.allocate(&pool, &attachment).await });
        self.adds.push((owner.clone(), task));
    }

    pub(crate) fn free(&mut self, owner: &AttachmentId) {
        let (ipam, attachment) = (self.ipam.clone(), owner.clone());
        let task = self.runtime.spawn(async move { drop(ipam.free(&attachment).await) });
        self.frees.push((owner.clone(), task));
    }

    pub(crate) fn gc(&mut self) {
        if self.gc.as_ref().is_none_or(JoinHandle::is_finished) {
            let ipam = self.ipam.clone();
            self.gc = Some(self.runtime.spawn(async move {
                ipam.synced().await;
                // What fails is tried again.
                drop(ipam.gc().await);
            }));
        }
    }

    /// Whether it knew before its last run that this block is being deleted.
    pub(crate) fn knew_it_leaves(&self, uid: &str) -> bool {
        self.leaving.contains(uid)
    }

    /// What it heard for its last run is known in the next.
    pub(crate) fn remember(&mut self) {
        self.leaving.extend(self.heard.drain(..));
    }

    /// Runs; the ADDs that have ended.
    pub(crate) fn run(&mut self) -> Vec<(AttachmentId, Result<Allocation, IpamError>)> {
        settle(&self.runtime);
        self.frees.retain(|(_, task)| !task.is_finished());
        let (ended, still) = std::mem::take(&mut self.adds).into_iter().partition(|(_, t)| t.is_finished());
        self.adds = still;
        let runtime = &self.runtime;
        ended.into_iter().map(|(owner, task): (_, Add)| (owner, runtime.block_on(task).unwrap())).collect()
    }
}
