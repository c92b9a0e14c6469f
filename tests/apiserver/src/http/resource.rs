//! Requests for resources and their objects.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::body::{self, Body};
use super::negotiate::{self, View};
use super::query::Query;
use super::route::Target;
use crate::auth::User;
use crate::backend::Backend;
use crate::meta;
use crate::patch::PatchKind;
use crate::registry::Resource;
use crate::status::{ApiError, Result};
use crate::verbs::{
    self, Caller, DeleteOptions, Deleted, ListMeta, ListOptions, Outcome, Part, Place, WatchOptions,
    WriteOptions,
};

/// Answers a request for a target; warnings go with the answer, a refusal included.
pub(super) async fn handle(
    backend: &Arc<Backend>,
    target: Target,
    request: Request<Incoming>,
    user: Arc<User>,
) -> Result<Response<Body>> {
    let caller = Caller::new(user);
    let answer = answer(backend, target, request, &caller).await;
    let mut response = answer.unwrap_or_else(|error| body::json(error.code(), &error.status()));
    body::warn(&mut response, &caller.warnings());
    Ok(response)
}

async fn answer(
    backend: &Arc<Backend>,
    target: Target,
    request: Request<Incoming>,
    caller: &Caller,
) -> Result<Response<Body>> {
    let (query, agent) = super::query_of(&request);
    let view = negotiate::view(request.headers(), query.get("includeObject"));
    let method = request.method().clone();
    let Target { resource, namespace, name, subresource } = target;
    let Some(name) = name else {
        return collection((backend, &resource, caller), namespace, (query, agent, view), request).await;
    };
    let namespace = namespace.unwrap_or_default();
    let place = Place { backend, resource: &resource, namespace: &namespace, caller };
    let options = query.write_options(&agent)?;
    if let Some(subresource) = subresource {
        return below(place, &name, &subresource, (&options, view), request).await;
    }
    match method {
        Method::GET if query.flag("watch") => {
            let named = crate::selector::Selector::parse(None, Some(&format!("metadata.name={name}")))?;
            let namespace = (!namespace.is_empty()).then_some(namespace);
            watch((backend, &resource, caller), namespace, named, &query, view)
        }
        Method::GET => {
            Ok(body::bytes(StatusCode::OK, verbs::get(backend, &resource, &namespace, &name, view)?))
        }
        Method::PUT => {
            let object = body::read(request).await?;
            Ok(written(&resource, view, &verbs::update(place, &name, Part::Main, object, &options).await?))
        }
        Method::PATCH => {
            let kind = PatchKind::of(content_type(&request))?;
            let patch = body::read(request).await?;
            Ok(written(
                &resource,
                view,
                &verbs::patch(place, &name, Part::Main, kind, &patch, &options).await?,
            ))
        }
        Method::DELETE => {
            let options = delete_options(&query, &body::read(request).await?)?;
            Ok(deleted(&resource, view, &verbs::delete(place, &name, &options).await?))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn content_type(request: &Request<Incoming>) -> &str {
    request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn written(resource: &Resource, view: View, outcome: &Outcome) -> Response<Body> {
    let code = if outcome.created { StatusCode::CREATED } else { StatusCode::OK };
    body::bytes(code, verbs::shown(resource, view, &outcome.object))
}

fn delete_options(query: &Query, body: &Value) -> Result<DeleteOptions> {
    let grace = query.number("gracePeriodSeconds")?;
    DeleteOptions::parse(body)?.with_query(grace, query.get("propagationPolicy"), query.dry_run())
}

/// What is gone is confirmed; what waits is shown.
fn deleted(resource: &Resource, view: View, deleted: &Deleted) -> Response<Body> {
    match deleted {
        Deleted::Waiting(object) => body::bytes(StatusCode::OK, verbs::shown(resource, view, object)),
        Deleted::Gone(object) => {
            let (name, uid) = (meta::name(object.value()), meta::uid(object.value()));
            let details = json!({"name": name, "group": resource.group, "kind": resource.plural, "uid": uid});
            body::json(StatusCode::OK, &success(&details))
        }
    }
}

fn success(details: &Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

async fn collection(
    (backend, resource, caller): (&Arc<Backend>, &Arc<Resource>, &Caller),
    namespace: Option<String>,
    (query, agent, view): (Query, String, View),
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    match *request.method() {
        Method::GET if query.flag("watch") => {
            watch((backend, resource, caller), namespace, query.selector()?, &query, view)
        }
        Method::GET => {
            let options = ListOptions {
                namespace,
                selector: query.selector()?,
                view,
                version: query.number("resourceVersion")?,
                limit: query.number("limit")?.unwrap_or(0),
                token: query.get("continue").map(str::to_owned),
            };
            Ok(body::bytes(StatusCode::OK, verbs::list(backend, resource, &options)?))
        }
        Method::POST => {
            let options = query.write_options(&agent)?;
            let object = body::read(request).await?;
            // Objects posted to the collection of all namespaces name their own.
            if resource.namespaced && namespace.is_none() {
                return Err(ApiError::method_not_allowed());
            }
            let namespace = namespace.unwrap_or_default();
            let place = Place { backend, resource, namespace: &namespace, caller };
            Ok(written(resource, view, &verbs::create(place, None, object, &options).await?))
        }
        Method::DELETE => {
            let selector = query.selector()?;
            let options = delete_options(&query, &body::read(request).await?)?;
            let place = Place { backend, resource, namespace: "", caller };
            let gone = verbs::delete_collection(place, namespace.as_deref(), &selector, &options).await?;
            let meta = ListMeta { version: backend.store.version(), ..ListMeta::default() };
            let objects = gone.iter().map(AsRef::as_ref);
            Ok(body::bytes(StatusCode::OK, verbs::shown_list(resource, view, objects, &meta)))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn watch(
    (backend, resource, caller): (&Arc<Backend>, &Arc<Resource>, &Caller),
    namespace: Option<String>,
    selector: crate::selector::Selector,
    query: &Query,
    view: View,
) -> Result<Response<Body>> {
    let options = WatchOptions {
        user: caller.user.clone(),
        namespace,
        selector,
        view,
        version: query.number("resourceVersion")?,
        bookmarks: query.flag("allowWatchBookmarks"),
        initial_events: query.flag("sendInitialEvents"),
        timeout: query.number("timeoutSeconds")?,
    };
    Ok(body::stream(verbs::watch(backend.clone(), resource.clone(), options)?))
}

/// Requests for a subresource of an object.
async fn below(
    place: Place<'_>,
    name: &str,
    subresource: &str,
    (options, view): (&WriteOptions, View),
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    let resource = place.resource;
    let method = request.method().clone();
    match subresource {
        "status" if resource.has_status => part(place, name, Part::Status, (options, view), request).await,
        "finalize" if resource.table.as_str() == "namespaces" && method == Method::PUT => {
            part(place, name, Part::Finalize, (options, view), request).await
        }
        "scale" if resource.scale.is_some() => {
            let scale = match method {
                Method::GET => verbs::get_scale(place, name)?,
                Method::PUT => verbs::put_scale(place, name, &body::read(request).await?, options).await?,
                Method::PATCH => {
                    let kind = PatchKind::of(content_type(&request))?;
                    verbs::patch_scale(place, name, kind, &body::read(request).await?, options).await?
                }
                _ => return Err(ApiError::method_not_allowed()),
            };
            Ok(body::json(StatusCode::OK, &scale))
        }
        _ if resource.subresources.iter().any(|known| known.name == subresource) => {
            if method != Method::POST {
                return Err(ApiError::method_not_allowed());
            }
            let posted = body::read(request).await?;
            match subresource {
                "token" => Ok(body::json(StatusCode::CREATED, &verbs::issue_token(place, name, posted)?)),
                "eviction" => {
                    verbs::evict(place, name, &posted, options).await?;
                    Ok(body::json(StatusCode::CREATED, &success(&Value::Null)))
                }
                _ => {
                    verbs::bind(place, name, &posted, options)?;
                    Ok(body::json(StatusCode::CREATED, &success(&Value::Null)))
                }
            }
        }
        "log" | "exec" | "attach" | "portforward" if resource.table.as_str() == "pods" => {
            verbs::get(place.backend, resource, place.namespace, name, View::Full)?;
            Err(ApiError::not_implemented(&format!("pods/{subresource}")))
        }
        _ => Err(ApiError::no_such_path()),
    }
}

async fn part(
    place: Place<'_>,
    name: &str,
    part: Part,
    (options, view): (&WriteOptions, View),
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    let resource = place.resource;
    match *request.method() {
        Method::GET => {
            let object = verbs::get(place.backend, resource, place.namespace, name, view)?;
            Ok(body::bytes(StatusCode::OK, object))
        }
        Method::PUT => {
            let object = body::read(request).await?;
            Ok(written(resource, view, &verbs::update(place, name, part, object, options).await?))
        }
        Method::PATCH => {
            let kind = PatchKind::of(content_type(&request))?;
            let patch = body::read(request).await?;
            Ok(written(resource, view, &verbs::patch(place, name, part, kind, &patch, options).await?))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}
