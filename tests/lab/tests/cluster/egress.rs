//! Egresses as their users change them, with traffic through real gateways.
//!
//! ```text
//!  node1: web (routed, client)   node2: client, plain   node3: gateway   world: echo on port 7, HTTP
//! ```

use std::{
    net::IpAddr,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use coil_lab::{Lab, config::Ip};
use serde_json::Value;

use crate::{
    common::{
        LIMIT, addresses, check, end, get, idle_pod, items, logs, namespace, server_pod, start, wait_ready,
    },
    gateways::connections_of,
};

pub(crate) const ANNOTATION: &str = "egress.coil.cybozu.com/internet: nat";
pub(crate) const DESTINATIONS: &str = "['198.51.100.0/24', '2001:db8:9::/64']";

/// An Egress whose gateways run on node3.
pub(crate) fn egress(name: &str, fields: &str) -> String {
    format!(
        "---
apiVersion: coil.cybozu.com/v2
kind: Egress
metadata: {{name: {name}, namespace: internet}}
spec: {{{fields}, template: {{spec: {{nodeName: node3, containers: [{{name: egress}}]}}}}}}
"
    )
}

pub(crate) fn rolled_out(lab: &Lab, name: &str) -> Result<()> {
    lab.wait_for(&format!("the gateways of {name}"), LIMIT, |lab| {
        let get = lab.kubectl(&format!("rollout status -n internet deployment/{name} --timeout=20s"))?;
        Ok(if get.ok { Ok(()) } else { Err(get.stderr) })
    })
}

pub(crate) fn patch(lab: &Lab, what: &str, patch: &str) -> Result<()> {
    let words = ["patch", "--type=merge", "-p", patch, "-n"];
    let (namespace, object) = what.split_once('/').context("NAMESPACE/KIND/NAME")?;
    lab.kubectl_with(&[&words[..], &[namespace, object]].concat(), "")?.success().map(drop)
}

pub(crate) fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// The address that the world's server saw of a pod, if it answers.
pub(crate) fn seen(lab: &Lab, pod: &str, ip: Ip) -> Result<Option<IpAddr>> {
    let url = format!("http://{}/", socket(ip.world(), 80));
    let done = lab.exec(pod, &format!("coil-lab tool http-get --timeout 1 {url}"))?;
    let answer: Option<Value> = serde_json::from_str(&done.stdout).ok();
    Ok(answer.and_then(|answer| answer["peer"].as_str()?.parse().ok()))
}

pub(crate) fn gateways(lab: &Lab, egress: &str) -> Result<Vec<IpAddr>> {
    let pods = items(lab, &format!("pods -n internet -l app.kubernetes.io/instance={egress}"))?;
    Ok(pods.iter().flat_map(addresses).filter_map(|a| a.parse().ok()).collect())
}

/// Waits until a pod is seen as a gateway of an Egress.
pub(crate) fn wait_out(lab: &Lab, pod: &str, egress: &str) -> Result<()> {
    for ip in lab.options().family.each() {
        lab.wait_for(&format!("{pod} to leave by {egress}, {}", ip.name()), LIMIT, |lab| {
            let (seen, gateways) = (seen(lab, pod, *ip)?, gateways(lab, egress)?);
            let out = seen.is_some_and(|seen| gateways.contains(&seen));
            Ok(if out {
                Ok(())
            } else {
                Err(format!("the world saw {seen:?}, the gateways have {gateways:?}"))
            })
        })?;
    }
    Ok(())
}

/// Waits until a pod gets no answer from the world.
pub(crate) fn wait_in(lab: &Lab, pod: &str) -> Result<()> {
    for ip in lab.options().family.each() {
        lab.wait_for(&format!("{pod} to stay in, {}", ip.name()), LIMIT, |lab| {
            Ok(seen(lab, pod, *ip)?.map_or(Ok(()), |seen| Err(format!("the world saw {seen}"))))
        })?;
    }
    Ok(())
}

pub(crate) fn echo_101_times(lab: &Lab, pod: &str) -> Result<()> {
    for ip in lab.options().family.each() {
        let to = socket(ip.world(), 7);
        lab.exec(pod, &format!("coil-lab tool tcp-echo --times 101 --bytes 1048576 --timeout 20 {to}"))?
            .success()?;
    }
    Ok(())
}

pub(crate) fn finish(what: &str, child: Child) -> Result<()> {
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {what}"))?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    check(output.status.success(), || format!("{what}: {said}"))
}

/// Starts a lab with the Egress `nat`, whose other fields are given, and a client of it on node2.
pub(crate) fn start_with_client(test: &str, fields: &str) -> Result<Lab> {
    let lab = start(test)?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(&egress("nat", &format!("{fields}destinations: {DESTINATIONS}")))?;
    rolled_out(&lab, "nat")?;
    lab.apply(&idle_pod("default", "client", "node2", ANNOTATION))?;
    wait_ready(&lab, "default", &["client"])?;
    wait_out(&lab, "default/client", "nat")?;
    Ok(lab)
}

/// Opens connections of each family to the world, with data every tenth of a second, and waits until all are. How long they
/// last the words say.
pub(crate) fn open_flows(lab: &Lab, pod: &str, of_each: usize, lasting: &str) -> Result<Vec<Child>> {
    let flows = [Ip::V4, Ip::V6].map(|ip| {
        let words = format!(
            "coil-lab tool tcp-echo --connections {of_each} --pause 100 --bytes 1000 {lasting} {}",
            socket(ip.world(), 7)
        );
        lab.spawn_in_pod(pod, &words)
    });
    let flows = flows.into_iter().collect::<Result<_>>()?;
    lab.wait_for("all flows to be open", LIMIT, |lab| {
        let open = lab.exec(pod, "ss -Htn state established")?.stdout.lines().count();
        Ok(if open >= 2 * of_each { Ok(()) } else { Err(format!("{open} are")) })
    })?;
    Ok(flows)
}

#[test]
fn clients_follow_their_egress_and_their_annotations() -> Result<()> {
    let lab = start("egress")?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(&egress("nat", &format!("replicas: 2, destinations: {DESTINATIONS}")))?;
    rolled_out(&lab, "nat")?;
    lab.apply(
        &[
            idle_pod("default", "client", "node2", ANNOTATION),
            idle_pod("default", "near", "node3", ANNOTATION),
        ]
        .concat(),
    )?;
    wait_ready(&lab, "default", &["client", "near"])?;
    for pod in ["default/client", "default/near"] {
        wait_out(&lab, pod, "nat")?;
        echo_101_times(&lab, pod)?;
    }

    patch(&lab, "internet/egress/nat", r#"{"spec": {"fouSourcePortAuto": true}}"#)?;
    echo_101_times(&lab, "default/client")?;
    patch(&lab, "internet/egress/nat", r#"{"spec": {"sessionAffinity": "None"}}"#)?;
    echo_101_times(&lab, "default/client")?;

    // Destinations of a running client.
    patch(&lab, "internet/egress/nat", r#"{"spec": {"destinations": ["203.0.113.0/24"]}}"#)?;
    wait_in(&lab, "default/client")?;
    let both = r#"{"spec": {"destinations": ["198.51.100.0/24", "2001:db8:9::/64"]}}"#;
    patch(&lab, "internet/egress/nat", both)?;
    wait_out(&lab, "default/client", "nat")?;

    // Its annotation, and a second Egress with a longer prefix.
    let annotate = |value: &str| lab.kubectl(&format!("annotate pod client --overwrite {value}"))?.success();
    annotate("egress.coil.cybozu.com/internet-")?;
    wait_in(&lab, "default/client")?;
    lab.apply(&egress("longer", "destinations: ['198.51.100.9/32', '2001:db8:9::9/128']"))?;
    rolled_out(&lab, "longer")?;
    annotate("egress.coil.cybozu.com/internet=nat,longer")?;
    wait_out(&lab, "default/client", "longer")?;
    annotate("egress.coil.cybozu.com/internet=,")?;
    wait_out(&lab, "default/client", "longer")?;
    annotate("egress.coil.cybozu.com/internet=nat")?;
    wait_out(&lab, "default/client", "nat")?;

    lab.kubectl("delete egress -n internet nat --wait")?.success()?;
    wait_in(&lab, "default/client")?;
    end(lab)
}

#[test]
fn every_kind_of_packet_finds_its_way() -> Result<()> {
    let lab = start("packets")?;
    lab.apply(&namespace("internet", "egress"))?;
    let destinations = "['198.51.100.0/24', '2001:db8:9::/64', '192.0.2.77/32', '2001:db8:77::77/128']";
    lab.apply(&egress("nat", &format!("destinations: {destinations}")))?;
    rolled_out(&lab, "nat")?;
    let pods = [
        idle_pod("default", "client", "node2", ANNOTATION),
        idle_pod("default", "near", "node3", ANNOTATION),
        idle_pod("default", "plain", "node2", ""),
    ];
    lab.apply(&pods.concat())?;
    wait_ready(&lab, "default", &["client", "near", "plain"])?;
    // On the gateway's own node.
    lab.node("node3", "ip addr add 192.0.2.77/32 dev lo")?.success()?;
    lab.node("node3", "ip addr add 2001:db8:77::77/128 dev lo nodad")?.success()?;
    for pod in ["default/client", "default/near"] {
        for (ip, own) in [(Ip::V4, "192.0.2.77"), (Ip::V6, "2001:db8:77::77")] {
            let (flag, world) = (ip.flag(), ip.world());
            lab.exec(pod, &format!("ping {flag} -c 2 -i 0.2 -W 2 {world}"))?.success()?;
            // In fragments, both ways.
            lab.exec(pod, &format!("ping {flag} -c 2 -i 0.2 -W 3 -s 4000 {world}"))?.success()?;
            let to = socket(world, 7);
            lab.exec(pod, &format!("coil-lab tool udp-echo --bytes 1400 --timeout 3 {to}"))?.success()?;
            // As QUIC sends: the kernel gets several datagrams in one piece.
            lab.exec(pod, &format!("coil-lab tool udp-echo --bytes 1200 --segments 20 --timeout 3 {to}"))?
                .success()?;
            // Nobody listens: the world's error gets back to the client.
            let refused =
                lab.exec(pod, &format!("coil-lab tool udp-echo --times 1 --timeout 3 {}", socket(world, 9)))?;
            check(!refused.ok && refused.stderr.contains("refused"), || {
                format!("{pod} to a closed port of {world}: {}", refused.stderr)
            })?;
            // The last hop: the node of the gateway answers.
            let last = lab.exec(pod, &format!("ping {flag} -c 1 -W 3 -t 1 {world}"))?;
            check(last.stdout.contains("exceeded") || last.stdout.contains("Hop limit"), || {
                format!("{pod}, one hop: {}{}", last.stdout, last.stderr)
            })?;
            if pod == "default/client" {
                lab.exec(pod, &format!("ping {flag} -c 2 -i 0.2 -W 2 {own}"))?.success()?;
            }
        }
    }
    end(lab)
}

#[test]
fn what_came_in_is_answered_the_way_it_came() -> Result<()> {
    let lab = start("originating")?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(&egress("nat", &format!("originatingOnly: true, destinations: {DESTINATIONS}")))?;
    rolled_out(&lab, "nat")?;
    let web = server_pod("internet", "web", "node1")
        .replace("annotations: {}", &format!("annotations: {{{ANNOTATION}}}"));
    lab.apply(&web)?;
    wait_ready(&lab, "internet", &["web"])?;
    wait_out(&lab, "internet/web", "nat")?;
    let own: Vec<IpAddr> =
        addresses(&get(&lab, "pod -n internet web")?).iter().filter_map(|a| a.parse().ok()).collect();
    // From an address that is a destination of the Egress: the world has others on the way to the nodes.
    let echo = |lab: &Lab, address: IpAddr| {
        let world = Ip::of(address).world();
        lab.world(&format!("ping -c 1 -W 1 -I {world} {address}"))
    };
    for address in &own {
        lab.wait_for(&format!("the world to reach {address}"), LIMIT, |lab| {
            let done = echo(lab, *address)?;
            Ok(if done.ok { Ok(()) } else { Err(done.stdout) })
        })?;
    }
    patch(&lab, "internet/egress/nat", r#"{"spec": {"originatingOnly": false}}"#)?;
    for address in own {
        lab.wait_for(&format!("answers from {address} to leave by the gateway"), LIMIT, |lab| {
            let done = echo(lab, address)?;
            Ok(if done.ok { Err("the world still reaches it".to_owned()) } else { Ok(()) })
        })?;
    }
    end(lab)
}

/// Longer than a rollout takes, so that it is their flows which keep gateways.
const PATIENCE: Duration = Duration::from_secs(240);

/// Addresses of an Egress's gateways, by whether they are terminating.
fn gateways_by_end(lab: &Lab, egress: &str) -> Result<(Vec<IpAddr>, Vec<IpAddr>)> {
    let pods = items(lab, &format!("pods -n internet -l app.kubernetes.io/instance={egress}"))?;
    let (going, staying): (Vec<_>, Vec<_>) =
        pods.iter().partition(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
    let all = |pods: Vec<&Value>| pods.into_iter().flat_map(addresses).flat_map(|a| a.parse()).collect();
    Ok((all(going), all(staying)))
}

#[test]
fn flows_finish_on_gateways_that_go() -> Result<()> {
    const OF_EACH: usize = 100;
    let lab = start("draining")?;
    let patience = PATIENCE.as_secs();
    let patient = format!(
        "terminationGracePeriodSeconds: {}, containers: [{{name: egress, args: ['--drain-timeout={patience}s']}}]",
        patience + 10
    );
    lab.apply(&namespace("internet", "egress"))?;
    let fields = format!("replicas: 2, sessionAffinity: None, destinations: {DESTINATIONS}");
    lab.apply(&egress("nat", &fields).replace("containers: [{name: egress}]", &patient))?;
    rolled_out(&lab, "nat")?;
    lab.apply(&idle_pod("default", "client", "node2", ANNOTATION))?;
    wait_ready(&lab, "default", &["client"])?;
    wait_out(&lab, "default/client", "nat")?;

    let before = gateways(&lab, "nat")?;
    let may_end = logs(&lab.options().name)?.join("flows-may-end");
    let lasting = format!("--times 1 --until {} --timeout 20", may_end.display());
    let flows = open_flows(&lab, "default/client", OF_EACH, &lasting)?;
    let carried = |lab: &Lab| {
        let of = |address: &IpAddr| connections_of(lab, std::slice::from_ref(address));
        before.iter().map(of).collect::<Result<Vec<_>>>()
    };
    let all = carried(&lab)?;
    check(before.len() == 4 && all.iter().sum::<usize>() == 2 * OF_EACH && !all.contains(&0), || {
        format!("of the gateways {before:?} the world sees {all:?} flows")
    })?;

    let told = Instant::now();
    lab.kubectl("rollout restart -n internet deployment/nat")?.success()?;
    // Both old gateways were told to go, and not one flow, none of which may end yet, has left them.
    let new = lab.wait_for("both old gateways to be terminating", LIMIT * 2, |lab| {
        let (going, staying) = gateways_by_end(lab, "nat")?;
        let all_go = before.iter().all(|old| going.contains(old)) && staying.len() == before.len();
        Ok(if all_go { Ok(staying) } else { Err(format!("{going:?} are, {staying:?} stay")) })
    })?;
    // What begins now leaves by those that stay.
    lab.wait_for("new flows to leave by new gateways", LIMIT, |lab| {
        let mut strays = Vec::new();
        for ip in [Ip::V4, Ip::V6] {
            for _ in 0..5 {
                let seen = seen(lab, "default/client", ip)?;
                strays.extend((!seen.is_some_and(|seen| new.contains(&seen))).then_some(seen));
            }
        }
        Ok(if strays.is_empty() { Ok(()) } else { Err(format!("the world saw {strays:?}, not {new:?}")) })
    })?;
    let (going, _) = gateways_by_end(&lab, "nat")?;
    let still = carried(&lab)?;
    check(before.iter().all(|old| going.contains(old)) && still == all, || {
        format!("of {before:?}, which had {all:?} flows, {going:?} are terminating; they have {still:?}")
    })?;

    std::fs::write(&may_end, "").with_context(|| format!("cannot write {}", may_end.display()))?;
    for flow in flows {
        finish("flows of a family", flow)?;
    }
    lab.wait_for("the old gateways to go", LIMIT, |lab| {
        let now = gateways(lab, "nat")?;
        Ok(if now.iter().any(|g| before.contains(g)) { Err(format!("there are {now:?}")) } else { Ok(()) })
    })?;
    check(told.elapsed() < PATIENCE, || "gateways went for want of patience, not of flows".to_owned())?;
    rolled_out(&lab, "nat")?;
    wait_out(&lab, "default/client", "nat")?;
    end(lab)
}
