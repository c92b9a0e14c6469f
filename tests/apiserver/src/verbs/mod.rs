//! What can be done with objects. Functions here know nothing of HTTP.

mod check;
mod decode;
mod delete;
mod list;
mod patch;
mod reviews;
mod subresource;
mod view;
mod watch;
mod write;

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::auth::User;
use crate::backend::Backend;
use crate::registry::Resource;

pub(crate) use delete::{DeleteOptions, Deleted, collection as delete_collection, delete};
pub(crate) use list::{ListOptions, Pages, get, list};
pub(crate) use patch::patch;
pub(crate) use reviews::{REVIEWS, question, review};
pub(crate) use subresource::{bind, evict, get_scale, issue_token, patch_scale, put_scale};
pub(crate) use view::{ListMeta, list as shown_list, object as shown};
pub(crate) use watch::{WatchOptions, watch};
pub(crate) use write::{Outcome, Part, create, create_unasked, may_go, update};

/// Where a call works, and for whom: a resource in a namespace (empty for cluster scope).
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) resource: &'a Resource,
    pub(crate) namespace: &'a str,
    pub(crate) caller: &'a Caller,
}

/// Who asks, and what to warn them of, whatever becomes of the request.
pub(crate) struct Caller {
    pub(crate) user: Arc<User>,
    warnings: Mutex<Vec<String>>,
}

impl Caller {
    pub(crate) fn new(user: Arc<User>) -> Self {
        Self { user, warnings: Mutex::default() }
    }

    /// Adds a warning, once.
    pub(crate) fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
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
    /// Who writes: the name that owned fields are remembered under.
    pub(crate) manager: String,
    /// Take fields that others applied.
    pub(crate) force: bool,
    pub(crate) validation: FieldValidation,
}

impl WriteOptions {
    /// The options as webhooks see them.
    fn shown(&self) -> Value {
        let mut options = json!({});
        if !self.manager.is_empty() {
            options["fieldManager"] = self.manager.as_str().into();
        }
        if self.validation == FieldValidation::Strict {
            options["fieldValidation"] = "Strict".into();
        }
        options
    }
}
