use coil_api::validate::Reason;

use super::*;
use crate::webhook::names::{EGRESS, IPAM};

fn review(fields: &Value) -> Value {
    let mut request = json!({
        "uid": "u-1",
        "kind": {"group": "coil.cybozu.com", "version": "v2", "kind": "AddressPool"},
        "resource": {"group": "coil.cybozu.com", "version": "v2", "resource": "addresspools"},
        "name": "default",
        "operation": "CREATE",
        "userInfo": {"username": "somebody"},
        "object": {"metadata": {"name": "default"}, "spec": {"subnets": [{"ipv4": "10.0.0.0/24"}]}},
        "oldObject": null,
    });
    for (name, value) in fields.as_object().unwrap() {
        request[name] = value.clone();
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
}

fn read(document: &Value) -> Result<Question, Malformed> {
    Question::read(document.to_string().as_bytes(), &IPAM)
}

#[test]
fn a_review_is_read() {
    let question = read(&review(&json!({}))).unwrap();
    assert_eq!(question.object["spec"]["subnets"][0]["ipv4"], "10.0.0.0/24");
    assert_eq!(question.old, Value::Null);
    assert_eq!(
        (question.name(), question.subject().as_str(), question.user()),
        ("default", "default", "somebody")
    );
    assert!(question.is_main());
    let status = read(&review(&json!({"subResource": "status", "namespace": "x"}))).unwrap();
    assert!(!status.is_main());
    assert_eq!(status.subject(), "x/default");
}

#[test]
fn what_is_no_review_says_why() {
    let mut no_request = review(&json!({}));
    no_request.as_object_mut().unwrap().remove("request");
    let mut list = review(&json!({}));
    list["kind"] = json!("List");
    let mut v2 = review(&json!({}));
    v2["apiVersion"] = json!("admission.k8s.io/v2");
    let pods = json!({"group": "", "version": "v1", "resource": "pods"});
    for (document, says) in [
        (json!([]), "no AdmissionReview"),
        (json!({}), "no AdmissionReview"),
        (
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": 3}),
            "no AdmissionReview",
        ),
        (review(&json!({"operation": "EXPLODE"})), "no AdmissionReview"),
        (review(&json!({"object": 3})), "no AdmissionReview"),
        (no_request, "no request"),
        (list, "List"),
        (v2, "admission.k8s.io/v2"),
        (review(&json!({"resource": pods})), "addresspools.coil.cybozu.com"),
    ] {
        let error = read(&document).unwrap_err().to_string();
        assert!(error.contains(says), "{document}: {error}");
    }
    assert!(Question::read(b"\xff{", &IPAM).is_err());
    assert!(matches!(
        Question::read(review(&json!({})).to_string().as_bytes(), &EGRESS),
        Err(Malformed::Resource { .. })
    ));
}

#[test]
fn answers_have_the_version_and_the_uid_of_the_question() {
    let mut old = review(&json!({}));
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    for document in [review(&json!({})), old] {
        let answer = read(&document).unwrap().allow(&[]);
        assert_eq!(answer["apiVersion"], document["apiVersion"]);
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], "u-1");
        assert_eq!(answer["response"]["allowed"], true);
        assert!(answer["response"].get("patch").is_none());
        assert!(answer.get("request").is_none());
    }
}

#[test]
fn a_patch_is_base64() {
    let patch = [json!({"op": "add", "path": "/a", "value": 1})];
    let answer = read(&review(&json!({}))).unwrap().allow(&patch);
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    let text: ByteString = serde_json::from_value(answer["response"]["patch"].clone()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&text.0).unwrap(), json!(patch));
}

#[test]
fn violations_become_causes() {
    let violation = |field: &str| Violation {
        field: field.into(),
        reason: Reason::Invalid,
        value: json!("x"),
        detail: "is wrong; make it right".into(),
    };
    let question = read(&review(&json!({}))).unwrap();
    let mut findings = Findings { violations: vec![violation("spec.a")], warnings: vec!["take care".into()] };
    let response = question.judged(&IPAM, &findings)["response"].clone();
    assert_eq!(response["allowed"], false);
    assert_eq!(response["warnings"], json!(["take care"]));
    let status = &response["status"];
    assert_eq!(
        status["message"],
        "AddressPool.coil.cybozu.com \"default\" is invalid: spec.a: Invalid value: \"x\": is wrong; make it right"
    );
    assert_eq!(
        (&status["code"], &status["reason"], &status["status"]),
        (&json!(422), &json!("Invalid"), &json!("Failure"))
    );
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "FieldValueInvalid", "message": "Invalid value: \"x\": is wrong; make it right", "field": "spec.a"}])
    );
    findings.violations.push(violation("spec.b"));
    let message = question.judged(&IPAM, &findings)["response"]["status"]["message"].to_string();
    assert!(message.contains("[spec.a: ") && message.contains(", spec.b: "), "{message}");
    findings.violations.clear();
    assert_eq!(question.judged(&IPAM, &findings)["response"]["allowed"], true);
}

#[test]
fn a_missing_list_is_empty() {
    for object in [json!({}), json!({"spec": null}), json!({"spec": {"subnets": null}}), Value::Null] {
        assert_eq!(spec(&object, "subnets"), json!({"subnets": []}));
    }
}
