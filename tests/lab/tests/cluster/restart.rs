//! coild is killed while packets flow: they go on, and the new one knows what the old one gave.

use std::{collections::BTreeSet, process::Child};

use anyhow::{Context as _, Result};

use crate::common::{
    LIMIT, addresses, check, end, get, idle_pod, items, kill_coilds, namespace, server_pod, start, wait_ready,
};

/// Turns of an echo, 20 ms apart: longer than all coilds take to come back.
const TURNS: &str = "--times 600 --pause 20 --bytes 1000 --timeout 5";

fn finish(what: &str, child: Child) -> Result<()> {
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {what}"))?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    check(output.status.success(), || format!("{what}: {said}"))
}

#[test]
fn traffic_goes_on_and_no_address_is_given_twice() -> Result<()> {
    let lab = start("restart")?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(
        "
apiVersion: coil.cybozu.com/v2
kind: Egress
metadata: {name: nat, namespace: internet}
spec: {destinations: ['198.51.100.0/24', '2001:db8:9::/64'], template: {spec: {nodeName: node3, containers: [{name: egress}]}}}
",
    )?;
    let pods = [
        server_pod("default", "server", "node1"),
        idle_pod("default", "near", "node1", ""),
        idle_pod("default", "far", "node2", ""),
        idle_pod("default", "client", "node2", "egress.coil.cybozu.com/internet: nat"),
    ];
    lab.wait_for("the Egress's Deployment", LIMIT, |lab| {
        let get = lab.kubectl("rollout status -n internet deployment/nat --timeout=20s")?;
        Ok(if get.ok { Ok(()) } else { Err(get.stderr) })
    })?;
    // The client is refused until its Egress is known.
    lab.apply(&pods.concat())?;
    wait_ready(&lab, "default", &["server", "near", "far", "client"])?;
    let server = addresses(&get(&lab, "pod server")?);
    let [v4, v6] = server.as_slice() else { anyhow::bail!("the server has {server:?}") };

    let mut flows = Vec::new();
    for (pod, to) in [
        ("near", format!("{v4}:5002")),
        ("far", format!("[{v6}]:5002")),
        ("client", "198.51.100.9:7".to_owned()),
        ("client", "[2001:db8:9::9]:7".to_owned()),
    ] {
        for tool in ["tcp-echo", "udp-echo"] {
            let words = format!("coil-lab tool {tool} {TURNS} {to}");
            flows.push((format!("{pod}: {words}"), lab.spawn_in_pod(&format!("default/{pod}"), &words)?));
        }
    }
    kill_coilds(&lab, &["node1", "node2", "node3"])?;
    // Not one flow has ended by itself: they were all there while each coild was away.
    for (what, flow) in &mut flows {
        let ended = flow.try_wait().context("cannot look at a flow")?;
        check(ended.is_none(), || format!("{what} ended before the last restart: {ended:?}"))?;
    }
    let names: Vec<String> = (0..6).map(|n| format!("new{n}")).collect();
    let new = names.iter().map(|name| idle_pod("default", name, "node1", ""));
    lab.apply(&new.collect::<Vec<_>>().concat())?;
    wait_ready(&lab, "default", &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    for (what, flow) in flows {
        finish(&what, flow)?;
    }

    let mut seen = BTreeSet::new();
    for pod in items(&lab, "pods -A")?.into_iter().filter(|pod| pod["spec"]["hostNetwork"] != true) {
        let own = addresses(&pod);
        check(own.len() == 2, || format!("{} has {own:?}", pod["metadata"]["name"]))?;
        for address in own {
            check(seen.insert(address.clone()), || format!("{address} is given twice"))?;
        }
    }
    for to in [v4, v6] {
        lab.exec("default/new5", &format!("ping -c 1 -W 5 {to}"))?.success()?;
    }
    end(lab)
}
