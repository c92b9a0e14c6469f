//! Delete, one object or many.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Place;
use super::write::may_go;
use crate::admission::{Operation, Write};
use crate::backend::Backend;
use crate::meta::{self, FINALIZER_FOREGROUND, FINALIZER_ORPHAN};
use crate::selector::Selector;
use crate::status::{ApiError, Result};
use crate::store::Object;

/// What happens to dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Propagation {
    /// They go after the owner.
    #[default]
    Background,
    /// They go before the owner.
    Foreground,
    /// They stay.
    Orphan,
}

/// How to delete.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    grace_seconds: Option<i64>,
    propagation: Propagation,
    uid: Option<String>,
    version: Option<String>,
    dry_run: bool,
}

impl Propagation {
    fn name(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

impl DeleteOptions {
    /// The options as webhooks see them.
    fn shown(&self) -> Value {
        let mut options = json!({"propagationPolicy": self.propagation.name()});
        if let Some(seconds) = self.grace_seconds {
            options["gracePeriodSeconds"] = seconds.into();
        }
        options
    }

    /// From a `DeleteOptions` body, or null.
    pub(crate) fn parse(body: &Value) -> Result<Self> {
        let propagation = match body.get("propagationPolicy").and_then(Value::as_str) {
            None | Some("" | "Background") => Propagation::Background,
            Some("Foreground") => Propagation::Foreground,
            Some("Orphan") => Propagation::Orphan,
            Some(other) => {
                return Err(ApiError::bad_request(format!("propagationPolicy: {other:?} is not known")));
            }
        };
        let precondition = |key: &str| meta::str_at(body, &["preconditions", key]).map(str::to_owned);
        Ok(Self {
            grace_seconds: body.get("gracePeriodSeconds").and_then(Value::as_i64),
            propagation,
            uid: precondition("uid"),
            version: precondition("resourceVersion"),
            dry_run: body.get("dryRun").and_then(|list| list.get(0)).is_some_and(|mode| mode == "All"),
        })
    }

    /// With what the query parameters say as well.
    pub(crate) fn with_query(
        mut self,
        grace_seconds: Option<u64>,
        propagation: Option<&str>,
        dry_run: bool,
    ) -> Result<Self> {
        if let Some(seconds) = grace_seconds {
            self.grace_seconds = i64::try_from(seconds).ok();
        }
        if let Some(policy) = propagation {
            self.propagation = Self::parse(&json!({"propagationPolicy": policy}))?.propagation;
        }
        self.dry_run |= dry_run;
        Ok(self)
    }
}

/// What a deletion did.
pub(crate) enum Deleted {
    /// The object is gone.
    Gone(Arc<Object>),
    /// The object waits for its finalizers, its contents, or its kubelet.
    Waiting(Arc<Object>),
}

/// Deletes an object, or marks it as being deleted.
pub(crate) async fn delete(place: Place<'_>, name: &str, options: &DeleteOptions) -> Result<Deleted> {
    loop {
        match once(place, name, options).await {
            // A precondition on the version is checked again on the next round.
            Err(error) if error.is_race() => {}
            done => return done,
        }
    }
}

async fn once(place: Place<'_>, name: &str, options: &DeleteOptions) -> Result<Deleted> {
    let Place { backend, resource, namespace, .. } = place;
    let current = backend.get(resource, namespace, name)?;
    let object = current.value();
    check_preconditions(place, object, options)?;
    ask_webhooks(place, object, options).await?;
    let mut new = object.clone();
    let grace = grace(place, object, options);
    let was = meta::at(object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    let metadata = meta::metadata_mut(&mut new);
    if !metadata.contains_key("deletionTimestamp") || was.is_some_and(|was| grace < was) {
        let at = Timestamp::now() + SignedDuration::from_secs(grace);
        metadata.insert("deletionTimestamp".into(), meta::timestamp(at).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    match options.propagation {
        Propagation::Background => {}
        Propagation::Foreground => meta::add_finalizer(&mut new, FINALIZER_FOREGROUND),
        Propagation::Orphan => meta::add_finalizer(&mut new, FINALIZER_ORPHAN),
    }
    if resource.table.as_str() == "namespaces" {
        meta::child_mut(&mut new, "status").insert("phase".into(), "Terminating".into());
    }
    let gone = may_go(&new);
    if options.dry_run {
        let shown = Object::new(new, current.version());
        return Ok(if gone { Deleted::Gone(shown) } else { Deleted::Waiting(shown) });
    }
    if gone {
        return backend.remove(resource, object, current.version()).map(Deleted::Gone);
    }
    let stored = backend.replace(resource, new, current.version())?;
    backend.collect(Backend::key(resource, namespace, name));
    Ok(Deleted::Waiting(stored))
}

async fn ask_webhooks(place: Place<'_>, object: &Value, options: &DeleteOptions) -> Result<()> {
    let admission = &place.backend.admission;
    if admission.is_silent() {
        return Ok(());
    }
    let write = Write {
        place,
        operation: Operation::Delete,
        name: meta::name(object),
        subresource: "",
        old: Some(object),
        dry_run: options.dry_run,
        options: &options.shown(),
    };
    // There is nothing to change; the mutating ones may still refuse.
    admission.mutate(write, &mut Value::Null).await?;
    admission.validate(write, None).await
}

fn check_preconditions(place: Place<'_>, object: &Value, options: &DeleteOptions) -> Result<()> {
    let resource = place.resource;
    let checks = [
        ("UID", &options.uid, "uid", "deleted and then recreated"),
        ("ResourceVersion", &options.version, "resourceVersion", "modified"),
    ];
    for (what, wanted, field, happened) in checks {
        let have = meta::field(object, field);
        if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != have) {
            let why = format!(
                "the {what} in the precondition ({wanted}) does not match the {what} in record ({have}). \
                 The object might have been {happened}"
            );
            return Err(ApiError::conflict(&resource.group, &resource.kind, meta::name(object), why));
        }
    }
    Ok(())
}

/// How long a pod that runs on a node gets; everything else gets no time.
fn grace(place: Place<'_>, object: &Value, options: &DeleteOptions) -> i64 {
    let scheduled = meta::str_at(object, &["spec", "nodeName"]).is_some_and(|node| !node.is_empty());
    let over = matches!(meta::str_at(object, &["status", "phase"]), Some("Succeeded" | "Failed"));
    if place.resource.table.as_str() != "pods" || !scheduled || over {
        return 0;
    }
    let own = meta::at(object, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
    options.grace_seconds.or(own).unwrap_or(30).max(0)
}

/// Deletes what a selector matches; returns the objects as they were.
pub(crate) async fn collection(
    place: Place<'_>,
    namespace: Option<&str>,
    selector: &Selector,
    options: &DeleteOptions,
) -> Result<Vec<Arc<Object>>> {
    let (objects, _) = place.backend.store.list(&place.resource.table, namespace);
    let mut deleted = Vec::new();
    for object in objects.into_iter().filter(|object| selector.matches(object.value())) {
        let place = Place { namespace: meta::namespace(object.value()), ..place };
        match delete(place, meta::name(object.value()), options).await {
            Ok(_) => deleted.push(object),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}
