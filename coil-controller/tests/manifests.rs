//! The manifests in `deploy/` and the names in the code are the same.

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

use coil_controller::webhook::names::{EGRESS, IPAM, Webhook};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// The documents of a manifest.
fn documents(part: &str) -> Vec<Value> {
    let path = format!("{}/../deploy/{part}/webhook.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap()).collect()
}

fn webhook(of: &Webhook, name: &str, path: &str, operations: &[&str]) -> Value {
    json!([{
        "name": name,
        "admissionReviewVersions": ["v1", "v1beta1"],
        "clientConfig": {"service": {"name": of.service(), "namespace": "kube-system", "path": path}},
        "failurePolicy": "Fail",
        "rules": [{
            "apiGroups": ["coil.cybozu.com"],
            "apiVersions": ["v2"],
            "operations": operations,
            "resources": [of.resource],
        }],
        "sideEffects": "None",
    }])
}

#[test]
fn manifests_say_what_the_programs_serve() {
    for of in [IPAM, EGRESS] {
        let documents = documents(of.part);
        let [mutating, validating, service] = &documents[..] else {
            panic!("three documents: {documents:#?}")
        };
        assert_eq!(mutating["kind"], "MutatingWebhookConfiguration");
        assert_eq!(mutating["metadata"]["name"], of.mutating());
        assert_eq!(mutating["webhooks"], webhook(&of, of.mutate_name, of.mutate_path, &["CREATE"]));
        assert_eq!(validating["kind"], "ValidatingWebhookConfiguration");
        assert_eq!(validating["metadata"]["name"], of.validating());
        let both = ["CREATE", "UPDATE"];
        assert_eq!(validating["webhooks"], webhook(&of, of.validate_name, of.validate_path, &both));
        assert_eq!(service["kind"], "Service");
        assert_eq!(service["metadata"]["name"], of.service());
        assert_eq!(service["metadata"]["namespace"], "kube-system");
        assert_eq!(
            service["spec"]["ports"],
            json!([{"port": 443, "protocol": "TCP", "targetPort": of.port}])
        );
        let component = format!("coil-{}-controller", of.part);
        assert_eq!(service["spec"]["selector"], json!({"app.kubernetes.io/component": component}));
        let known = of.dns_names("kube-system");
        let service = service["metadata"]["name"].as_str().unwrap();
        assert_eq!(known[0], format!("{service}.kube-system.svc"));
    }
}
