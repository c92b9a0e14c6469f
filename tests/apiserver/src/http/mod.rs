//! The HTTP side: from a request to a call, from its result to a response.

mod body;
pub(crate) mod negotiate;
mod query;
mod resource;
mod route;

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::auth::User;
use crate::backend::Backend;
use crate::faults::HELD_WATCHES;
use crate::status::{ApiError, Result};
use crate::{discovery, openapi, verbs};
use body::Body;
use query::Query;

/// Answers one request; every error becomes a `Status`.
pub(crate) async fn serve(
    backend: Arc<Backend>,
    request: Request<Incoming>,
) -> std::result::Result<Response<Body>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match route(&backend, request).await {
        Ok(response) => response,
        Err(error) => body::json(error.code(), &error.status()),
    };
    tracing::debug!(%method, path, status = response.status().as_u16(), "request");
    Ok(response)
}

async fn route(backend: &Arc<Backend>, request: Request<Incoming>) -> Result<Response<Body>> {
    let path = request.uri().path().to_owned();
    let segments = route::segments(&path);
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    if let ["healthz" | "livez" | "readyz", ..] = parts.as_slice() {
        return Ok(body::text("ok"));
    }
    let user = backend.tokens.authenticate(request.headers())?;
    if request.method() == Method::GET
        && let Some(document) = document(backend, &request, &parts)
    {
        return document;
    }
    if let (&Method::POST, ["apis", group, "v1", plural]) = (request.method(), parts.as_slice())
        && verbs::REVIEWS.iter().any(|(have, name, _)| have == group && name == plural)
    {
        // Everybody may ask about himself.
        if !plural.starts_with("selfsubject") {
            backend.authorizer.check(&user, &verbs::question(&user, group, plural))?;
        }
        return review(backend, &user, (*group).to_owned(), (*plural).to_owned(), request).await;
    }
    if path == HELD_WATCHES {
        return hold_watches(backend, &user, request).await;
    }
    let target = route::target(&backend.registry, &segments)?;
    backend.authorizer.check(&user, &target.attributes(&user, &request))?;
    resource::handle(backend, target, request, user).await
}

/// Documents about the server itself.
fn document(
    backend: &Backend,
    request: &Request<Incoming>,
    parts: &[&str],
) -> Option<Result<Response<Body>>> {
    let snapshot = backend.registry.snapshot();
    let aggregated = negotiate::wants_aggregated_discovery(request.headers());
    let document = match parts {
        ["version"] => Some(discovery::version()),
        ["api"] if aggregated => return Some(Ok(body::aggregated(&discovery::aggregated(&snapshot, true)))),
        ["apis"] if aggregated => {
            return Some(Ok(body::aggregated(&discovery::aggregated(&snapshot, false))));
        }
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => Some(discovery::groups(&snapshot)),
        ["api", version] => discovery::resources(&snapshot, "", version),
        ["apis", group] => discovery::group(&snapshot, group),
        ["apis", group, version] => discovery::resources(&snapshot, group, version),
        ["openapi", "v3"] => Some(openapi::index(&snapshot)),
        ["openapi", "v3", "api", version] => openapi::document(&snapshot, "", version),
        ["openapi", "v3", "apis", group, version] => openapi::document(&snapshot, group, version),
        ["openapi", ..] => None,
        _ => return None,
    };
    let response = document.map(|document| body::json(StatusCode::OK, &document));
    Some(response.ok_or_else(ApiError::no_such_path))
}

async fn review(
    backend: &Backend,
    user: &User,
    group: String,
    plural: String,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    let body: Value = body::read(request).await?;
    let answer = verbs::review(backend, user, &group, &plural, body);
    answer.map(|answer| body::json(StatusCode::CREATED, &answer)).ok_or_else(ApiError::no_such_path)
}

async fn hold_watches(backend: &Backend, user: &User, request: Request<Incoming>) -> Result<Response<Body>> {
    if !user.is_master() {
        return Err(ApiError::no_such_path());
    }
    let held = match *request.method() {
        Method::POST => backend.faults.hold(body::read(request).await?)?,
        Method::DELETE => backend.faults.let_go(),
        _ => return Err(ApiError::method_not_allowed()),
    };
    Ok(body::json(StatusCode::OK, &held))
}

/// The parameters and the caller's program.
fn query_of(request: &Request<Incoming>) -> (Query, String) {
    let agent = request.headers().get(hyper::header::USER_AGENT).and_then(|value| value.to_str().ok());
    (Query::parse(request.uri().query()), agent.unwrap_or_default().to_owned())
}
