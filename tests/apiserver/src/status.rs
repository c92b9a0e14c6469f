//! Errors as the API reports them: a `Status` object with a reason, details and causes.

use std::borrow::Cow;
use std::fmt;

use hyper::StatusCode;
use serde_json::{Value, json};

/// One offending field of an object: a cause in a 422 answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// Path as a person would write it, e.g. `spec.subnets[0].ipv4`.
    pub(crate) field: String,
    /// The machine-readable cause, e.g. `FieldValueRequired`.
    pub(crate) reason: &'static str,
    /// What is wrong, e.g. `Required value`.
    pub(crate) message: String,
}

impl FieldError {
    pub(crate) fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self { field: field.into(), reason: "FieldValueRequired", message }
    }

    pub(crate) fn invalid(field: impl Into<String>, value: &Value, detail: impl fmt::Display) -> Self {
        let message = format!("Invalid value: {value}: {detail}");
        Self { field: field.into(), reason: "FieldValueInvalid", message }
    }

    /// As [`invalid`](Self::invalid), for a value that may be too large to repeat.
    pub(crate) fn invalid_of(
        field: impl Into<String>,
        value: Option<&Value>,
        detail: impl fmt::Display,
    ) -> Self {
        match value {
            Some(value) => Self::invalid(field, value, detail),
            None => {
                let message = format!("Invalid value: {detail}");
                Self { field: field.into(), reason: "FieldValueInvalid", message }
            }
        }
    }

    pub(crate) fn type_invalid(field: impl Into<String>, value: &Value, detail: impl fmt::Display) -> Self {
        Self { reason: "FieldValueTypeInvalid", ..Self::invalid(field, value, detail) }
    }

    pub(crate) fn not_supported(field: impl Into<String>, value: &Value, supported: &[Value]) -> Self {
        let list: Vec<String> = supported.iter().map(Value::to_string).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
        Self { field: field.into(), reason: "FieldValueNotSupported", message }
    }

    pub(crate) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        let message = format!("Duplicate value: {value}");
        Self { field: field.into(), reason: "FieldValueDuplicate", message }
    }

    /// As [`duplicate`](Self::duplicate), for a value that may be too large to repeat.
    pub(crate) fn duplicate_of(field: impl Into<String>, value: Option<&Value>) -> Self {
        match value {
            Some(value) => Self::duplicate(field, value),
            None => {
                Self { field: field.into(), reason: "FieldValueDuplicate", message: "Duplicate value".into() }
            }
        }
    }

    pub(crate) fn forbidden(field: impl Into<String>, detail: impl fmt::Display) -> Self {
        let message = format!("Forbidden: {detail}");
        Self { field: field.into(), reason: "FieldValueForbidden", message }
    }

    /// Whether the object is too broken for its schema's rules to be evaluated.
    pub(crate) fn blocks_rules(&self) -> bool {
        let blocking = [
            "FieldValueNotSupported",
            "FieldValueRequired",
            "FieldValueTooLong",
            "FieldValueTooMany",
            "FieldValueTypeInvalid",
        ];
        blocking.contains(&self.reason)
    }

    pub(crate) fn rules_not_checked() -> Self {
        let detail = "some validation rules were not checked because the object was invalid; \
                      correct the existing errors to complete validation";
        Self::invalid("<nil>", &Value::Null, detail)
    }

    fn cause(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// A refused request. Boxed: it travels in every `Result` of the crate.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .0.message)]
pub(crate) struct ApiError(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: StatusCode,
    reason: Cow<'static, str>,
    message: String,
    details: Value,
}

pub(crate) type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    fn new(code: StatusCode, reason: impl Into<Cow<'static, str>>, message: String, details: Value) -> Self {
        Self(Box::new(Inner { code, reason: reason.into(), message, details }))
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message.into(), Value::Null)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized".into(), Value::Null)
    }

    pub(crate) fn forbidden(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("{} \"{name}\" is forbidden: {why}", qualified(group, plural)),
            json!({"name": name, "group": group, "kind": plural}),
        )
    }

    /// Rules do not allow it: `asked` says what.
    pub(crate) fn not_allowed(group: &str, resource: &str, name: &str, asked: impl fmt::Display) -> Self {
        let plural = resource.split('/').next().unwrap_or_default();
        let object = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        Self::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("{}{object} is forbidden: {asked}", qualified(group, plural)),
            json!({"name": name, "group": group, "kind": plural}),
        )
    }

    pub(crate) fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("{} \"{name}\" not found", qualified(group, plural)),
            json!({"name": name, "group": group, "kind": plural}),
        )
    }

    /// The path itself names nothing this server has.
    pub(crate) fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource".into(),
            json!({}),
        )
    }

    pub(crate) fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", qualified(group, plural)),
            json!({"name": name, "group": group, "kind": plural}),
        )
    }

    pub(crate) fn conflict(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, plural)),
            json!({"name": name, "group": group, "kind": plural}),
        )
    }

    /// An optimistic update lost: somebody wrote the object in between.
    pub(crate) fn modified(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict(group, plural, name, MODIFIED)
    }

    /// Another field manager owns what a server-side apply wants to change.
    pub(crate) fn apply_conflict(conflicts: &[(String, String)]) -> Self {
        let plural = if conflicts.len() == 1 { "conflict" } else { "conflicts" };
        let list: Vec<String> =
            conflicts.iter().map(|(manager, path)| format!("conflict with {manager}: {path}")).collect();
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(manager, path)| {
                json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": path})
            })
            .collect();
        Self::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!("Apply failed with {} {plural}: {}", conflicts.len(), list.join("\n")),
            json!({"causes": causes}),
        )
    }

    pub(crate) fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut list: Vec<String> = errors.iter().map(FieldError::to_string).collect();
        list.dedup();
        let text = if let [one] = list.as_slice() { one.clone() } else { format!("[{}]", list.join(", ")) };
        let causes: Vec<Value> = errors.iter().map(FieldError::cause).collect();
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{} \"{name}\" is invalid: {text}", qualified(group, kind)),
            json!({"name": name, "group": group, "kind": kind, "causes": causes}),
        )
    }

    /// An admission webhook says no: its status, named after the webhook.
    pub(crate) fn denied(webhook: &str, status: &Value) -> Self {
        let text = |key: &str| status.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let denied = format!("admission webhook {webhook:?} denied the request");
        let message = match text("message").or_else(|| text("reason")) {
            Some(why) => format!("{denied}: {why}"),
            None => format!("{denied} without explanation"),
        };
        let code = status.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        let code = code.filter(|code| *code >= 400).and_then(|code| StatusCode::from_u16(code).ok());
        let details = status.get("details").cloned().unwrap_or(Value::Null);
        let reason = text("reason").unwrap_or_default().to_owned();
        Self::new(code.unwrap_or(StatusCode::BAD_REQUEST), reason, message, details)
    }

    /// A patch that cannot be applied to the object as it is.
    pub(crate) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message.into(), Value::Null)
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message.into(), Value::Null)
    }

    /// The client knows a resource version that this server has not reached.
    pub(crate) fn too_large_version(asked: u64, current: u64) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            format!("Too large resource version: {asked}, current: {current}"),
            json!({"retryAfterSeconds": 1, "causes": [
                {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}),
        )
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource".into(),
            json!({}),
        )
    }

    pub(crate) fn unsupported_media(given: &str, supported: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format ({given}) - accepted media types include: {supported}"
            ),
            Value::Null,
        )
    }

    pub(crate) fn too_many_requests(message: impl Into<String>, causes: &Value) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequests",
            message.into(),
            json!({"causes": causes, "retryAfterSeconds": 1}),
        )
    }

    pub(crate) fn not_implemented(what: &str) -> Self {
        let message = format!("{what} is not implemented by this embedded API server");
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message, Value::Null)
    }

    /// An error for which the real server has no reason.
    pub(crate) fn unexplained(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message.into(), Value::Null)
    }

    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {message}"),
            Value::Null,
        )
    }

    pub(crate) fn code(&self) -> StatusCode {
        self.0.code
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.0.reason == "NotFound"
    }

    /// A concurrent write came first; a patch may simply try again.
    pub(crate) fn is_race(&self) -> bool {
        self.0.reason == "Conflict" && self.0.message.ends_with(MODIFIED)
    }

    /// The answer's body.
    pub(crate) fn status(&self) -> Value {
        let inner = &self.0;
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": inner.message, "code": inner.code.as_u16(),
        });
        if !inner.reason.is_empty() {
            status["reason"] = inner.reason.as_ref().into();
        }
        if !inner.details.is_null() {
            status["details"] = inner.details.clone();
        }
        status
    }
}

fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}
