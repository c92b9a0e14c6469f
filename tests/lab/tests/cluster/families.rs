//! Egresses of clusters with one address family, as Coil v2's own end-to-end tests use them.

use anyhow::Result;
use coil_lab::{
    Lab,
    config::{Family, Options},
};

use crate::{
    common::{check, end, idle_pod, name, namespace, program, wait_ready, wait_refused},
    edge::{self, wait_in},
    egress::{
        ANNOTATION, DESTINATIONS, echo_101_times, egress, gateways, patch, rolled_out, rolled_out_with,
        wait_out,
    },
};

/// 1 MiB, 101 times, through an Egress with fixed source ports, one with hashed ones, and one that changes; clients on the
/// gateways' node and on another. Pods without an annotation, or with one for an Egress that is none of theirs, stay in.
fn out_of(family: Family, test: &str) -> Result<()> {
    let options = Options { family, ..Options::named(&name(test)) };
    let lab = Lab::start(program(), options)?;
    edge::watch(&lab)?;
    lab.apply(&namespace("internet", "egress"))?;
    let fields = format!("replicas: 2, destinations: {DESTINATIONS}");
    lab.apply(&egress("nat", &fields))?;
    lab.apply(&egress("auto", &format!("fouSourcePortAuto: true, {fields}")))?;
    rolled_out(&lab, "nat")?;
    rolled_out(&lab, "auto")?;
    let families = family.each().len();
    check(gateways(&lab, "nat")?.len() == 2 * families, || format!("{:?}", gateways(&lab, "nat")))?;
    let auto = ANNOTATION.replace("nat", "auto");
    let pods = [
        idle_pod("default", "client", "node2", ANNOTATION),
        idle_pod("default", "near", "node3", ANNOTATION),
        idle_pod("default", "auto", "node2", &auto),
        idle_pod("default", "plain", "node2", ""),
        idle_pod("default", "wrong", "node1", "egress.coil.cybozu.com/default: nat"),
    ];
    lab.apply(&pods.concat())?;
    wait_ready(&lab, "default", &["client", "near", "auto", "plain"])?;
    for (pod, of) in [("default/client", "nat"), ("default/near", "nat"), ("default/auto", "auto")] {
        wait_out(&lab, pod, of)?;
        echo_101_times(&lab, pod)?;
    }
    let mut all = &gateways(&lab, "nat")? | &gateways(&lab, "auto")?;
    patch(&lab, "internet/egress/nat", r#"{"spec": {"fouSourcePortAuto": true}}"#)?;
    echo_101_times(&lab, "default/client")?;
    rolled_out_with(&lab, "nat", "--enable-sport-auto=true")?;
    wait_out(&lab, "default/client", "nat")?;
    all.extend(gateways(&lab, "nat")?);
    edge::nothing_leaked(&lab)?;
    wait_in(&lab, "default/plain")?;
    edge::only_gateways_got_out(&lab, &all)?;
    // Its Egress is in no such namespace: it does not even start.
    wait_refused(&lab, "default", "wrong", &["default/nat"])?;
    end(lab)
}

#[test]
fn ipv4_alone() -> Result<()> {
    out_of(Family::V4, "egress4")
}

#[test]
fn ipv6_alone() -> Result<()> {
    out_of(Family::V6, "egress6")
}
