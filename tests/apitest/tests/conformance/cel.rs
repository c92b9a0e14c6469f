//! Rules in CEL: refused with the CRD when wrong, enforced when right, in the server's words.

use coil_apitest::{Cluster, eventually};
use serde_json::{Value, json};

use crate::raw::{self, MERGE};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/test.coil.cybozu.com/v1/things";

fn crd(spec: &Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.test.coil.cybozu.com"},
        "spec": {"group": "test.coil.cybozu.com", "scope": "Cluster",
            "names": {"kind": "Thing", "plural": "things"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": spec}}}}]}})
}

fn spec(rules: &Value) -> Value {
    json!({"type": "object", "required": ["bits"], "x-kubernetes-validations": rules, "properties": {
        "bits": {"type": "integer"},
        "text": {"type": "string", "maxLength": 10},
        "subnets": {"type": "array", "maxItems": 8, "items": {"type": "object", "properties": {
            "ipv4": {"type": "string", "maxLength": 18}, "ipv6": {"type": "string", "maxLength": 43}}}}}})
}

fn thing(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "test.coil.cybozu.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec})
}

async fn install(cluster: &Cluster, spec: &Value) {
    raw::post(cluster, CRDS, &crd(spec)).await.ok();
    eventually("the kind is served", async || raw::get(cluster, THINGS).await.code == 200).await;
}

#[tokio::test]
async fn rules_hold() {
    let cluster = Cluster::start().await;
    let rules = json!([
        {"rule": "self.bits == oldSelf.bits", "message": "is immutable", "fieldPath": ".bits", "reason": "FieldValueForbidden"},
        {"rule": "!has(self.subnets) || self.subnets.all(s, !has(s.ipv4) || isCIDR(s.ipv4) && cidr(s.ipv4).ip().family() == 4)",
            "message": "ipv4 must be an IPv4 subnet"},
        {"rule": "!has(self.subnets) || self.subnets.all(s, !has(s.ipv4) || !isCIDR(s.ipv4) || \
                  32 - cidr(s.ipv4).prefixLength() >= self.bits)",
            "message": "a subnet is smaller than a block"},
        {"rule": "!has(self.text) || self.text != 'bad'", "messageExpression": "'the text is ' + self.text"},
        {"rule": "!has(self.subnets) || self.subnets.all(s, !has(s.ipv6) || !isCIDR(s.ipv6) || cidr(s.ipv6) == cidr(s.ipv6).masked())",
            "message": "host bits are set"},
        {"rule": "self.bits < 100"},
    ]);
    install(&cluster, &spec(&rules)).await;
    for (given, message) in [
        (json!({"bits": 5, "subnets": [{"ipv4": "x"}]}), "spec: Invalid value: ipv4 must be an IPv4 subnet"),
        (
            json!({"bits": 0, "subnets": [{"ipv4": "fd00::/32"}]}),
            "spec: Invalid value: ipv4 must be an IPv4 subnet",
        ),
        (
            json!({"bits": 5, "subnets": [{"ipv4": "10.0.0.0/30"}]}),
            "spec: Invalid value: a subnet is smaller than a block",
        ),
        (json!({"bits": 5, "text": "bad"}), "spec: Invalid value: the text is bad"),
        (json!({"bits": 5, "subnets": [{"ipv6": "fd00::1/64"}]}), "spec: Invalid value: host bits are set"),
        (json!({"bits": 100}), "spec: Invalid value: failed rule: self.bits < 100"),
    ] {
        let refused = raw::post(&cluster, THINGS, &thing("bad", &given)).await;
        refused.refused(422, "Invalid", message);
        assert_eq!(refused.message(), format!("Thing.test.coil.cybozu.com \"bad\" is invalid: {message}"));
        assert_eq!(refused.body["details"]["causes"][0]["field"], "spec");
    }
    let fine = json!({"bits": 5, "subnets": [{"ipv4": "10.0.0.0/24", "ipv6": "fd00::/64"}]});
    raw::post(&cluster, THINGS, &thing("fine", &fine)).await.ok();
    let changed = raw::patch(&cluster, &format!("{THINGS}/fine"), MERGE, &json!({"spec": {"bits": 6}})).await;
    changed.refused(422, "Invalid", "spec.bits: Forbidden: is immutable");
    raw::patch(&cluster, &format!("{THINGS}/fine"), MERGE, &json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .ok();
    let wrong = raw::post(&cluster, THINGS, &thing("bad", &json!({"bits": "x"}))).await;
    wrong.refused(422, "Invalid", "some validation rules were not checked because the object was invalid");
}

#[tokio::test]
async fn what_was_there_before_a_rule_may_stay_until_it_changes() {
    let cluster = Cluster::start().await;
    install(&cluster, &spec(&json!([]))).await;
    raw::post(&cluster, THINGS, &thing("old", &json!({"bits": 200, "text": "a"}))).await.ok();
    let mut definition = raw::get(&cluster, &format!("{CRDS}/things.test.coil.cybozu.com")).await.ok();
    let rules = json!([{"rule": "self.bits < 100", "message": "too many"}]);
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = spec(&rules);
    definition["metadata"]["managedFields"] = Value::Null;
    raw::put(&cluster, &format!("{CRDS}/things.test.coil.cybozu.com"), &definition).await.ok();
    eventually("the rule is in force", async || {
        let dry = format!("{THINGS}?dryRun=All");
        raw::post(&cluster, &dry, &thing("new", &json!({"bits": 200}))).await.code == 422
    })
    .await;
    let path = format!("{THINGS}/old");
    raw::patch(&cluster, &path, MERGE, &json!({"metadata": {"labels": {"a": "b"}}})).await.ok();
    let changed = raw::patch(&cluster, &path, MERGE, &json!({"spec": {"text": "b"}})).await;
    changed.refused(422, "Invalid", "spec: Invalid value: too many");
}

#[tokio::test]
async fn a_wrong_rule_is_refused_with_its_crd() {
    let cluster = Cluster::start().await;
    let at = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0]";
    for (rule, part) in [
        (
            json!({"rule": "self.size > 1"}),
            "compilation failed: ERROR: <input>:1:5: undefined field 'size'\n | self.size > 1\n | ....^",
        ),
        (json!({"rule": "self.bits"}), "cel expression must evaluate to a bool"),
        (
            json!({"rule": "self.bits == 'x'"}),
            "found no matching overload for '_==_' applied to '(int, string)'",
        ),
        (json!({"rule": "nothing(self.bits)"}), "undeclared reference to 'nothing' (in container '')"),
        (json!({"rule": "true", "fieldPath": ".none"}), "must be a valid path"),
        (json!({"rule": "true", "messageExpression": "1"}), "messageExpression must evaluate to a string"),
        (json!({"rule": "true", "reason": "Because"}), "Unsupported value: \"Because\""),
        (json!({"rule": "self.bits > "}), "compilation failed: ERROR: <input>:1:"),
    ] {
        let refused = raw::post(&cluster, CRDS, &crd(&spec(&json!([rule])))).await;
        refused.refused(422, "Invalid", part);
        assert!(refused.message().contains(at), "{}", refused.message());
    }
    let mut nested = spec(&json!([]));
    nested["properties"]["subnets"]["items"]["x-kubernetes-validations"] =
        json!([{"rule": "self.ipv4 == oldSelf.ipv4"}]);
    let refused = raw::post(&cluster, CRDS, &crd(&nested)).await;
    refused.refused(
        422,
        "Invalid",
        "oldSelf cannot be used on the uncorrelatable portion of the schema within",
    );
}
