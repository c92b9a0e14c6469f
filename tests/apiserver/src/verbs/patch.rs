//! PATCH: read, change, write over; again when somebody wrote in between.

use serde_json::{Value, json};

use super::decode::decode;
use super::write::{ATTEMPTS, Outcome, Owner, Part, create_as, overwrite};
use super::{Place, WriteOptions};
use crate::meta;
use crate::patch::apply::Applier;
use crate::patch::{self, PatchKind};
use crate::status::{ApiError, FieldError, Result};
use crate::strategy;

/// Patches an object; an apply patch creates it when it does not exist.
pub(crate) async fn patch(
    place: Place<'_>,
    name: &str,
    part: Part,
    kind: PatchKind,
    body: &Value,
    options: &WriteOptions,
) -> Result<Outcome> {
    let resource = place.resource;
    if kind == PatchKind::Strategic && resource.custom {
        return Err(ApiError::unsupported_media(
            "application/strategic-merge-patch+json",
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        ));
    }
    if kind == PatchKind::Apply && options.manager.is_empty() {
        let error = FieldError::required("fieldManager", "is required for apply patch");
        return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
    }
    let mut attempt = 0;
    loop {
        attempt += 1;
        let done = once(place, name, part, kind, body, options).await;
        match done {
            Err(error) if error.is_race() && attempt < ATTEMPTS && !has_version(body) => {}
            done => return done,
        }
    }
}

fn has_version(body: &Value) -> bool {
    !meta::field(body, "resourceVersion").is_empty()
}

async fn once(
    place: Place<'_>,
    name: &str,
    part: Part,
    kind: PatchKind,
    body: &Value,
    options: &WriteOptions,
) -> Result<Outcome> {
    let resource = place.resource;
    let current = match place.backend.get(resource, place.namespace, name) {
        Ok(current) => current,
        Err(error) if error.is_not_found() && kind == PatchKind::Apply && part == Part::Main => {
            let config = applied(place, part, &json!({}), body, options)?;
            return create_as(place, Some(name), config, options, Owner::Settled).await;
        }
        Err(error) => return Err(error),
    };
    let shown = strategy::from_storage(resource, current.value());
    let live = shown.as_ref().unwrap_or(current.value());
    let patched = match kind {
        PatchKind::Apply => applied(place, part, live, body, options)?,
        _ => patch::patch(kind, live, body)?,
    };
    let given = meta::name(&patched);
    if given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let uid = meta::uid(&patched);
    if !uid.is_empty() && !meta::uid(live).is_empty() && uid != meta::uid(live) {
        let error = FieldError::invalid("metadata.uid", &uid.into(), "field is immutable");
        return Err(ApiError::invalid(&resource.group, &resource.kind, name, &[error]));
    }
    let mut object = decode(place, patched, options)?;
    if !has_version(body) && kind != PatchKind::Json {
        meta::metadata_mut(&mut object).remove("resourceVersion");
    }
    let owner = if kind == PatchKind::Apply { Owner::Settled } else { Owner::Updater };
    let stored = overwrite(place, &current, object, part, options, owner).await?;
    Ok(Outcome { object: stored, created: false })
}

fn applied(
    place: Place<'_>,
    part: Part,
    live: &Value,
    body: &Value,
    options: &WriteOptions,
) -> Result<Value> {
    let resource = place.resource;
    let api_version = resource.api_version();
    // Unknown fields are refused or go before they are remembered as owned.
    decode(place, body.clone(), options)?;
    let mut config = body.clone();
    resource.schema().prune(&mut config);
    let applier = Applier {
        manager: &options.manager,
        force: options.force,
        subresource: (part == Part::Status).then_some("status"),
        api_version: &api_version,
        schema: resource.schema(),
        builtin: !resource.custom,
    };
    applier.apply(live, &config)
}
