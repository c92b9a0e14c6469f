//! Questions about users. They are answered, not stored.

use serde_json::{Value, json};

use crate::auth::User;
use crate::backend::Backend;
use crate::rbac::Attributes;

/// Group, plural, kind of a review; all are version `v1` and cluster-scoped.
pub(crate) const REVIEWS: &[(&str, &str, &str)] = &[
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    ("authentication.k8s.io", "tokenreviews", "TokenReview"),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview"),
];

/// To ask about somebody else is a right of its own.
pub(crate) fn question(user: &User, group: &str, plural: &str) -> Attributes {
    Attributes {
        user: user.name.clone(),
        groups: user.groups.clone(),
        verb: "create".into(),
        group: group.into(),
        resource: plural.into(),
        namespace: String::new(),
        name: String::new(),
    }
}

/// Answers a review, when the path is one.
pub(crate) fn review(
    backend: &Backend,
    user: &User,
    group: &str,
    plural: &str,
    mut body: Value,
) -> Option<Value> {
    let (_, _, kind) = REVIEWS.iter().find(|(have, name, _)| *have == group && *name == plural)?;
    let status = match *kind {
        "SelfSubjectReview" => json!({"userInfo": user_info(user)}),
        "TokenReview" => {
            let token = body["spec"]["token"].as_str().unwrap_or_default();
            match backend.tokens.user(token) {
                Some(user) => json!({"authenticated": true, "user": user_info(&user)}),
                None => json!({"authenticated": false, "error": "the token is not known"}),
            }
        }
        "SelfSubjectAccessReview" => access(backend, user, &body["spec"]),
        _ => {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let groups = body["spec"]["groups"].as_array().into_iter().flatten().map(text);
            access(backend, &User::new(text(&body["spec"]["user"]), groups), &body["spec"])
        }
    };
    body["apiVersion"] = format!("{group}/v1").into();
    body["kind"] = (*kind).into();
    body["status"] = status;
    Some(body)
}

/// Whether a user may do what a review's spec describes.
fn access(backend: &Backend, user: &User, spec: &Value) -> Value {
    let attributes = &spec["resourceAttributes"];
    let text = |field: &str| attributes[field].as_str().unwrap_or_default().to_owned();
    let resource = match text("subresource") {
        sub if sub.is_empty() => text("resource"),
        sub => format!("{}/{sub}", text("resource")),
    };
    let asked = Attributes {
        user: user.name.clone(),
        groups: user.groups.clone(),
        verb: text("verb"),
        group: text("group"),
        resource,
        namespace: text("namespace"),
        name: text("name"),
    };
    json!({"allowed": backend.authorizer.allows(user, &asked)})
}

fn user_info(user: &User) -> Value {
    json!({"username": user.name, "groups": user.all_groups()})
}
