//! Secrets and role bindings.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::meta::{self, default_to};
use crate::status::FieldError;

/// `stringData` goes into `data`, encoded.
pub(super) fn secret(secret: &mut Value) {
    let map = meta::as_map(secret);
    default_to(map, "type", "Opaque");
    let Some(Value::Object(plain)) = map.remove("stringData") else { return };
    let data = map.entry("data").or_insert_with(|| Value::Object(Map::new()));
    for (key, text) in plain {
        let encoded = STANDARD.encode(text.as_str().unwrap_or_default());
        meta::as_map(data).insert(key, encoded.into());
    }
}

/// API groups of role references and subjects have defaults.
pub(super) fn role(object: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if let Some(Value::Object(reference)) = object.get_mut("roleRef") {
        default_to(reference, "apiGroup", GROUP);
    }
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(subject) = subject
            && subject.get("kind").is_some_and(|kind| kind != "ServiceAccount")
        {
            default_to(subject, "apiGroup", GROUP);
        }
    }
}

pub(super) fn validate_role(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    match old {
        Some(old) if old.get("roleRef") != object.get("roleRef") => {
            vec![FieldError::invalid("roleRef", &object["roleRef"], "cannot change roleRef")]
        }
        _ => Vec::new(),
    }
}
