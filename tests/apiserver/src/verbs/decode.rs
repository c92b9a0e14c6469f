//! From the body of a write to an object of its resource.

use serde_json::Value;

use super::{FieldValidation, Place, WriteOptions};
use crate::meta;
use crate::registry::Resource;
use crate::status::{ApiError, Result};
use crate::strategy;

/// Checks what a body claims to be, drops unknown fields, fills in the schema's defaults.
/// Returns the object as it is to be stored.
pub(super) fn decode(place: Place<'_>, mut body: Value, options: &WriteOptions) -> Result<Value> {
    let resource = place.resource;
    check_kind(resource, &mut body)?;
    let schema = resource.schema();
    schema.drop_nulls(&mut body);
    if !resource.custom
        && let Some(error) = schema.type_errors(&body).first()
    {
        return Err(ApiError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: json: cannot unmarshal into field {error}",
            resource.kind, resource.version, resource.kind
        )));
    }
    let unknown: Vec<String> =
        schema.prune(&mut body).iter().map(|path| format!("unknown field {path:?}")).collect();
    match options.validation {
        FieldValidation::Strict if !unknown.is_empty() => {
            return Err(ApiError::bad_request(format!(
                "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
                resource.kind,
                resource.version,
                resource.kind,
                unknown.join(", ")
            )));
        }
        FieldValidation::Warn => unknown.into_iter().for_each(|warning| place.caller.warn(warning)),
        FieldValidation::Strict | FieldValidation::Ignore => {}
    }
    schema.fill_defaults(&mut body);
    strategy::to_storage(resource, &mut body);
    Ok(body)
}

fn check_kind(resource: &Resource, body: &mut Value) -> Result<()> {
    if !body.is_object() {
        return Err(ApiError::bad_request("the body of the request is not a JSON object"));
    }
    let version = resource.api_version();
    for (key, expected, what) in [("apiVersion", &version, "API version"), ("kind", &resource.kind, "kind")] {
        match body.get(key).and_then(Value::as_str) {
            Some(given) if given != expected && !given.is_empty() => {
                return Err(ApiError::bad_request(format!(
                    "the {what} in the data ({given}) does not match the expected {what} ({expected})"
                )));
            }
            _ => meta::as_map(body).insert(key.into(), expected.as_str().into()),
        };
    }
    Ok(())
}
