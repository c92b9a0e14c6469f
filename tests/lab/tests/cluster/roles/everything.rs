//! All that Coil does: the end-to-end tests, and what no cluster would have done to it.

use std::process::Command;

use anyhow::{Context as _, Result};
use coil_apiserver::Question;
use coil_lab::Lab;

use crate::common::{LIMIT, check, idle_pod, namespace, program, wait_ready};

/// Makes Coil ask for all that it ever asks for.
pub(super) fn run(lab: &Lab) -> Result<()> {
    end_to_end(lab)?;
    spoilt_certificates(lab)?;
    standbys(lab)?;
    requests_of_nobody(lab)?;
    foreign_rules(lab)?;
    changing_egress(lab)?;
    late_watches(lab)
}

fn end_to_end(lab: &Lab) -> Result<()> {
    let tests = program().with_file_name("coil-e2e");
    let output = Command::new(&tests).arg("--kubeconfig").arg(lab.kubeconfig()).output();
    let output = output.with_context(|| format!("cannot run {}", tests.display()))?;
    let said = [output.stdout, output.stderr].concat();
    check(output.status.success(), || String::from_utf8_lossy(&said).into_owned())
}

/// Certificates that somebody has spoilt are mended.
fn spoilt_certificates(lab: &Lab) -> Result<()> {
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
    Ok(())
}

/// They watch their leaders' Leases.
fn standbys(lab: &Lab) -> Result<()> {
    for (controller, ports) in [("coil-ipam-controller", 19000), ("coil-egress-controller", 19010)] {
        let account = format!("/run/coil-lab/{}/inside/account-{controller}.kubeconfig", lab.options().name);
        let address = |flag: &str, more: u16| format!("--{flag}-addr=127.0.0.1:{}", ports + more);
        let flags = [address("metrics", 0), address("health", 1), address("webhook", 2)].join(" ");
        // It is ended below; should this test not live so long, it ends by itself.
        let limit = 4 * LIMIT.as_secs();
        let words = format!(
            "timeout {limit} env KUBECONFIG={account} COIL_EGRESS_IMAGE=none {controller} {flags} --enable-cert-rotation=true"
        );
        let mut standby = lab.spawn_on_node("control", &words)?;
        let watched = wait_asked(lab, controller, "watch", "leases");
        standby.kill().context("cannot end a standby")?;
        standby.wait()?;
        watched?;
    }
    Ok(())
}

/// Requests for a node and a pool that no watch has told of.
fn requests_of_nobody(lab: &Lab) -> Result<()> {
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
    Ok(())
}

/// Somebody's rules, for which eBPF makes way.
fn foreign_rules(lab: &Lab) -> Result<()> {
    for words in [
        "nft add table inet foreign",
        "nft add chain inet foreign forward { type filter hook forward priority 0 ; }",
        "nft add rule inet foreign forward tcp dport 9 drop",
    ] {
        lab.node("node1", words)?.success()?;
    }
    wait_told(lab, "default", "DatapathByKernel")?;
    lab.node("node1", "nft delete table inet foreign")?.success().map(drop)
}

/// Objects and blocks that are in the way, a budget that is not wanted any more, and a pool that is too small: what an Egress
/// and a pool tell of more than once is one Event, which is written again.
fn changing_egress(lab: &Lab) -> Result<()> {
    const BUDGET_OF_OTHERS: &str = "
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: nat, namespace: once}
spec: {maxUnavailable: 5, selector: {matchLabels: {of: others}}}
";
    // The second of the pool's two blocks is taken.
    lab.apply(&format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: once, annotations: {{coil.cybozu.com/pool: tiny}}}}
---
apiVersion: coil.cybozu.com/v2
kind: AddressBlock
metadata:
  name: foreign-0
  labels: {{coil.cybozu.com/pool: foreign, coil.cybozu.com/node: node1, coil.cybozu.com/reserved: 'true'}}
