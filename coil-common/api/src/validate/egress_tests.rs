use super::*;

/// An Egress of these fields over a good one.
fn spec(fields: &Value) -> EgressSpec {
    let mut document = json!({"destinations": ["10.2.0.0/16", "fd02::/120"]});
    json_patch::merge(&mut document, fields);
    serde_json::from_value(document).unwrap()
}

#[track_caller]
fn refused(fields: &Value, field: &str, says: &[&str]) {
    let violations = on_update(&spec(fields)).violations;
    let [one] = &violations[..] else { panic!("one violation, not {violations:#?}") };
    assert_eq!(one.field, field);
    for part in says {
        assert!(one.to_string().contains(part), "{one} should say {part:?}");
    }
}

#[test]
fn good() {
    for fields in [
        json!({}),
        json!({"destinations": ["0.0.0.0/0", "::/0"], "replicas": 3}),
        json!({"strategy": {"type": "Recreate"}}),
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
        json!({"template": {"metadata": {"annotations": {"good": "aaa bbb"}, "labels": {"good": "", "a.b/c": "d"}}}}),
        json!({"podDisruptionBudget": {"minAvailable": 0}}),
        json!({"podDisruptionBudget": {"maxUnavailable": "100%"}}),
        json!({"podDisruptionBudget": {}}),
    ] {
        assert_eq!(on_create("internet", &spec(&fields)), Findings::default(), "{fields}");
    }
}

#[test]
fn destinations() {
    refused(&json!({"destinations": []}), "spec.destinations", &["Required"]);
    refused(
        &json!({"destinations": ["10.2.0.0/16", "127.0.0.1"]}),
        "spec.destinations[1]",
        &["Invalid value: \"127.0.0.1\"", "127.0.0.1/32"],
    );
    refused(&json!({"destinations": ["a.b.c.d/20"]}), "spec.destinations[0]", &["CIDR"]);
    let findings = on_update(&spec(&json!({"destinations": ["10.2.0.1/16"]})));
    assert_eq!(findings.violations, []);
    assert!(findings.warnings[0].contains("10.2.0.0/16"), "{findings:?}");
}

#[test]
fn numbers_and_strategy() {
    refused(&json!({"replicas": 0}), "spec.replicas", &["at least 1"]);
    refused(
        &json!({"strategy": {"type": "hoge"}}),
        "spec.strategy.type",
        &["Unsupported value: \"hoge\"", "RollingUpdate"],
    );
    refused(&json!({"strategy": {}}), "spec.strategy.type", &["Recreate"]);
}

#[test]
fn metadata() {
    refused(
        &json!({"template": {"metadata": {"annotations": {"bad bad": "aaa"}}}}),
        "spec.template.metadata.annotations",
        &["bad bad", "begins and ends"],
    );
    refused(
        &json!({"template": {"metadata": {"labels": {"good": "bad value", "name": "foo"}}}}),
        "spec.template.metadata.labels",
        &["bad value", "label \"good\""],
    );
    refused(
        &json!({"template": {"metadata": {"labels": {"-": "a"}}}}),
        "spec.template.metadata.labels",
        &["-"],
    );
}

#[test]
fn disruption_budget() {
    let path = "spec.podDisruptionBudget";
    refused(
        &json!({"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}),
        path,
        &["cannot both be set", "remove one"],
    );
    for (number, says) in [
        (json!(-1), "0 or more"),
        (json!("120%"), "100%"),
        (json!("99999999999999999999%"), "100%"),
        (json!("5"), "percentage"),
        (json!("-5%"), "percentage"),
        (json!("%"), "percentage"),
    ] {
        for name in ["minAvailable", "maxUnavailable"] {
            let fields = json!({"podDisruptionBudget": {name: number}});
            refused(&fields, &format!("{path}.{name}"), &[says, &number.to_string()]);
        }
    }
}

#[test]
fn a_name_no_service_can_have() {
    for name in ["9lives", "a.b"] {
        let violations = on_create(name, &spec(&json!({}))).violations;
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].field, "metadata.name");
        assert!(violations[0].detail.contains("Service"), "{violations:?}");
    }
}

#[test]
fn defaults_of_the_template() {
    let patched = |mut egress: Value| {
        let patch: json_patch::Patch = serde_json::from_value(Value::Array(defaults(&egress))).unwrap();
        json_patch::patch(&mut egress, &patch).unwrap();
        egress
    };
    let special = json!([{"name": "egress"}]);
    for template in [
        json!({}),
        json!({"spec": null}),
        json!({"spec": {}}),
        json!({"spec": {"containers": null, "tolerations": []}}),
        json!({"spec": {"containers": []}}),
    ] {
        let egress = patched(json!({"spec": {"template": template}}));
        assert_eq!(egress["spec"]["template"]["spec"]["containers"], special);
    }
    for untouched in [
        json!({"spec": {}}),
        json!({"spec": {"template": null}}),
        json!({"spec": {"template": {"spec": {"containers": [{"name": "sidecar"}]}}}}),
    ] {
        assert_eq!(patched(untouched.clone()), untouched);
    }
}
