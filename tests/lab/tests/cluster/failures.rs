//! Pods that cannot have a network: an Event says why and what to do, nothing is left behind, and
//! what was mended works.

use anyhow::Result;
use coil_lab::Lab;

use crate::common::{end, idle_pod, namespace, start, wait_clean, wait_ready, wait_refused};

const NODE: &str = "node1";

#[test]
fn refused_pods_leave_nothing_and_recover() -> Result<()> {
    let lab = start("failures")?;
    unknown_pool(&lab)?;
    full_pool(&lab)?;
    bad_annotation(&lab)?;
    missing_egress(&lab)?;
    end(lab)
}

fn pool(name: &str, ipv4: &str, ipv6: &str, bits: u8) -> String {
    format!(
        "---
apiVersion: coil.cybozu.com/v2
kind: AddressPool
metadata: {{name: {name}}}
spec:
  blockSizeBits: {bits}
  subnets: [{{ipv4: {ipv4}, ipv6: '{ipv6}'}}]
"
    )
}

fn clear(lab: &Lab, namespace: &str) -> Result<()> {
    lab.kubectl(&format!("delete pods --all -n {namespace} --wait"))?.success()?;
    wait_clean(lab, NODE)
}

fn unknown_pool(lab: &Lab) -> Result<()> {
    lab.apply(&[namespace("lost", "nowhere"), idle_pod("lost", "p", NODE, "")].concat())?;
    wait_refused(lab, "lost", "p", &["pod lost/p", "nowhere", "AddressPool"])?;
    wait_clean(lab, NODE)?;
    lab.apply(&pool("nowhere", "10.71.0.0/28", "fd71::/124", 2))?;
    wait_ready(lab, "lost", &["p"])?;
    clear(lab, "lost")
}

/// A pool of one address, which another node's pod has.
fn full_pool(lab: &Lab) -> Result<()> {
    lab.apply(&pool("tiny", "10.72.0.1/32", "fd72::1/128", 0))?;
    lab.apply(&[namespace("crowd", "tiny"), idle_pod("crowd", "first", "node2", "")].concat())?;
    wait_ready(lab, "crowd", &["first"])?;
    lab.apply(&idle_pod("crowd", "second", NODE, ""))?;
    wait_refused(lab, "crowd", "second", &["pod crowd/second", "tiny", "subnet"])?;
    wait_clean(lab, NODE)?;
    lab.kubectl("delete pod -n crowd first --wait")?.success()?;
    wait_ready(lab, "crowd", &["second"])?;
    clear(lab, "crowd")
}

fn bad_annotation(lab: &Lab) -> Result<()> {
    lab.apply(&idle_pod("default", "typo", NODE, "egress.coil.cybozu.com/internet: Nat_1"))?;
    wait_refused(lab, "default", "typo", &["pod default/typo", "egress.coil.cybozu.com/internet", "Nat_1"])?;
    wait_clean(lab, NODE)?;
    lab.kubectl("annotate pod typo egress.coil.cybozu.com/internet-")?.success()?;
    wait_ready(lab, "default", &["typo"])?;
    clear(lab, "default")
}

fn missing_egress(lab: &Lab) -> Result<()> {
    lab.apply(&idle_pod("default", "early", NODE, "egress.coil.cybozu.com/internet: nat"))?;
    wait_refused(lab, "default", "early", &["pod default/early", "Egress", "internet/nat"])?;
    wait_clean(lab, NODE)?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(
        "
apiVersion: coil.cybozu.com/v2
kind: Egress
metadata: {name: nat, namespace: internet}
spec: {destinations: ['198.51.100.0/24', '2001:db8:9::/64'], template: {spec: {nodeName: node2, containers: [{name: egress}]}}}
",
    )?;
    wait_ready(lab, "default", &["early"])?;
    for url in ["http://198.51.100.9/", "http://[2001:db8:9::9]/"] {
        // The client may be there before its gateway.
        lab.wait_for(url, crate::common::LIMIT, |lab| {
            let get = lab.exec("default/early", &format!("coil-lab tool http-get --timeout 2 {url}"))?;
            Ok(if get.ok { Ok(()) } else { Err(get.stderr) })
        })?;
    }
    clear(lab, "default")
}
