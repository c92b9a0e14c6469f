//! Reading objects.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::view::{self, ListMeta};
use crate::backend::Backend;
use crate::http::negotiate::View;
use crate::registry::Resource;
use crate::selector::Selector;
use crate::status::{ApiError, Result};
use crate::store::Object;

/// How many lists that are read in pages are remembered.
const REMEMBERED: usize = 64;

/// What a list asks for.
pub(crate) struct ListOptions {
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
    pub(crate) view: View,
    /// No older than this; it must have been reached.
    pub(crate) version: Option<u64>,
    /// Objects a page; 0 for all.
    pub(crate) limit: u64,
    /// Where the page before ended.
    pub(crate) token: Option<String>,
}

/// Lists that clients read in pages: all pages show the state of the first.
#[derive(Default)]
pub(crate) struct Pages(Mutex<VecDeque<Arc<Snapshot>>>);

/// The objects of a list, at its version.
struct Snapshot {
    objects: Vec<Arc<Object>>,
    version: u64,
    table: String,
    selective: bool,
}

impl Pages {
    fn remember(&self, snapshot: &Arc<Snapshot>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.iter().any(|have| Arc::ptr_eq(have, snapshot)) {
            if all.len() >= REMEMBERED {
                all.pop_front();
            }
            all.push_back(snapshot.clone());
        }
    }

    fn find(&self, table: &str, version: u64, count: usize) -> Option<Arc<Snapshot>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |have: &&Arc<Snapshot>| {
            have.table == table && have.version == version && have.objects.len() == count
        };
        all.iter().rev().find(is_it).cloned()
    }
}

/// One object.
pub(crate) fn get(
    backend: &Backend,
    resource: &Resource,
    namespace: &str,
    name: &str,
    view: View,
) -> Result<Bytes> {
    let object = backend.get(resource, namespace, name)?;
    Ok(view::object(resource, view, &object))
}

/// All objects that match, or a page of them.
pub(crate) fn list(backend: &Backend, resource: &Resource, options: &ListOptions) -> Result<Bytes> {
    let newest = backend.store.version();
    if let Some(version) = options.version.filter(|version| *version > newest) {
        return Err(ApiError::too_large_version(version, newest));
    }
    let (snapshot, from) = match &options.token {
        None => (Arc::new(taken(backend, resource, options)), 0),
        Some(token) => continued(backend, resource, token)?,
    };
    let limit = usize::try_from(options.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let to = from.saturating_add(limit).min(snapshot.objects.len());
    let left = snapshot.objects.len() - to;
    let mut meta = ListMeta { version: snapshot.version, token: None, remaining: None };
    if left > 0 {
        backend.pages.remember(&snapshot);
        meta.token = Some(token_of(&snapshot, to));
        meta.remaining = (!snapshot.selective).then_some(left);
    }
    let page = snapshot.objects[from.min(to)..to].iter().map(AsRef::as_ref);
    Ok(view::list(resource, options.view, page, &meta))
}

fn taken(backend: &Backend, resource: &Resource, options: &ListOptions) -> Snapshot {
    let (mut objects, version) = backend.store.list(&resource.table, options.namespace.as_deref());
    let selective = !options.selector.is_everything();
    if selective {
        objects.retain(|object| options.selector.matches(object.value()));
    }
    Snapshot { objects, version, table: resource.table.as_str().to_owned(), selective }
}

fn token_of(snapshot: &Snapshot, next: usize) -> String {
    let token =
        json!({"v": "meta.k8s.io/v1", "rv": snapshot.version, "next": next, "of": snapshot.objects.len()});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn continued(backend: &Backend, resource: &Resource, token: &str) -> Result<(Arc<Snapshot>, usize)> {
    let bytes = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
    let token: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let number = |key: &str| token.get(key).and_then(Value::as_u64);
    let (Some(version), Some(next), Some(count)) = (number("rv"), number("next"), number("of")) else {
        return Err(ApiError::bad_request("continue key is not valid: encoding is not valid"));
    };
    let (next, count) = (usize::try_from(next).unwrap_or(usize::MAX), usize::try_from(count).unwrap_or(0));
    match backend.pages.find(resource.table.as_str(), version, count) {
        Some(snapshot) => Ok((snapshot, next)),
        None => Err(ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new \
             list without the continue parameter.",
        )),
    }
}
