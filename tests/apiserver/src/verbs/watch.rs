//! Watches: first the state when it is asked for, then the history from a version on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::view;
use crate::auth::User;
use crate::backend::Backend;
use crate::http::negotiate::View;
use crate::meta;
use crate::registry::Resource;
use crate::selector::Selector;
use crate::status::{ApiError, Result};
use crate::store::{Change, Event, Object};

/// How often a quiet watch tells its client how far it is.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(30);
/// How long a watch lasts when the client does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);
/// How many bytes of events go out in one piece.
const PIECE: usize = 64 * 1024;

/// What a watch asks for.
pub(crate) struct WatchOptions {
    pub(crate) user: Arc<User>,
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
    pub(crate) view: View,
    /// Start after this version; `None` and 0 start with the present state.
    pub(crate) version: Option<u64>,
    pub(crate) bookmarks: bool,
    /// A streaming list: the present state, then a bookmark that says it was all.
    pub(crate) initial_events: bool,
    pub(crate) timeout: Option<u64>,
}

struct Watch {
    backend: Arc<Backend>,
    resource: Arc<Resource>,
    options: WatchOptions,
    /// Everything up to this version has been sent.
    version: u64,
    changed: watch::Receiver<u64>,
    initial: VecDeque<Arc<Object>>,
    initial_done: bool,
    first: bool,
    ends: Instant,
    next_bookmark: Instant,
    over: bool,
}

/// Starts a watch; the stream ends by itself at its timeout or when it cannot go on.
pub(crate) fn watch(
    backend: Arc<Backend>,
    resource: Arc<Resource>,
    options: WatchOptions,
) -> Result<impl Stream<Item = Bytes> + Send> {
    let changed = backend.store.subscribe(&resource.table);
    let newest = backend.store.version();
    let from = options.version.filter(|version| *version > 0);
    if let Some(version) = from.filter(|version| *version > newest) {
        return Err(ApiError::too_large_version(version, newest));
    }
    let (initial, version) = match from {
        Some(version) if !options.initial_events => (Vec::new(), version),
        _ => backend.store.list(&resource.table, options.namespace.as_deref()),
    };
    if backend.store.events_after(&resource.table, version).is_err() {
        return Err(too_old(version));
    }
    let timeout = options.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let watch = Watch {
        initial: initial.into_iter().filter(|object| options.selector.matches(object.value())).collect(),
        initial_done: !options.initial_events,
        backend,
        resource,
        version,
        changed,
        first: true,
        ends: Instant::now() + timeout,
        next_bookmark: Instant::now() + BOOKMARK_INTERVAL,
        over: false,
        options,
    };
    Ok(futures::stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) }))
}

fn too_old(version: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {version}"))
}

impl Watch {
    /// The next piece of the stream, or its end.
    async fn next(&mut self) -> Option<Bytes> {
        let piece = self.piece().await?;
        self.let_go().await.then_some(piece)
    }

    async fn piece(&mut self) -> Option<Bytes> {
        loop {
            if self.over {
                return None;
            }
            if let Some(piece) = self.initial() {
                return Some(piece);
            }
            self.changed.mark_unchanged();
            match self.events() {
                Some(piece) if !piece.is_empty() => return Some(piece),
                Some(_) => {}
                None => return None,
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.next_bookmark.min(self.ends)) => {
                    let ended = Instant::now() >= self.ends;
                    self.over = ended;
                    if self.options.bookmarks {
                        // Nothing is pending: this server is the client's equal up to its newest version.
                        self.catch_up();
                        self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
                        return Some(self.bookmark(false));
                    }
                    self.next_bookmark = self.ends;
                }
            }
        }
    }

    /// Waits while a test holds it back; false when its time is over before that ends.
    async fn let_go(&self) -> bool {
        let faults = &self.backend.faults;
        tokio::select! {
            biased;
            () = faults.until_let_go(&self.options.user.name, self.resource.table.as_str()) => true,
            () = tokio::time::sleep_until(self.ends) => false,
        }
    }

    fn catch_up(&mut self) {
        if let Ok((events, newest)) = self.backend.store.events_after(&self.resource.table, self.version)
            && events.is_empty()
        {
            self.version = newest;
        }
    }

    fn initial(&mut self) -> Option<Bytes> {
        let mut piece = Vec::new();
        while let Some(object) = self.initial.pop_front() {
            self.line(&mut piece, "ADDED", &object);
            if piece.len() > PIECE {
                return Some(piece.into());
            }
        }
        if !self.initial_done {
            self.initial_done = true;
            piece.extend_from_slice(&self.bookmark(true));
        }
        (!piece.is_empty()).then(|| piece.into())
    }

    fn events(&mut self) -> Option<Bytes> {
        let Ok((events, newest)) = self.backend.store.events_after(&self.resource.table, self.version) else {
            self.over = true;
            let status = too_old(self.version).status();
            return Some(format!("{}\n", json!({"type": "ERROR", "object": status})).into());
        };
        let mut piece = Vec::new();
        for event in events {
            if let Some((kind, object)) = self.seen(&event) {
                self.line(&mut piece, kind, &object);
            }
        }
        self.version = newest;
        Some(piece.into())
    }

    /// The event as this watch sees it: an object that starts to match is added, one that
    /// stops is deleted.
    fn seen(&self, event: &Event) -> Option<(&'static str, Arc<Object>)> {
        let options = &self.options;
        let namespace = meta::namespace(event.object.value());
        if options.namespace.as_deref().is_some_and(|wanted| wanted != namespace) {
            return None;
        }
        let matched = event.previous.as_ref().is_some_and(|old| options.selector.matches(old.value()));
        let matches = event.change != Change::Deleted && options.selector.matches(event.object.value());
        let object = event.object.clone();
        match (matched, matches) {
            (false, false) => None,
            (false, true) => Some(("ADDED", object)),
            (true, true) => Some(("MODIFIED", object)),
            (true, false) if event.change == Change::Deleted => Some(("DELETED", object)),
            // The client gets the last state that it knew, at the version of the change.
            (true, false) => {
                let last = event.previous.as_ref()?.value().clone();
                Some(("DELETED", Object::new(last, event.version())))
            }
        }
    }

    fn line(&mut self, out: &mut Vec<u8>, kind: &str, object: &Object) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        out.extend_from_slice(&view::watched(&self.resource, self.options.view, object, self.first));
        out.extend_from_slice(b"}\n");
        self.first = false;
    }

    fn bookmark(&self, initial_events_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": self.version.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.options.view {
            View::Full => {
                json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata})
            }
            View::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            View::Table(_) => json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"resourceVersion": self.version.to_string()}, "columnDefinitions": [], "rows": [
                    {"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                        "metadata": metadata}}]}),
        };
        format!("{}\n", json!({"type": "BOOKMARK", "object": object})).into()
    }
}
