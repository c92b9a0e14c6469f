//! `AdmissionReview`: the question, and what an answer must look like.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Operation, Write};
use crate::meta::{self, str_at};
use crate::names;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// What a webhook answers.
pub(super) struct Answer {
    pub(super) patch: Option<json_patch::Patch>,
    pub(super) warnings: Vec<String>,
    /// The `Status` that goes with a refusal; `{}` when there is none.
    pub(super) refusal: Option<Value>,
}

/// The uid of a question, and the question.
pub(super) fn request(write: Write<'_>, object: Option<&Value>) -> (String, Value) {
    let resource = write.place.resource;
    let uid = names::uuid();
    let (group, version, kind) = match (write.subresource, &resource.scale) {
        ("scale", Some(_)) => ("autoscaling", "v1", "Scale"),
        _ => (resource.group.as_str(), resource.version.as_str(), resource.kind.as_str()),
    };
    let kind = json!({"group": group, "version": version, "kind": kind});
    let plural = json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
    let mut request = json!({
        "uid": uid,
        "kind": kind, "requestKind": kind,
        "resource": plural, "requestResource": plural,
        "name": write.name,
        "operation": write.operation.name(),
        "userInfo": {"username": write.place.caller.user.name, "groups": write.place.caller.user.all_groups()},
        "object": object.filter(|_| write.operation != Operation::Delete),
        "oldObject": write.old,
        "dryRun": write.dry_run,
        "options": options(write),
    });
    if resource.namespaced {
        request["namespace"] = write.place.namespace.into();
    }
    if resource.table.as_str() == "namespaces" {
        request["namespace"] = write.name.into();
    }
    if !write.subresource.is_empty() {
        request["subResource"] = write.subresource.into();
        request["requestSubResource"] = write.subresource.into();
    }
    (uid, json!({"kind": KIND, "apiVersion": API_VERSION, "request": request}))
}

fn options(write: Write<'_>) -> Value {
    let kind = match write.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    for (key, value) in write.options.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    if write.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    options
}

/// Reads an answer to the question with this uid.
pub(super) fn answer(body: &[u8], uid: &str, mutating: bool) -> Result<Answer, String> {
    let review: Value = serde_json::from_slice(body).map_err(|error| format!("it is no JSON: {error}"))?;
    let response = review.get("response").filter(|response| response.is_object());
    let response = response.ok_or("webhook response was absent")?;
    let given = str_at(response, &["uid"]).unwrap_or_default();
    if given != uid {
        return Err(format!("expected response.uid={uid:?}, got {given:?}"));
    }
    let (version, kind) = (str_at(&review, &["apiVersion"]), str_at(&review, &["kind"]));
    if (version, kind) != (Some(API_VERSION), Some(KIND)) {
        return Err(format!(
            "expected webhook response of {API_VERSION}, Kind={KIND}, got {}, Kind={}",
            version.unwrap_or_default(),
            kind.unwrap_or_default()
        ));
    }
    let warnings = response.get("warnings").and_then(Value::as_array).into_iter().flatten();
    let allowed = response.get("allowed").and_then(Value::as_bool).unwrap_or(false);
    Ok(Answer {
        patch: patch(response, mutating)?.filter(|_| allowed),
        warnings: warnings.filter_map(Value::as_str).map(str::to_owned).collect(),
        refusal: (!allowed).then(|| meta::at(response, &["status"]).cloned().unwrap_or(json!({}))),
    })
}

fn patch(response: &Value, mutating: bool) -> Result<Option<json_patch::Patch>, String> {
    let patch = str_at(response, &["patch"]).filter(|patch| !patch.is_empty());
    let kind = response.get("patchType").and_then(Value::as_str);
    let Some(patch) = patch else {
        return match kind {
            Some(_) if mutating => Err("webhook returned response.patchType but not response.patch".into()),
            Some(_) => Err("validating webhook may not return response.patchType".into()),
            None => Ok(None),
        };
    };
    if !mutating {
        return Err("validating webhook may not return response.patch".into());
    }
    match kind {
        None => return Err("webhook returned response.patch but not response.patchType".into()),
        Some("JSONPatch") => {}
        Some(other) => return Err(format!("unsupported patch type {other:?}")),
    }
    let bytes = STANDARD.decode(patch).map_err(|error| format!("response.patch is not base64: {error}"))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| format!("received undecodable patch in webhook response: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(response: &Value, mutating: bool) -> Result<Answer, String> {
        let review = json!({"apiVersion": API_VERSION, "kind": KIND, "response": response});
        answer(review.to_string().as_bytes(), "u", mutating)
    }

    #[test]
    fn answers() {
        let patch = STANDARD.encode(r#"[{"op": "add", "path": "/a", "value": 1}]"#);
        let mutated =
            read(&json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": patch}), true)
                .unwrap();
        assert!(mutated.patch.is_some() && mutated.refusal.is_none());
        let refused =
            read(&json!({"uid": "u", "allowed": false, "status": {"message": "no"}}), false).unwrap();
        assert_eq!(refused.refusal.unwrap()["message"], "no");
        for (response, mutating, part) in [
            (json!({"uid": "x", "allowed": true}), true, "expected response.uid=\"u\", got \"x\""),
            (json!({"uid": "u", "allowed": true, "patch": "e30="}), true, "but not response.patchType"),
            (json!({"uid": "u", "allowed": true, "patch": "e30="}), false, "may not return response.patch"),
            (json!(null), true, "webhook response was absent"),
        ] {
            let error = read(&response, mutating).err().unwrap_or_default();
            assert!(error.contains(part), "{error}");
        }
        assert!(answer(b"no", "u", true).is_err());
    }
}
