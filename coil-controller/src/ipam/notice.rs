//! What people should hear of, and telling them by Kubernetes Events.

use std::{collections::HashMap, sync::Arc, time::Duration};

use coil_api::crd::{AddressBlock, AddressPool, BlockRequest};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tracing::warn;

/// The name that Events are reported by.
const REPORTER: &str = "coil-ipam-controller";
/// The same thing about the same object is told at most this often; the API server counts.
const AGAIN: Duration = Duration::from_secs(60);
/// Longer queues mean an API server in trouble, which Events would only make worse.
const WAITING: usize = 256;

/// Kind of object that a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum About {
    /// An AddressPool.
    Pool,
    /// An AddressBlock.
    Block,
    /// A BlockRequest.
    Request,
}

/// Why; the Event's reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The pool has no block for a request.
    OutOfBlocks,
    /// The pool has room again.
    BlocksAvailable,
    /// The object cannot be used as it is.
    Malformed,
    /// The pool shares addresses with another.
    Overlap,
}

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Kind of the object.
    pub about: About,
    /// Its name.
    pub name: Arc<str>,
    /// Its UID.
    pub uid: String,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub note: String,
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Self::OutOfBlocks => "OutOfBlocks",
            Self::BlocksAvailable => "BlocksAvailable",
            Self::Malformed => "Malformed",
            Self::Overlap => "Overlap",
        }
    }

    fn action(self) -> &'static str {
        match self {
            Self::OutOfBlocks | Self::BlocksAvailable => "Allocate",
            Self::Malformed | Self::Overlap => "Validate",
        }
    }
}

impl Notice {
    fn reference(&self) -> ObjectReference {
        fn of<K: Resource<DynamicType = ()>>(notice: &Notice) -> ObjectReference {
            ObjectReference {
                api_version: Some(K::api_version(&()).into_owned()),
                kind: Some(K::kind(&()).into_owned()),
                name: Some(notice.name.to_string()),
                uid: Some(notice.uid.clone()),
                ..ObjectReference::default()
            }
        }
        match self.about {
            About::Pool => of::<AddressPool>(self),
            About::Block => of::<AddressBlock>(self),
            About::Request => of::<BlockRequest>(self),
        }
    }

    fn event(&self) -> Event {
        let type_ = match self.reason {
            Reason::BlocksAvailable => EventType::Normal,
            Reason::OutOfBlocks | Reason::Malformed | Reason::Overlap => EventType::Warning,
        };
        Event {
            type_,
            reason: self.reason.text().to_owned(),
            note: Some(self.note.clone()),
            action: self.reason.action().to_owned(),
            secondary: None,
        }
    }
}

/// Passes notices on to a task that writes Events.
pub(super) struct Teller {
    queue: mpsc::Sender<Notice>,
    task: JoinHandle<()>,
    told: HashMap<(String, Reason), (Instant, String)>,
}

impl Drop for Teller {
    fn drop(&mut self) {
        // Only the leader tells.
        self.task.abort();
    }
}

impl Teller {
    pub(super) fn new(client: Client) -> Self {
        let (queue, mut notices) = mpsc::channel::<Notice>(WAITING);
        let recorder = Recorder::new(client, Reporter::from(REPORTER));
        let task = tokio::spawn(async move {
            while let Some(notice) = notices.recv().await {
                if let Err(e) = recorder.publish(&notice.event(), &notice.reference()).await {
                    warn!(object = %notice.name, reason = notice.reason.text(), error = %e, "cannot write an Event");
                }
            }
        });
        Self { queue, task, told: HashMap::new() }
    }

    pub(super) fn tell(&mut self, notice: Notice) {
        let now = Instant::now();
        self.told.retain(|_, (at, _)| now.duration_since(*at) < AGAIN);
        let key = (notice.uid.clone(), notice.reason);
        if self.told.get(&key).is_some_and(|(_, note)| *note == notice.note) {
            return;
        }
        warn_or_info(&notice);
        self.told.insert(key, (now, notice.note.clone()));
        if self.queue.try_send(notice).is_err() {
            warn!("too many Events are waiting; one is only logged");
        }
    }
}

fn warn_or_info(notice: &Notice) {
    let (object, reason, note) = (&*notice.name, notice.reason.text(), &*notice.note);
    match notice.reason {
        Reason::BlocksAvailable => tracing::info!(object, reason, "{note}"),
        Reason::OutOfBlocks | Reason::Malformed | Reason::Overlap => warn!(object, reason, "{note}"),
    }
}
