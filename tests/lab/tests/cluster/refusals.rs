//! What kubectl says of pools and Egresses that cannot be right: the field and the fix. What needs no
//! other object is refused as well while no webhook is configured.

use anyhow::{Context as _, Result};
use coil_lab::Lab;

use crate::common::{LIMIT, check, end, get, idle_pod, items, start, wait_ready};

/// A manifest's spec, and words of the message.
type Case = (&'static str, &'static [&'static str]);

/// Pools that nobody can use, in YAML's flow style.
const POOLS: &[Case] = &[
    ("{blockSizeBits: 5, subnets: []}", &["spec.subnets", "at least 1 items"]),
    (
        "{blockSizeBits: -1, subnets: [{ipv4: 10.80.0.0/24}]}",
        &["spec.blockSizeBits", "greater than or equal to 0"],
    ),
    ("{blockSizeBits: 5, subnets: [{}]}", &["spec.subnets[0]", "set ipv4, ipv6, or both"]),
    ("{blockSizeBits: 5, subnets: [{ipv4: 'fd80::/112'}]}", &["spec.subnets[0].ipv4", "field ipv6"]),
    ("{blockSizeBits: 5, subnets: [{ipv6: 10.80.0.0/24}]}", &["spec.subnets[0].ipv6", "field ipv4"]),
    ("{blockSizeBits: 5, subnets: [{ipv4: 10.80.0.0}]}", &["spec.subnets[0].ipv4", "CIDR format"]),
    (
        "{blockSizeBits: 5, subnets: [{ipv4: 10.80.0.0/30}]}",
        &["spec.subnets", "smaller than one block", "blockSizeBits"],
    ),
    (
        "{blockSizeBits: 5, subnets: [{ipv6: 'fd80::/124'}]}",
        &["spec.subnets", "smaller than one block", "blockSizeBits"],
    ),
    (
        "{blockSizeBits: 5, subnets: [{ipv4: 10.80.0.0/24, ipv6: 'fd80::/112'}]}",
        &["spec.subnets[0]", "ipv4 and ipv6 must have as many addresses"],
    ),
    (
        "{blockSizeBits: 5, subnets: [{ipv4: 10.80.0.0/24}, {ipv6: 'fd80::/120'}]}",
        &["spec.subnets", "same families", "another pool"],
    ),
    (
        "{blockSizeBits: 5, subnets: [{ipv4: 10.80.0.0/24}, {ipv4: 10.80.0.128/25}]}",
        &["spec.subnets", "overlap", "remove one of them"],
    ),
    (
        "{blockSizeBits: 5, subnets: [{ipv6: 'fd80::/112'}, {ipv6: 'fd80::ff00/120'}]}",
        &["spec.subnets", "overlap", "remove one of them"],
    ),
];

/// Pools that clash with the lab's own.
const CLASHES: &[Case] = &[
    (
        "{subnets: [{ipv4: 10.64.7.0/24}]}",
        &["spec.subnets[0].ipv4", "AddressPool \"default\"", "no pool has"],
    ),
    ("{subnets: [{ipv6: 'fd64::/64'}]}", &["spec.subnets[0].ipv6", "AddressPool \"default\"", "no pool has"]),
];

/// Changes of a pool with two dual-stack subnets and blocks of 4.
const CHANGES: &[Case] = &[
    ("{blockSizeBits: 3}", &["spec.blockSizeBits", "fixed", "make another pool"]),
    ("{subnets: [{ipv4: 10.81.0.0/28, ipv6: 'fd81::/124'}]}", &["spec.subnets", "append"]),
    (
        "{subnets: [{ipv4: 10.81.1.0/28, ipv6: 'fd81::1:0/124'}, {ipv4: 10.81.0.0/28, ipv6: 'fd81::/124'}]}",
        &["spec.subnets", "append"],
    ),
    (
        "{subnets: [{ipv4: 10.81.0.0/28, ipv6: 'fd81::/124'}, {ipv4: 10.81.2.0/28, ipv6: 'fd81::1:0/124'}]}",
        &["spec.subnets", "append"],
    ),
];

/// Egresses that cannot be, without a webhook.
const EGRESSES: &[Case] = &[
    ("{destinations: []}", &["spec.destinations", "at least 1 items"]),
    ("{destinations: [192.0.2.1]}", &["spec.destinations[0]", "/32"]),
    ("{destinations: ['::/0', '2001:db8::1']}", &["spec.destinations[1]", "/128"]),
    ("{destinations: [0.0.0.0/0], replicas: 0}", &["spec.replicas", "greater than or equal to 1"]),
    ("{destinations: [0.0.0.0/0], strategy: {type: Never}}", &["spec.strategy", "Recreate", "RollingUpdate"]),
    (
        "{destinations: [0.0.0.0/0], podDisruptionBudget: {minAvailable: 1, maxUnavailable: 1}}",
        &["spec.podDisruptionBudget", "remove one of them"],
    ),
    (
        "{destinations: [0.0.0.0/0], podDisruptionBudget: {minAvailable: -1}}",
        &["spec.podDisruptionBudget.minAvailable", "number of pods"],
    ),
    (
        "{destinations: [0.0.0.0/0], podDisruptionBudget: {maxUnavailable: '101%'}}",
        &["spec.podDisruptionBudget.maxUnavailable", "100%"],
    ),
];

/// Egresses that the webhook alone understands.
const TEMPLATES: &[Case] = &[
    (
        "{destinations: [0.0.0.0/0], template: {metadata: {labels: {'bad key': x}}}}",
        &["spec.template.metadata.labels", "bad key"],
    ),
    (
        "{destinations: [0.0.0.0/0], template: {metadata: {labels: {key: 'bad value'}}}}",
        &["spec.template.metadata.labels", "label value"],
    ),
    (
        "{destinations: [0.0.0.0/0], template: {metadata: {annotations: {'/x': y}}}}",
        &["spec.template.metadata.annotations", "/x"],
    ),
];

#[test]
fn kubectl_says_the_field_and_the_fix() -> Result<()> {
    let lab = start("refusals")?;
    lab.apply(&pool(
        "kept",
        "{blockSizeBits: 2, subnets: [{ipv4: 10.81.0.0/28, ipv6: 'fd81::/124'}, {ipv4: 10.81.1.0/28, ipv6: 'fd81::1:0/124'}]}",
    ))?;
    for (spec, words) in POOLS.iter().chain(CLASHES) {
        refused(&lab, &pool("wrong", spec), words)?;
    }
    for (spec, words) in EGRESSES.iter().chain(TEMPLATES) {
        refused(&lab, &egress("wrong", spec), words)?;
    }
    refused(&lab, &egress("9lives", "{destinations: [0.0.0.0/0]}"), &["metadata.name", "begin", "letter"])?;
    changes(&lab)?;
    a_template_without_containers_gets_one(&lab)?;
    people_can_read_it(&lab)?;

    lab.kubectl("delete mutatingwebhookconfigurations,validatingwebhookconfigurations --all")?.success()?;
    for (spec, words) in POOLS {
        refused(&lab, &pool("wrong", spec), words)?;
    }
    for (spec, words) in EGRESSES {
        refused(&lab, &egress("wrong", spec), words)?;
    }
    changes(&lab)?;
    check(items(&lab, "addresspools")?.len() == 3, || "a wrong pool was stored".into())?;
    malformed_objects_are_told_and_harm_nobody(&lab)?;
    end(lab)
}

fn pool(name: &str, spec: &str) -> String {
    format!("apiVersion: coil.cybozu.com/v2\nkind: AddressPool\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn egress(name: &str, spec: &str) -> String {
    let meta = format!("{{name: {name}, namespace: default}}");
    format!("apiVersion: coil.cybozu.com/v2\nkind: Egress\nmetadata: {meta}\nspec: {spec}\n")
}

fn refused(lab: &Lab, manifest: &str, words: &[&str]) -> Result<()> {
    let done = lab.kubectl_with(&["create", "-f", "-"], manifest)?;
    holds(&done, manifest, words)
}

fn holds(done: &coil_lab::Done, what: &str, words: &[&str]) -> Result<()> {
    check(!done.ok, || format!("it was taken:\n{what}"))?;
    let missing: Vec<&&str> = words.iter().filter(|word| !done.stderr.contains(**word)).collect();
    check(missing.is_empty(), || format!("{missing:?} not in the answer to\n{what}\n{}", done.stderr))
}

fn changes(lab: &Lab) -> Result<()> {
    for (spec, words) in CHANGES {
        let spec: serde_json::Value = serde_yaml_ng::from_str(spec)?;
        let patch = serde_json::json!({ "spec": spec }).to_string();
        let done = lab.kubectl_with(&["patch", "addresspool", "kept", "--type=merge", "-p", &patch], "")?;
        holds(&done, &patch, words)?;
    }
    Ok(())
}

fn a_template_without_containers_gets_one(lab: &Lab) -> Result<()> {
    lab.apply(&egress("bare", "{destinations: ['192.0.2.0/24'], template: {metadata: {labels: {a: b}}}}"))?;
    let containers = get(lab, "egress bare")?["spec"]["template"]["spec"]["containers"].clone();
    check(containers[0]["name"] == "egress", || containers.to_string())?;
    lab.kubectl("delete egress bare")?.success().map(drop)
}

/// Columns and explanations, as people ask for them.
fn people_can_read_it(lab: &Lab) -> Result<()> {
    lab.apply(&idle_pod("default", "reader", "node1", ""))?;
    wait_ready(lab, "default", &["reader"])?;
    // Which block it is depends on what earlier pods had.
    let blocks = items(lab, "addressblocks")?;
    let block = blocks.iter().find(|block| block["metadata"]["labels"]["coil.cybozu.com/node"] == "node1");
    let block = block.context("node1 has no block")?;
    let text = |field: &str| block[field].as_str().with_context(|| format!("no {field} in {block}"));
    let (ipv4, ipv6) = (text("ipv4")?, text("ipv6")?);
    check(ipv4.starts_with("10.64.0.") && ipv4.ends_with("/27"), || ipv4.into())?;
    check(ipv6.starts_with("fd64::") && ipv6.ends_with("/123"), || ipv6.into())?;
    for (words, shown) in [
        ("get addressblocks", &["NODE", "POOL", "IPV4", "IPV6", "node1", "default", ipv4, ipv6][..]),
        ("get addresspools", &["BLOCKSIZE BITS", "default", "5"]),
        ("explain addresspool.spec", &["AddressPool", "blockSizeBits", "subnets", "<integer>", "-required-"]),
        ("explain egress.spec.destinations", &["destinations", "<[]string>"]),
    ] {
        let text = lab.kubectl(words)?.success()?;
        for word in shown {
            check(text.contains(word), || {
                format!("{word:?} is not in what `kubectl {words}` shows:\n{text}")
            })?;
        }
    }
    lab.kubectl("delete pod reader --wait")?.success().map(drop)
}

/// A definition from before the rules, with what they would have refused.
fn malformed_objects_are_told_and_harm_nobody(lab: &Lab) -> Result<()> {
    // Structural rules go as well: this is what an older definition let through.
    let loose = r#"[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema","value":
        {"type":"object","x-kubernetes-preserve-unknown-fields":true}}]"#;
    for crd in ["addresspools", "addressblocks", "blockrequests"] {
        let words = ["patch", "crd", &format!("{crd}.coil.cybozu.com"), "--type=json", "-p", loose];
        lab.kubectl_with(&words, "")?.success()?;
    }
    lab.wait_for("a malformed pool to be taken", LIMIT, |lab| {
        let done = lab.kubectl_with(&["create", "-f", "-"], &pool("broken", "{blockSizeBits: many}"))?;
        Ok(if done.ok { Ok(()) } else { Err(done.stderr) })
    })?;
    let events = "get events -A --field-selector involvedObject.name=broken -o jsonpath={.items[*].message}";
    lab.wait_for("an Event about the malformed pool", LIMIT, |lab| {
        let text = lab.kubectl(events)?.success()?;
        Ok(if text.contains("gives no blocks") { Ok(()) } else { Err(text) })
    })?;
    lab.apply(&idle_pod("default", "neighbour", "node2", ""))?;
    wait_ready(lab, "default", &["neighbour"])
}
