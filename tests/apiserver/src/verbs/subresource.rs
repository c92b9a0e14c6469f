//! Subresources with their own kinds: scale, binding, eviction, token.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::delete::{DeleteOptions, delete};
use super::write::{Owner, Part, overwrite};
use super::{Place, WriteOptions};
use crate::auth::User;
use crate::meta;
use crate::patch::{self, PatchKind};
use crate::registry::ScalePaths;
use crate::selector;
use crate::status::{ApiError, FieldError, Result};

fn keys(path: &str) -> Vec<&str> {
    path.split('.').filter(|key| !key.is_empty()).collect()
}

pub(super) fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let number = |path: &str| meta::at(object, &keys(path)).and_then(Value::as_i64).unwrap_or(0);
    let selector = match &paths.selector {
        Some(path) => meta::str_at(object, &keys(path)).unwrap_or_default().to_owned(),
        None => selector::label_selector_text(&object["spec"]["selector"]),
    };
    let metadata = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];
    let metadata: serde_json::Map<String, Value> = metadata
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), object["metadata"].get(key)?.clone())))
        .collect();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number(&paths.spec)},
        "status": {"replicas": number(&paths.status), "selector": selector},
    })
}

fn paths<'a>(place: Place<'a>) -> Result<&'a ScalePaths> {
    place.resource.scale.as_ref().ok_or_else(ApiError::no_such_path)
}

/// The scale of an object.
pub(crate) fn get_scale(place: Place<'_>, name: &str) -> Result<Value> {
    let object = place.backend.get(place.resource, place.namespace, name)?;
    Ok(scale_of(object.value(), paths(place)?))
}

/// Sets the replicas from a whole Scale.
pub(crate) async fn put_scale(
    place: Place<'_>,
    name: &str,
    scale: &Value,
    options: &WriteOptions,
) -> Result<Value> {
    let paths = paths(place)?;
    let replicas = &scale["spec"]["replicas"];
    let Some(replicas) = replicas.as_i64().filter(|number| *number >= 0) else {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(ApiError::invalid("autoscaling", "Scale", name, &[error]));
    };
    loop {
        let current = place.backend.get(place.resource, place.namespace, name)?;
        let mut object = current.value().clone();
        match meta::field(scale, "resourceVersion") {
            "" => meta::metadata_mut(&mut object).remove("resourceVersion"),
            version => meta::metadata_mut(&mut object).insert("resourceVersion".into(), version.into()),
        };
        let mut slot = &mut object;
        for key in keys(&paths.spec) {
            slot = meta::as_map(slot).entry(key).or_insert(Value::Null);
        }
        *slot = replicas.into();
        match overwrite(place, &current, object, Part::Scale, options, Owner::Updater).await {
            Ok(stored) => return Ok(scale_of(stored.value(), paths)),
            Err(error) if error.is_race() && meta::field(scale, "resourceVersion").is_empty() => {}
            Err(error) => return Err(error),
        }
    }
}

/// Patches the scale.
pub(crate) async fn patch_scale(
    place: Place<'_>,
    name: &str,
    kind: PatchKind,
    body: &Value,
    options: &WriteOptions,
) -> Result<Value> {
    let kind = if kind == PatchKind::Json { PatchKind::Json } else { PatchKind::Merge };
    let mut scale = patch::patch(kind, &get_scale(place, name)?, body)?;
    if meta::field(body, "resourceVersion").is_empty() {
        meta::metadata_mut(&mut scale).remove("resourceVersion");
    }
    put_scale(place, name, &scale, options).await
}

/// Puts a pod on a node.
pub(crate) fn bind(place: Place<'_>, name: &str, body: &Value, options: &WriteOptions) -> Result<()> {
    let node = meta::str_at(body, &["target", "name"]).unwrap_or_default().to_owned();
    if node.is_empty() {
        let error = FieldError::required("target.name", "");
        return Err(ApiError::invalid("", "Binding", name, &[error]));
    }
    let current = place.backend.get(place.resource, place.namespace, name)?;
    let mut pod = current.value().clone();
    if let Some(bound) = meta::str_at(&pod, &["spec", "nodeName"]).filter(|bound| !bound.is_empty()) {
        let why = format!("pod {name} is already assigned to node {bound:?}");
        return Err(ApiError::conflict("", "pods/binding", name, why));
    }
    meta::child_mut(&mut pod, "spec").insert("nodeName".into(), node.into());
    meta::metadata_mut(&mut pod);
    if options.dry_run {
        return Ok(());
    }
    place.backend.replace(place.resource, pod, current.version())?;
    Ok(())
}

/// Deletes a pod as its disruption budgets allow.
pub(crate) async fn evict(place: Place<'_>, name: &str, body: &Value, options: &WriteOptions) -> Result<()> {
    let pod = place.backend.get(place.resource, place.namespace, name)?;
    let budgets = place.backend.registry.builtin("policy", "poddisruptionbudgets");
    let (budgets, _) = place.backend.store.list(&budgets.table, Some(place.namespace));
    for budget in budgets {
        let budget = budget.value();
        let covered = selector::label_selector_matches(&budget["spec"]["selector"], pod.value());
        let allowed =
            meta::at(budget, &["status", "disruptionsAllowed"]).and_then(Value::as_i64).unwrap_or(0);
        if covered && allowed == 0 {
            let why = format!("The disruption budget {} needs more healthy pods", meta::name(budget));
            let causes = json!([{"reason": "DisruptionBudget", "message": why}]);
            let message = "Cannot evict pod as it would violate the pod's disruption budget.";
            return Err(ApiError::too_many_requests(message, &causes));
        }
    }
    let delete_options = body.get("deleteOptions").cloned().unwrap_or(Value::Null);
    let delete_options = DeleteOptions::parse(&delete_options)?.with_query(None, None, options.dry_run)?;
    delete(place, name, &delete_options).await?;
    Ok(())
}

/// Issues a token for a service account.
pub(crate) fn issue_token(place: Place<'_>, name: &str, mut body: Value) -> Result<Value> {
    place.backend.get(place.resource, place.namespace, name)?;
    let token = place.backend.tokens.issue(User::service_account(place.namespace, name));
    let seconds = body["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
    let expires = Timestamp::now() + SignedDuration::from_secs(seconds.max(0));
    body["kind"] = "TokenRequest".into();
    body["apiVersion"] = "authentication.k8s.io/v1".into();
    meta::metadata_mut(&mut body).insert("name".into(), name.into());
    meta::metadata_mut(&mut body).insert("namespace".into(), place.namespace.into());
    meta::child_mut(&mut body, "spec").insert("expirationSeconds".into(), seconds.into());
    meta::default_to(
        meta::child_mut(&mut body, "spec"),
        "audiences",
        json!(["https://kubernetes.default.svc"]),
    );
    body["status"] = json!({"token": token, "expirationTimestamp": meta::timestamp(expires)});
    Ok(body)
}
