//! AdmissionReview documents: what is asked, and what is answered.

use coil_api::validate::{Findings, Violation};
use k8s_openapi::ByteString;
use kube::core::{
    DynamicObject, Status,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, META_KIND},
    response::{StatusCause, StatusDetails},
};
use serde_json::{Map, Value, json};

pub use kube::core::admission::Operation;

use super::names::Webhook;

/// A document that asks nothing that can be answered; the HTTP answer says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No JSON, or not the fields of a review.
    #[error("the body is no AdmissionReview: {0}")]
    Json(String),
    /// Another document, or another version.
    #[error(
        "the document is {kind} of {version:?}; this server knows AdmissionReview of admission.k8s.io/v1 and v1beta1"
    )]
    Type {
        /// What it calls itself.
        kind: String,
        /// Its API version.
        version: String,
    },
    /// A review without a request.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// A request about something else.
    #[error(
        "the request is about {got}, and this path judges {wanted}; check the rules of the webhook configuration"
    )]
    Resource {
        /// What it is about.
        got: String,
        /// What the path is for.
        wanted: String,
    },
}

/// A request for an answer about one object.
#[derive(Debug)]
pub struct Question {
    request: AdmissionRequest<DynamicObject>,
    /// The object as it would be stored; null when it goes.
    pub object: Value,
    /// The object as it is stored; null when there is none.
    pub old: Value,
}

/// Why an object is refused that nothing is known to be wrong with, or that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The object is not what its kind is.
    Unreadable(String),
    /// What must be known to judge cannot be had.
    Unknown(String),
}

impl Question {
    /// Reads a document that came to one of the paths of `webhook`.
    ///
    /// # Errors
    /// Says what is wrong with the document.
    pub fn read(body: &[u8], webhook: &Webhook) -> Result<Self, Malformed> {
        let review: AdmissionReview<DynamicObject> =
            serde_json::from_slice(body).map_err(|e| Malformed::Json(e.to_string()))?;
        let version = review.types.api_version.as_str();
        if review.types.kind != META_KIND
            || !matches!(version, "admission.k8s.io/v1" | "admission.k8s.io/v1beta1")
        {
            return Err(Malformed::Type { kind: review.types.kind, version: review.types.api_version });
        }
        let request: AdmissionRequest<DynamicObject> = review.try_into().map_err(|_| Malformed::NoRequest)?;
        let about = &request.resource;
        if about.group != coil_api::names::GROUP || about.resource != webhook.resource {
            let wanted = format!("{}.{}", webhook.resource, coil_api::names::GROUP);
            return Err(Malformed::Resource { got: format!("{}.{}", about.resource, about.group), wanted });
        }
        let value =
            |o: &Option<DynamicObject>| serde_json::to_value(o).map_err(|e| Malformed::Json(e.to_string()));
        Ok(Self { object: value(&request.object)?, old: value(&request.old_object)?, request })
    }

    /// What happens to the object.
    #[must_use]
    pub fn operation(&self) -> &Operation {
        &self.request.operation
    }

    /// Whether it is about the object itself, not about its status or scale.
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.request.sub_resource.as_deref().unwrap_or_default().is_empty()
    }

    /// The object's name, empty while the server has still to make one up.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.request.name
    }

    /// The object for a log line.
    #[must_use]
    pub fn subject(&self) -> String {
        match &self.request.namespace {
            Some(namespace) if !namespace.is_empty() => format!("{namespace}/{}", self.request.name),
            _ => self.request.name.clone(),
        }
    }

    /// Who asks, for a log line.
    #[must_use]
    pub fn user(&self) -> &str {
        self.request.user_info.username.as_deref().unwrap_or_default()
    }

    /// The answer that lets the object pass, with changes to it.
    #[must_use]
    pub fn allow(&self, patch: &[Value]) -> Value {
        let mut document = document(AdmissionResponse::from(&self.request));
        if !patch.is_empty() {
            let text = Value::from(patch).to_string().into_bytes();
            document["response"]["patchType"] = json!("JSONPatch");
            document["response"]["patch"] = json!(ByteString(text));
        }
        document
    }

    /// The answer that findings give.
    #[must_use]
    pub fn judged(&self, webhook: &Webhook, findings: &Findings) -> Value {
        let mut response = AdmissionResponse::from(&self.request);
        if !findings.warnings.is_empty() {
            response.warnings = Some(findings.warnings.clone());
        }
        if !findings.violations.is_empty() {
            response.allowed = false;
            response.result = invalid(webhook, self.name(), &findings.violations);
        }
        document(response)
    }

    /// The answer when there is no judgement.
    #[must_use]
    pub fn refuse(&self, refusal: &Refusal) -> Value {
        let (code, reason, message) = match refusal {
            Refusal::Unreadable(why) => (400, "BadRequest", why),
            Refusal::Unknown(why) => (500, "InternalError", why),
        };
        let mut response = AdmissionResponse::from(&self.request);
        response.allowed = false;
        response.result = Status::failure(message, reason).with_code(code);
        document(response)
    }
}

/// The part of an object below `spec`, with an empty list where `list` is missing.
#[must_use]
pub(super) fn spec(object: &Value, list: &str) -> Value {
    let mut spec = object["spec"].as_object().cloned().unwrap_or_else(Map::new);
    let given = spec.entry(list).or_insert(Value::Null);
    if given.is_null() {
        *given = json!([]);
    }
    Value::Object(spec)
}

/// As the API server itself says it.
fn invalid(webhook: &Webhook, name: &str, violations: &[Violation]) -> Status {
    let texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
    let told = match &texts[..] {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    };
    let group = coil_api::names::GROUP;
    let message = format!("{}.{group} {name:?} is invalid: {told}", webhook.kind);
    let causes = violations
        .iter()
        .map(|v| StatusCause {
            reason: v.reason.cause().to_owned(),
            message: v.message(),
            field: v.field.clone(),
        })
        .collect();
    let details = StatusDetails {
        name: name.to_owned(),
        group: group.to_owned(),
        kind: webhook.kind.to_owned(),
        uid: String::new(),
        causes,
        retry_after_seconds: 0,
    };
    Status::failure(&message, "Invalid").with_code(422).with_details(details)
}

fn document(response: AdmissionResponse) -> Value {
    // Texts, numbers and lists of these: nothing that JSON cannot say.
    serde_json::to_value(response.into_review()).unwrap_or(Value::Null)
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
