//! Another version's programs, exchanged for this one's node by node under traffic: no connection breaks.
//!
//! `cargo xtask upgrade` builds the other version and runs this.

use std::{collections::BTreeSet, path::PathBuf, process::Child};

use anyhow::{Context as _, Result};
use coil_lab::{Lab, config::Options};
use serde_json::Value;

use crate::common::{
    LIMIT, addresses, check, end, get, idle_pod, items, name, namespace, program, server_pod, wait_clean,
    wait_ready,
};

/// Variable with the folder of the other version's programs.
const PROGRAMS: &str = "COIL_UPGRADE_FROM";
/// Turns of an echo, 50 ms apart: longer than all nodes are rolled. A turn that takes 10 s has failed.
const TURNS: &str = "--times 1800 --pause 50 --bytes 1000 --timeout 10";
/// The same, shorter than a gateway waits for its flows to end.
const SHORT: &str = "--times 200 --pause 50 --bytes 1000 --timeout 10";
const NODES: [&str; 3] = ["node1", "node2", "node3"];
const ON_NODES: [&str; 2] = ["coild", "coil-router"];
const GATEWAYS: &str = "pods -n internet -l app.kubernetes.io/instance=nat";
const CONTROLLERS: [&str; 2] = ["coil-ipam-controller", "coil-egress-controller"];

/// Whether a program of a place runs from a folder.
fn runs_from(lab: &Lab, place: &str, name: &str, dir: &std::path::Path) -> Result<bool> {
    let pid = lab.program_pid(place, name)?;
    let exe = lab.node(place, &format!("readlink /proc/{pid}/exe"))?.success()?;
    Ok(std::path::Path::new(exe.trim()).starts_with(dir))
}

fn wait_in_charge(lab: &Lab, node: &str) -> Result<()> {
    lab.wait_for(&format!("coild to be ready on {node}"), LIMIT, |lab| {
        let ready = lab.node(node, "coil-lab tool http-get --timeout 1 http://127.0.0.1:9385/readyz")?;
        Ok(if ready.ok { Ok(()) } else { Err(ready.stderr) })
    })
}

fn rolled_out(lab: &Lab) -> Result<()> {
    lab.wait_for("the gateways", LIMIT, |lab| {
        let get = lab.kubectl("rollout status -n internet deployment/nat --timeout=20s")?;
        Ok(if get.ok { Ok(()) } else { Err(get.stderr) })
    })
}

/// As the controller does when it has a new image: flows that are there stay with the gateways that go.
fn roll_gateways(lab: &Lab) -> Result<()> {
    let old: Vec<String> = items(lab, GATEWAYS)?.iter().map(name_of).collect();
    let mut flows = Vec::new();
    for to in ["198.51.100.9:7", "[2001:db8:9::9]:7"] {
        flows
            .push((to, lab.spawn_in_pod("default/client", &format!("coil-lab tool tcp-echo {SHORT} {to}"))?));
    }
    lab.wait_for("the client's connections", LIMIT, |lab| {
        let open = lab.exec("default/client", "ss -Htn state established")?.stdout.lines().count();
        Ok(if open == flows.len() { Ok(()) } else { Err(format!("{open} are open")) })
    })?;
    lab.kubectl("rollout restart -n internet deployment/nat")?.success()?;
    flows.into_iter().try_for_each(|(to, flow)| finish(to, flow))?;
    lab.wait_for("gateways of this version", LIMIT, |lab| {
        let gateways = items(lab, GATEWAYS)?;
        let new = gateways.iter().filter(|pod| is_ready(pod) && !old.contains(&name_of(pod))).count();
        let left = gateways.iter().filter(|pod| old.contains(&name_of(pod))).count();
        Ok(if (new, left) == (2, 0) { Ok(()) } else { Err(format!("{new} are ready, {left} are left")) })
    })
}

