//! The four kinds of PATCH.

pub(crate) mod apply;
mod fields;
mod lists;
pub(crate) mod managed;
mod merge;
mod strategic;

use serde_json::Value;

use crate::status::{ApiError, Result};

/// What the body of a PATCH is, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

const SUPPORTED: &str = "application/json-patch+json, application/merge-patch+json, \
                         application/strategic-merge-patch+json, application/apply-patch+yaml";

impl PatchKind {
    pub(crate) fn of(content_type: &str) -> Result<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            other => Err(ApiError::unsupported_media(other, SUPPORTED)),
        }
    }
}

/// Applies a patch that is not an apply patch to the current state.
pub(crate) fn patch(kind: PatchKind, current: &Value, body: &Value) -> Result<Value> {
    let mut patched = current.clone();
    match kind {
        PatchKind::Json => {
            let patch: json_patch::Patch = serde_json::from_value(body.clone())
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            json_patch::patch(&mut patched, &patch).map_err(|error| {
                ApiError::unprocessable(format!(
                    "the server rejected our request due to an error in our request: {error}"
                ))
            })?;
        }
        PatchKind::Merge => merge::merge(&mut patched, body),
        PatchKind::Strategic => strategic::merge(&mut patched, body)?,
        PatchKind::Apply => return Err(ApiError::internal("an apply patch came without its field manager")),
    }
    Ok(patched)
}
