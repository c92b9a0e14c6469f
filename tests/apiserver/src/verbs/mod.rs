//! What can be done with objects. Functions here know nothing of HTTP.

mod decode;
mod delete;
mod list;
mod patch;
mod reviews;
mod subresource;
mod view;
mod watch;
mod write;

use crate::backend::Backend;
use crate::registry::Resource;

pub(crate) use delete::{DeleteOptions, Deleted, collection as delete_collection, delete};
pub(crate) use list::{get, list};
pub(crate) use patch::patch;
pub(crate) use reviews::{REVIEWS, review};
pub(crate) use subresource::{bind, evict, get_scale, issue_token, patch_scale, put_scale};
pub(crate) use view::{list as shown_list, object as shown};
pub(crate) use watch::{WatchOptions, watch};
pub(crate) use write::{Outcome, Part, create, may_go, update};

/// Where a call works: a resource in a namespace (empty for cluster scope).
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) resource: &'a Resource,
    pub(crate) namespace: &'a str,
}

/// What to do about fields that a schema does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// What all writes have in common.
#[derive(Debug, Clone)]
pub(crate) struct WriteOptions {
    /// Check everything, store nothing.
    pub(crate) dry_run: bool,
    /// Who applies.
    pub(crate) manager: String,
    /// Take fields that others applied.
    pub(crate) force: bool,
    pub(crate) validation: FieldValidation,
}
