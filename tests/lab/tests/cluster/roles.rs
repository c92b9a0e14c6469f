//! The shipped roles: enough for everything, and nothing in them that nobody needs.
//!
//! The API server writes down every question about rights while a lab does all that Coil does. Then one permission
//! after the other is taken out of the roles, and there must be a question that is answered otherwise.

use std::process::Command;

use anyhow::{Context as _, Result};
use coil_apiserver::{Policy, Question};
use coil_lab::{
    Lab,
    config::{Api, Options},
};
use serde::Deserialize as _;
use serde_json::Value;

use crate::common::{LIMIT, check, end, name, program};

/// Permissions for moments that a test cannot bring about: what would ask, and when.
const RARE: &[(&str, &str)] = &[
];

/// Roles that are for people, or for gateways of Coil v2 during an upgrade.
fn is_for_others(role: &str) -> bool {
    role.ends_with("-viewer-role") || role == "coil-egress"
}

#[test]
fn each_permission_is_needed() -> Result<()> {
    // The record is the embedded server's.
    let options = Options { api: Some(Api::Embedded), ..Options::named(&name("roles")) };
    let lab = Lab::start(program(), options)?;
    do_everything(&lab)?;
    let objects = manifests()?;
    let questions = lab.questions()?;
    check(questions.len() > 50, || format!("only {} questions were asked", questions.len()))?;
    let full = Policy::new(&objects);
    let denied: Vec<&Question> = questions.iter().filter(|question| !full.allows(&question.asked)).collect();
    check(denied.is_empty(), || format!("the shipped roles alone do not allow {denied:?}"))?;

    let mut needless = Vec::new();
    let mut looked_at = 0;
    for (index, object) in objects.iter().enumerate() {
        let role = object["metadata"]["name"].as_str().unwrap_or_default();
        if !matches!(object["kind"].as_str(), Some("Role" | "ClusterRole")) || is_for_others(role) {
            continue;
        }
        for (permission, without) in each_without_one(object) {
            looked_at += 1;
            let mut changed = objects.clone();
            changed[index] = without;
            let policy = Policy::new(&changed);
            let permission = format!("{role} {permission}");
            let is_needed = questions.iter().any(|question| !policy.allows(&question.asked));
            if !is_needed && !RARE.iter().any(|(rare, _)| *rare == permission) {
                needless.push(permission);
            }
        }
    }
    check(looked_at > 58, || format!("only {looked_at} permissions were looked at"))?;
    check(needless.is_empty(), || format!("nobody asked for:\n{}", needless.join("\n")))?;
    end(lab)
}

/// Each permission of a role in words, and the role without it.
fn each_without_one(role: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for (index, rule) in role["rules"].as_array().into_iter().flatten().enumerate() {
        for resource in list(&rule["resources"]) {
            for verb in list(&rule["verbs"]) {
                let others = |of: &str, not: &str| -> Vec<String> {
                    list(&rule[of]).into_iter().filter(|word| word != not).collect()
                };
                // The rule without the resource, and the resource without the verb.
                let (mut rest, mut narrowed) = (rule.clone(), rule.clone());
                rest["resources"] = others("resources", &resource).into();
                narrowed["resources"] = vec![resource.clone()].into();
                narrowed["verbs"] = others("verbs", &verb).into();
                let mut without = role.clone();
                without["rules"][index] = rest;
                if let Some(rules) = without["rules"].as_array_mut() {
                    rules.push(narrowed);
                }
                all.push((format!("{verb} {resource}"), without));
            }
        }
    }
    all
}