index: 0
ipv4: 10.77.0.1/32
ipv6: fd77::1/128
---
apiVersion: coil.cybozu.com/v2
kind: AddressPool
metadata: {{name: tiny}}
spec: {{blockSizeBits: 0, subnets: [{{ipv4: 10.77.0.0/31, ipv6: 'fd77::/127'}}]}}
---
{BUDGET_OF_OTHERS}
---
apiVersion: coil.cybozu.com/v2
kind: Egress
metadata: {{name: nat, namespace: once}}
spec: {{destinations: [192.0.2.0/24], podDisruptionBudget: {{maxUnavailable: 1}}}}
"
    ))?;
    let becomes = |of: &str, wanted: &str| {
        lab.wait_for(&format!("{of} is {wanted:?}"), LIMIT, |lab| {
            let now = lab.kubectl(&format!("get -n once --ignore-not-found {of}"))?.success()?;
            Ok(if now == wanted { Ok(()) } else { Err(now) })
        })
    };
    let change = |spec: &str| {
        let patch = format!(r#"{{"spec":{spec}}}"#);
        let words = ["patch", "-n", "once", "egress", "nat", "--type=merge", "-p", &patch];
        lab.kubectl_with(&words, "")?.success().map(drop)
    };
    let budget = "poddisruptionbudget nat -o jsonpath={.spec.maxUnavailable}";
    let degraded = "egress nat -o jsonpath={.status.conditions[?(@.type=='Degraded')].reason}";
    let no_budget = r#"{"podDisruptionBudget":null}"#;
    becomes(degraded, "NameTaken")?;
    lab.kubectl("delete poddisruptionbudget -n once nat")?.success()?;
    // Another affinity is another Service.
    for (spec, of, wanted) in [
        (r#"{"podDisruptionBudget":{"maxUnavailable":2}}"#, budget, "2"),
        (r#"{"podDisruptionBudget":{"maxUnavailable":3}}"#, budget, "3"),
        (no_budget, budget, ""),
        (r#"{"sessionAffinity":"None"}"#, "service nat -o jsonpath={.spec.sessionAffinity}", "None"),
    ] {
        change(spec)?;
        becomes(of, wanted)?;
    }
    becomes(degraded, "AsWanted")?;
    lab.apply(BUDGET_OF_OTHERS)?;
    change(r#"{"podDisruptionBudget":{"maxUnavailable":1}}"#)?;
    becomes(degraded, "NameTaken")?;
    wait_asked(lab, "coil-egress-controller", "patch", "events")?;

    // At first the other block is in the way, then there is no third.
    change(r#"{"podDisruptionBudget":null,"replicas":3}"#)?;
    becomes("deployment nat -o jsonpath={.spec.replicas}", "3")?;
    wait_told(lab, "default", "OutOfBlocks")?;
    lab.kubectl("delete addressblock foreign-0")?.success()?;
    wait_asked(lab, "coil-ipam-controller", "patch", "events")?;
    for words in ["delete egress -n once nat", "delete namespace once", "delete addresspool tiny"] {
        lab.kubectl(words)?.success()?;
    }
    Ok(())
}

/// A pod that comes before coild hears of it, of its namespace or of its Egress: coild asks.
fn late_watches(lab: &Lab) -> Result<()> {
    lab.hold_watches(COILD, &["pods", "namespaces", "egresses.coil.cybozu.com"])?;
    let client = idle_pod("late", "client", "node1", "egress.coil.cybozu.com/late: nat");
    let egress = "---
apiVersion: coil.cybozu.com/v2
kind: Egress
metadata: {name: nat, namespace: late}
spec: {destinations: [192.0.2.0/24]}
";
    lab.apply(&[&namespace("late", "default"), egress, &client].concat())?;
    wait_ready(lab, "late", &["client"])?;
    lab.let_watches_go()?;
    lab.kubectl("delete namespace late")?.success().map(drop)
}

/// The account of coild.
const COILD: &str = "coild";

/// Waits until a program has asked for something.
fn wait_asked(lab: &Lab, program: &str, verb: &str, resource: &str) -> Result<()> {
    let account = format!("system:serviceaccount:kube-system:{program}");
    let is_it = |question: &Question| {
        let asked = &question.asked;
        asked.user == account && asked.verb == verb && asked.resource == resource
    };
    lab.wait_for(&format!("{program} to {verb} {resource}"), 2 * LIMIT, |lab| {
        Ok(if lab.questions()?.iter().any(is_it) { Ok(()) } else { Err("it does not".into()) })
    })
}

/// Waits for an Event by its reason.
fn wait_told(lab: &Lab, namespace: &str, reason: &str) -> Result<()> {
    let of = format!("get events -n {namespace} -o jsonpath={{.items[*].reason}}");
    lab.wait_for(&format!("an Event {reason}"), 2 * LIMIT, |lab| {
        let events = lab.kubectl(&of)?.success()?;
        Ok(if events.contains(reason) { Ok(()) } else { Err(events) })
    })
}
