//! coild and coil-egress are killed while packets flow: they go on, and the new ones know what the old ones did.

use std::{collections::BTreeSet, fmt::Display, io::Read as _, process::Child, time::Duration};

use anyhow::{Context as _, Result};
use coil_lab::{Lab, config::Ip};
use coil_traffic::machine::patience;

use crate::{
    common::{
        LIMIT, addresses, check, end, get, idle_pod, items, kill_coilds, namespace, server_pod, start,
        wait_ready,
    },
    edge,
    egress::{gateways, socket, start_with_client, wait_out},
    gateways::pods_of,
};

/// Between two echoes of a flow.
const PAUSE: Duration = Duration::from_millis(20);
/// Echoes for as long as a test takes. What is not answered in time ends it; of datagrams, which nobody promises to deliver, the
/// third: a flow that has died ends within [`A_WHILE`].
const FOR_EVER: [(&str, &str); 2] =
    [("tcp-echo", "--times 1000000 --timeout 5"), ("udp-echo", "--times 1000000 --timeout 3 --lost 2")];
/// The same, of which nothing may be lost while only coilds are killed.
const NOTHING_LOST: [(&str, &str); 2] =
    [("tcp-echo", "--times 1000000 --timeout 5"), ("udp-echo", "--times 1000000 --timeout 5 --lost 0")];
/// Twice that, once for each family, is longer than any of them waits.
const A_WHILE: (&str, &str) = ("tcp-echo", "--times 300 --timeout 5");

/// The words of one of these flows. A machine on which each waits longer has longer pauses, too.
fn words((tool, flags): (&str, &str), to: impl Display) -> String {
    format!("coil-lab tool {tool} {flags} --pause {} --bytes 1000 {to}", patience(PAUSE).as_millis())
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
        for flow in NOTHING_LOST {
            let words = words(flow, &to);
            flows.push((format!("{pod}: {words}"), lab.spawn_in_pod(&format!("default/{pod}"), &words)?));
        }
    }
    kill_coilds(&lab, &["node1", "node2", "node3"])?;
    // Not one flow has died: they were all there while each coild was away.
    still_flow(&lab, &mut flows).context("all coilds were killed")?;
    let names: Vec<String> = (0..6).map(|n| format!("new{n}")).collect();
    let new = names.iter().map(|name| idle_pod("default", name, "node1", ""));
    lab.apply(&new.collect::<Vec<_>>().concat())?;
    wait_ready(&lab, "default", &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    still_flow(&lab, &mut flows).context("pods came after all coilds were killed")?;
    end_all(flows)?;

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

/// coil-egress of a gateway pod on node3: its process, how often it was started again, and whether it is ready.
fn gateway(lab: &Lab, pod: &str) -> Result<(String, i64, bool)> {
    let status = &get(lab, &format!("pod -n internet {pod}"))?["status"]["containerStatuses"][0];
    let restarts = status["restartCount"].as_i64().context("a container's restarts")?;
    // The programs of all pods have their processes in one list: this one listens in its pod's namespace.
    let listening = lab.exec(&format!("internet/{pod}"), "ss -Hltnp sport = :8081")?.stdout;
    let pid =
        listening.split("pid=").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    Ok((pid.unwrap_or_default().to_owned(), restarts, status["ready"] == true))
}

/// Whether none of the flows has ended, once whoever waits for an answer by now would have given up.
fn still_flow(lab: &Lab, flows: &mut [(String, Child)]) -> Result<()> {
    for ip in [Ip::V4, Ip::V6] {
        lab.exec("default/client", &words(A_WHILE, socket(ip.world(), 7)))?.success()?;
    }
    for (what, flow) in flows {
        if let Some(ended) = flow.try_wait().context("cannot look at a flow")? {
            let mut said = String::new();
            flow.stderr.as_mut().context("a flow's errors")?.read_to_string(&mut said)?;
            anyhow::bail!("{what} has ended: {ended}: {said}");
        }
    }
    Ok(())
}

fn end_all(flows: Vec<(String, Child)>) -> Result<()> {
    for (_, mut flow) in flows {
        flow.kill()?;
        flow.wait()?;
    }
    Ok(())
}

#[test]
fn flows_through_a_gateway_outlive_coil_egress_and_coild() -> Result<()> {
    let lab = start_with_client("restart-gateway", "")?;
    // Alone, and at once with the coild of its own node, and of the client's.
    flows_outlive_coil_egress(&lab, &[&[], &["node3"], &["node2"]])?;
    end(lab)
}

/// Kills coil-egress of all gateways of `nat`, again and again, each time at once with the coilds of some nodes, under flows of
/// its client.
pub(crate) fn flows_outlive_coil_egress(lab: &Lab, coilds: &[&[&str]]) -> Result<()> {
    let pods = pods_of(lab, "nat")?;
    let own = gateways(lab, "nat")?;
    let mut flows = Vec::new();
    for ip in [Ip::V4, Ip::V6] {
        for flow in FOR_EVER {
            let words = words(flow, socket(ip.world(), 7));
            flows.push((words.clone(), lab.spawn_in_pod("default/client", &words)?));
        }
    }
    still_flow(lab, &mut flows)?;
    for coilds in coilds {
        let before = pods.iter().map(|pod| gateway(lab, pod)).collect::<Result<Vec<_>>>()?;
        for (pod, (pid, ..)) in pods.iter().zip(&before) {
            check(!pid.is_empty(), || format!("coil-egress of {pod} does not listen"))?;
            lab.node("node3", &format!("kill -9 {pid}"))?.success()?;
        }
        kill_coilds(lab, coilds)?;
        for (pod, (pid, restarts, _)) in pods.iter().zip(&before) {
            lab.wait_for(&format!("coil-egress of {pod} to come back beside {coilds:?}"), LIMIT, |lab| {
                let now = gateway(lab, pod)?;
                Ok(if now.0 != *pid && now.1 > *restarts && now.2 { Ok(()) } else { Err(format!("{now:?}")) })
            })?;
        }
        still_flow(lab, &mut flows)
            .with_context(|| format!("coil-egress and the coilds {coilds:?} were killed"))?;
    }
    end_all(flows)?;
    let now = gateways(lab, "nat")?;
    check(!own.is_empty() && now == own, || format!("{pods:?} had {own:?}, and have {now:?}"))?;
    wait_out(lab, "default/client", "nat")?;
    edge::nothing_leaked(lab)?;
    edge::only_gateways_got_out(lab, &now)
}