fn name_of(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn finish(what: &str, child: Child) -> Result<()> {
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {what}"))?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    check(output.status.success(), || format!("{what}: {said}"))
}

#[test]
#[ignore = "needs another version's programs: `cargo xtask upgrade` builds and runs it"]
fn from_another_version() -> Result<()> {
    let other = std::env::var_os(PROGRAMS).map(PathBuf::from);
    let other = other.with_context(|| format!("{PROGRAMS} names no folder: run `cargo xtask upgrade`"))?;
    let lab =
        Lab::start(program(), Options { programs: Some(other.clone()), ..Options::named(&name("upgrade")) })?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(
        "
apiVersion: coil.cybozu.com/v2
kind: Egress
metadata: {name: nat, namespace: internet}
spec:
  replicas: 2
  destinations: ['198.51.100.0/24', '2001:db8:9::/64']
",
    )?;
    rolled_out(&lab)?;
    let pods = [
        server_pod("default", "server", "node1"),
        idle_pod("default", "near", "node1", ""),
        idle_pod("default", "far", "node2", ""),
        idle_pod("default", "client", "node3", "egress.coil.cybozu.com/internet: nat"),
    ];
    lab.apply(&pods.concat())?;
    wait_ready(&lab, "default", &["server", "near", "far", "client"])?;
    let server = addresses(&get(&lab, "pod server")?);
    let [v4, v6] = server.as_slice() else { anyhow::bail!("the server has {server:?}") };
    for (place, program) in
        NODES.iter().flat_map(|node| ON_NODES.map(|p| (*node, p))).chain(CONTROLLERS.map(|p| ("control", p)))
    {
        check(runs_from(&lab, place, program, &other)?, || {
            format!("{program} of {place} is not the other's")
        })?;
    }

    let mut flows = Vec::new();
    for (pod, to) in [
        ("near", format!("{v4}:5002")),
        ("near", format!("[{v6}]:5002")),
        ("far", format!("{v4}:5002")),
        ("far", format!("[{v6}]:5002")),
        ("client", "198.51.100.9:7".to_owned()),
        ("client", "[2001:db8:9::9]:7".to_owned()),
    ] {
        let words = format!("coil-lab tool tcp-echo {TURNS} {to}");
        flows.push((format!("{pod}: {words}"), lab.spawn_in_pod(&format!("default/{pod}"), &words)?));
    }
    for (pod, count) in [("near", 2), ("far", 2), ("client", 2)] {
        lab.wait_for(&format!("the connections of {pod}"), LIMIT, |lab| {
            let open =
                lab.exec(&format!("default/{pod}"), "ss -Htn state established")?.stdout.lines().count();
            Ok(if open >= count { Ok(()) } else { Err(format!("{open} are open")) })
        })?;
    }

    lab.roll("control", &CONTROLLERS, LIMIT)?;
    for node in NODES {
        lab.roll(node, &ON_NODES, LIMIT)?;
        wait_in_charge(&lab, node)?;
        for program in ON_NODES {
            check(!runs_from(&lab, node, program, &other)?, || {
                format!("{program} of {node} was not rolled")
            })?;
        }
    }
    let mut ended = Vec::new();
    for (what, flow) in &mut flows {
        if flow.try_wait().context("cannot look at a flow")?.is_some() {
            ended.push(what.clone());
        }
    }
    if !ended.is_empty() {
        let broken = flows.into_iter().filter(|(what, _)| ended.contains(what));
        broken.into_iter().try_for_each(|(what, flow)| finish(&what, flow))?;
        anyhow::bail!("ended before everything was rolled: {ended:?}");
    }
    let new: Vec<String> = NODES.iter().map(|node| format!("new-{node}")).collect();
    let manifests = NODES.iter().zip(&new).map(|(node, pod)| idle_pod("default", pod, node, ""));
    lab.apply(&manifests.collect::<Vec<_>>().concat())?;
    wait_ready(&lab, "default", &new.iter().map(String::as_str).collect::<Vec<_>>())?;
    for (what, flow) in flows {
        finish(&what, flow)?;
    }
    roll_gateways(&lab)?;

    let mut seen = BTreeSet::new();
    for pod in items(&lab, "pods -A")?.into_iter().filter(|pod| pod["spec"]["hostNetwork"] != true) {
        for address in addresses(&pod) {
            check(seen.insert(address.clone()), || format!("{address} is given twice"))?;
        }
    }
    for pod in &new {
        for to in [v4, v6] {
            lab.exec(&format!("default/{pod}"), &format!("ping -c 1 -W 5 {to}"))?.success()?;
        }
    }
    // What the other version connected, this one disconnects.
    lab.kubectl("delete pods --all -n default --wait=true")?.success()?;
    lab.kubectl("delete egress -n internet nat --wait=true")?.success()?;
    for node in NODES {
        wait_clean(&lab, node)?;
    }
    end(lab)
}
