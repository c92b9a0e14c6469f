//! An Egress that coild cannot understand: people are told on the Egress itself, and nobody gets out past it.
//!
//! ```text
//!  node2: client (by the programs), old (with a tunnel of its own)    node3: gateway    world
//! ```

use anyhow::Result;
use coil_lab::{Lab, config::Ip};

use crate::{
    common::{LIMIT, check, end, idle_pod, kill_coilds, wait_ready},
    edge,
    egress::{ANNOTATION, gateways, patch, seen, start_with_client, wait_out},
};

/// What coild knows a client with tunnels by: a link's name, and a rule. Here no packet goes through it.
const TUNNEL: [&str; 2] =
    ["link add fou4_0a600707 type bridge", "rule add lookup 117 priority 1900 protocol 30"];
const EGRESS: &str = "internet/egress/nat";

/// Makes the definition of Egresses that of a version without rules, and takes what would judge them away.
fn let_everything_pass(lab: &Lab) -> Result<()> {
    lab.kubectl("delete mutatingwebhookconfigurations,validatingwebhookconfigurations --all")?.success()?;
    let loose = r#"[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema","value":
        {"type":"object","x-kubernetes-preserve-unknown-fields":true}}]"#;
    let words = ["patch", "crd", "egresses.coil.cybozu.com", "--type=json", "-p", loose];
    lab.kubectl_with(&words, "")?.success()?;
    lab.wait_for("an Egress that nobody understands to be taken", LIMIT, |lab| {
        Ok(patch(lab, EGRESS, r#"{"spec": {"destinations": "everything"}}"#).map_err(|e| format!("{e:#}")))
    })
}

fn told(lab: &Lab) -> Result<String> {
    let words = "get events -n internet --field-selector reason=NotUnderstood,involvedObject.name=nat \
                 -o jsonpath={.items[*].message}";
    lab.kubectl(words)?.success()
}

#[test]
fn an_egress_that_is_not_understood_is_told_of_for_clients_of_both_kinds() -> Result<()> {
    let lab = start_with_client("unknown", "")?;
    lab.apply(&idle_pod("default", "old", "node2", ANNOTATION))?;
    wait_ready(&lab, "default", &["old"])?;
    for words in TUNNEL {
        lab.exec("default/old", &format!("ip {words}"))?.success()?;
    }
    let_everything_pass(&lab)?;
    // Who knew the Egress before goes on with what it was.
    wait_out(&lab, "default/client", "nat")?;
    check(told(&lab)?.is_empty(), || "an Event tells of an Egress whose clients go on".into())?;

    kill_coilds(&lab, &["node2"])?;
    let message = lab.wait_for("an Event about the Egress", LIMIT, |lab| {
        let message = told(lab)?;
        Ok(if message.is_empty() { Err("there is none".to_owned()) } else { Ok(message) })
    })?;
    for word in ["coild on node2", "cannot understand", "2 (", "default/client", "default/old"] {
        check(message.contains(word), || format!("{word:?} is not in {message:?}"))?;
    }
    for ip in [Ip::V4, Ip::V6] {
        let seen = seen(&lab, "default/client", ip)?;
        check(seen.is_none(), || format!("a client that is shut in was seen as {seen:?}"))?;
    }
    edge::nothing_leaked(&lab)?;

    patch(&lab, EGRESS, r#"{"spec": {"destinations": ["198.51.100.0/24", "2001:db8:9::/64"]}}"#)?;
    wait_out(&lab, "default/client", "nat")?;
    edge::only_gateways_got_out(&lab, &gateways(&lab, "nat")?)?;
    end(lab)
}