/// What is shipped, with the binding that the egress controller makes not in it.
fn manifests() -> Result<Vec<Value>> {
    let overlay = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/overlays/with-router");
    let output =
        Command::new("kubectl").args(["kustomize", overlay]).output().context("cannot run kubectl")?;
    check(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    let text = String::from_utf8(output.stdout)?;
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents.map(|document| Ok(Value::deserialize(document)?)).collect()
}

/// All that Coil does: the end-to-end tests, and what no cluster would have done to it.
fn do_everything(lab: &Lab) -> Result<()> {
    let tests = program().with_file_name("coil-e2e");
    let output = Command::new(&tests).arg("--kubeconfig").arg(lab.kubeconfig()).output();
    let output = output.with_context(|| format!("cannot run {}", tests.display()))?;
    check(output.status.success(), || String::from_utf8_lossy(&output.stdout).into_owned())?;

    // Certificates that somebody has spoilt are mended.
    for part in ["ipam", "egress"] {
        let secret = format!("secret -n kube-system coilv2-{part}-webhook-server-cert");
        let of = format!("get {secret} -o jsonpath={{.data.tls\\.crt}}");
        let words = format!(r#"patch {secret} --type=merge -p {{"data":{{"tls.crt":"bm9uZQ=="}}}}"#);
        lab.kubectl(&words)?.success()?;
        lab.wait_for("the certificate is mended", LIMIT, |lab| {
            let now = lab.kubectl(&of)?.success()?;
            Ok(if now.len() > 100 { Ok(()) } else { Err(now) })
        })?;
    }

    // Standbys, which watch their leaders' Leases.
    for (controller, ports) in [("coil-ipam-controller", 19000), ("coil-egress-controller", 19010)] {
        let account = format!("/run/coil-lab/{}/inside/account-{controller}.kubeconfig", lab.options().name);
        let address = |flag: &str, more: u16| format!("--{flag}-addr=127.0.0.1:{}", ports + more);
        let flags = [address("metrics", 0), address("health", 1), address("webhook", 2)].join(" ");
        let words = format!(
            "timeout 20 env KUBECONFIG={account} COIL_EGRESS_IMAGE=none {controller} {flags} --enable-cert-rotation=true"
        );
        let mut standby = lab.spawn_on_node("control", &words)?;
        let watches = |question: &Question| {
            let asked = &question.asked;
            asked.resource == "leases" && asked.verb == "watch" && asked.user.ends_with(controller)
        };
        let watched = lab.wait_for("a standby to watch its leader", LIMIT, |lab| {
            Ok(if lab.questions()?.iter().any(watches) { Ok(()) } else { Err("it does not".into()) })
        });
        standby.kill().context("cannot end a standby")?;
        standby.wait()?;
        watched?;
    }

    // Requests for a node and a pool that no watch has told of.
    lab.apply(
        "
apiVersion: coil.cybozu.com/v2
kind: BlockRequest
metadata: {name: req-default-nobody}
spec: {nodeName: nobody, poolName: default}
---
apiVersion: coil.cybozu.com/v2
kind: BlockRequest
metadata: {name: req-none-node1}
spec: {nodeName: node1, poolName: none}
",
    )?;
    for request in ["req-default-nobody", "req-none-node1"] {
        let of = format!("get blockrequest {request} -o jsonpath={{.status.conditions[*].reason}}");
        lab.wait_for(&format!("{request} is refused"), LIMIT, |lab| {
            let now = lab.kubectl(&of)?.success()?;
            Ok(if now.contains("not found") { Ok(()) } else { Err(now) })
        })?;
        lab.kubectl(&format!("delete blockrequest {request}"))?.success()?;
    }

    // Somebody's rules, for which eBPF makes way.
    for words in [
        "nft add table inet foreign",
        "nft add chain inet foreign forward { type filter hook forward priority 0 ; }",
        "nft add rule inet foreign forward tcp dport 9 drop",
    ] {
        lab.node("node1", words)?.success()?;
    }
    lab.wait_for("an Event about the rules", 2 * LIMIT, |lab| {
        let events = lab.kubectl("get events -n default -o jsonpath={.items[*].reason}")?.success()?;
        Ok(if events.contains("DatapathByKernel") { Ok(()) } else { Err(events) })
    })?;
    lab.node("node1", "nft delete table inet foreign")?.success()?;

    // A budget that is not wanted any more, and a pool that is too small.
    lab.apply(
        "
apiVersion: v1
kind: Namespace
metadata: {name: once, annotations: {coil.cybozu.com/pool: tiny}}
---
apiVersion: coil.cybozu.com/v2
kind: AddressPool
metadata: {name: tiny}
spec: {blockSizeBits: 0, subnets: [{ipv4: 10.77.0.0/31, ipv6: 'fd77::/127'}]}
---
apiVersion: coil.cybozu.com/v2
kind: Egress
metadata: {name: nat, namespace: once}
spec: {destinations: [192.0.2.0/24], podDisruptionBudget: {maxUnavailable: 1}}
",
    )?;
    let becomes = |of: &str, wanted: &str| {
        lab.wait_for(&format!("{of} is {wanted:?}"), LIMIT, |lab| {
            let now = lab.kubectl(&format!("get -n once --ignore-not-found {of}"))?.success()?;
            Ok(if now == wanted { Ok(()) } else { Err(now) })
        })
    };
    let budget = "poddisruptionbudget nat -o jsonpath={.spec.maxUnavailable}";
    becomes(budget, "1")?;
    // Another affinity is another Service, and the tiny pool has no third block.
    for (patch, of, wanted) in [
        (r#"{"podDisruptionBudget":{"maxUnavailable":2}}"#, budget, "2"),
        (r#"{"podDisruptionBudget":null}"#, budget, ""),
        (r#"{"replicas":3}"#, "deployment nat -o jsonpath={.spec.replicas}", "3"),
        (r#"{"sessionAffinity":"None"}"#, "service nat -o jsonpath={.spec.sessionAffinity}", "None"),
    ] {
        let patch = format!(r#"{{"spec":{patch}}}"#);
        let words = ["patch", "-n", "once", "egress", "nat", "--type=merge", "-p", &patch];
        lab.kubectl_with(&words, "")?.success()?;
        becomes(of, wanted)?;
    }
    lab.wait_for("Events of an exhausted pool", LIMIT, |lab| {
        let events = lab.kubectl("get events -n default -o jsonpath={.items[*].reason}")?.success()?;
        Ok(if events.contains("OutOfBlocks") { Ok(()) } else { Err(events) })
    })?;
    lab.kubectl("delete egress -n once nat")?.success()?;
    lab.kubectl("delete namespace once")?.success()?;
    lab.kubectl("delete addresspool tiny")?.success()?;
    Ok(())
}
