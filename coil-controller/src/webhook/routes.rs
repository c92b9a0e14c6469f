//! The HTTP side: two paths for each kind.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use coil_api::validate::Findings;
use serde_json::Value;
use tracing::{debug, info, warn};

use super::{
    names::Webhook,
    review::{Operation, Question, Refusal},
};

/// Longest document. An object has at most 1.5 MiB in etcd, and a review holds two.
const BODY_LIMIT: usize = 8 << 20;
/// Longest time for one request; an API server gives up after ten seconds by default.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Completes and judges the objects of one kind.
pub trait Judge: Send + Sync + 'static {
    /// Which ones.
    fn webhook(&self) -> Webhook;

    /// JSON patch operations that a new object gets.
    fn defaults(&self, object: &Value) -> Vec<Value>;

    /// What is wrong with an object that is made or changed.
    fn judge(&self, question: &Question) -> impl Future<Output = Result<Findings, Refusal>> + Send;
}

/// The paths of a judge.
pub fn routes<J: Judge>(judge: J) -> Router {
    let webhook = judge.webhook();
    Router::new()
        .route(webhook.mutate_path, post(mutate::<J>))
        .route(webhook.validate_path, post(validate::<J>))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(in_time))
        .with_state(Arc::new(judge))
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(TIME_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response(),
    }
}

async fn mutate<J: Judge>(State(judge): State<Arc<J>>, headers: HeaderMap, body: Bytes) -> Response {
    let question = match read(&judge.webhook(), &headers, &body) {
        Ok(question) => question,
        Err(error) => return *error,
    };
    let new = question.is_main() && *question.operation() == Operation::Create;
    let patch = if new { judge.defaults(&question.object) } else { Vec::new() };
    debug!(object = question.subject(), user = question.user(), operations = patch.len(), "completed");
    Json(question.allow(&patch)).into_response()
}

async fn validate<J: Judge>(State(judge): State<Arc<J>>, headers: HeaderMap, body: Bytes) -> Response {
    let webhook = judge.webhook();
    let question = match read(&webhook, &headers, &body) {
        Ok(question) => question,
        Err(error) => return *error,
    };
    if !question.is_main() || !matches!(question.operation(), Operation::Create | Operation::Update) {
        return Json(question.allow(&[])).into_response();
    }
    let (kind, object, user) = (webhook.kind, question.subject(), question.user());
    match judge.judge(&question).await {
        Ok(findings) => {
            for violation in &findings.violations {
                info!(kind, object, user, %violation, "refused");
            }
            Json(question.judged(&webhook, &findings)).into_response()
        }
        Err(refusal) => {
            let (Refusal::Unreadable(why) | Refusal::Unknown(why)) = &refusal;
            warn!(kind, object, user, why, "refused without a judgement");
            Json(question.refuse(&refusal)).into_response()
        }
    }
}

/// The question in a request, or the HTTP error that says what is wrong with it.
fn read(webhook: &Webhook, headers: &HeaderMap, body: &[u8]) -> Result<Question, Box<Response>> {
    let error = |status: StatusCode, text: String| {
        debug!(%status, text, "malformed request");
        Box::new((status, format!("{text}\n")).into_response())
    };
    let type_ = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if type_.split(';').next().map(str::trim) != Some("application/json") {
        let text = format!("the content type is {type_:?}; send application/json");
        return Err(error(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    Question::read(body, webhook).map_err(|e| error(StatusCode::BAD_REQUEST, e.to_string()))
}
