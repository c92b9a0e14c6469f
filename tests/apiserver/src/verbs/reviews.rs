//! Questions about users. They are answered, not stored: everybody who is known may do
//! everything here.

use serde_json::{Value, json};

use crate::auth::{Tokens, User};

/// Group, plural, kind of a review; all are version `v1` and cluster-scoped.
pub(crate) const REVIEWS: &[(&str, &str, &str)] = &[
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    ("authentication.k8s.io", "tokenreviews", "TokenReview"),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    ("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview"),
];

/// Answers a review, when the path is one.
pub(crate) fn review(
    tokens: &Tokens,
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
            match tokens.user(token) {
                Some(user) => json!({"authenticated": true, "user": user_info(&user)}),
                None => json!({"authenticated": false, "error": "the token is not known"}),
            }
        }
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}], "incomplete": false}),
        _ => json!({"allowed": true, "reason": "this server does not restrict authenticated users"}),
    };
    body["apiVersion"] = format!("{group}/v1").into();
    body["kind"] = (*kind).into();
    body["status"] = status;
    Some(body)
}

fn user_info(user: &User) -> Value {
    json!({"username": user.name, "groups": user.all_groups()})
}
