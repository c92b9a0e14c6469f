//! Egresses as their users change them, with traffic through real gateways.
//!
//! ```text
//!  node1: web (routed, client)   node2: client, plain   node3: gateway   world: echo on port 7, HTTP
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Child,
    time::Duration,
};

use anyhow::{Context as _, Result};
use coil_api::gateway::{KERNEL_LACKS, OTHERS_DROPPED};
use coil_lab::{
    Lab,
    config::{Ip, Options},
};
use coil_traffic::machine::patience;
use serde_json::Value;

use crate::{
    common::{
        LIMIT, addresses, check, end, get, idle_pod, items, name, namespace, program, server_pod, start,
        wait_ready,
    },
    edge::{self, wait_in},
    forgers::address,
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
    // A gateway that goes may take most of its grace period.
    lab.wait_for(&format!("the gateways of {name}"), LIMIT * 2, |lab| {
        let get = lab.kubectl(&format!("rollout status -n internet deployment/{name} --timeout=20s"))?;
        Ok(if get.ok { Ok(()) } else { Err(get.stderr) })
    })
}

/// The same, once they are run with an argument that a change of the Egress brings.
pub(crate) fn rolled_out_with(lab: &Lab, name: &str, argument: &str) -> Result<()> {
    let args =
        format!("get deployment -n internet {name} -o jsonpath={{.spec.template.spec.containers[*].args}}");
    lab.wait_for(&format!("{name} to have {argument}"), LIMIT, |lab| {
        let args = lab.kubectl(&args)?.success()?;
        Ok(if args.contains(argument) { Ok(()) } else { Err(args) })
    })?;
    rolled_out(lab, name)
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

/// The addresses of all pods of an Egress, also of those that are terminating.
pub(crate) fn gateways(lab: &Lab, egress: &str) -> Result<BTreeSet<IpAddr>> {
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

/// UDP source ports of the FOU in which a client's flows leave its node.
fn outer_ports(lab: &Lab, node: &str, client: IpAddr) -> Result<BTreeSet<u64>> {
    let map = match Ip::of(client) {
        Ip::V4 => "coil_pin4",
        Ip::V6 => "coil_pin6",
    };
    let text = lab.node(node, &format!("bpftool -j map dump pinned /sys/fs/bpf/coil/maps/{map}"))?;
    let flows: Vec<Value> = serde_json::from_str(&text.success()?).context("bpftool's output is no list")?;
    let own: Vec<u64> = match client {
        IpAddr::V4(v4) => v4.octets().map(u64::from).into(),
        IpAddr::V6(v6) => v6.octets().map(u64::from).into(),
    };
    let flows = flows.iter().map(|flow| &flow["formatted"]);
    let port = |flow: &Value| flow["value"]["sport"].as_u64().with_context(|| format!("{flow} has no port"));
    flows.filter(|flow| flow["key"]["client"] == Value::from(own.clone())).map(port).collect()
}

/// Starts a lab with the Egress `nat`, whose other fields are given, and a client of it on node2.
pub(crate) fn start_with_client(test: &str, fields: &str) -> Result<Lab> {
    start_with_client_of(test, &egress("nat", &format!("{fields}destinations: {DESTINATIONS}")))
}

/// The same with an Egress `nat` that is given as a whole.
pub(crate) fn start_with_client_of(test: &str, egress: &str) -> Result<Lab> {
    start_with_client_on(Options::named(&name(test)), egress)
}

/// The same, in any lab. What leaves without being translated is counted.
pub(crate) fn start_with_client_on(options: Options, egress: &str) -> Result<Lab> {
    let lab = Lab::start(program(), options)?;
    edge::watch(&lab)?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(egress)?;
    rolled_out(&lab, "nat")?;
    lab.apply(&idle_pod("default", "client", "node2", ANNOTATION))?;
    wait_ready(&lab, "default", &["client"])?;
    wait_out(&lab, "default/client", "nat")?;
    Ok(lab)
}

/// Opens connections of each family to the world, with data every tenth of a second (of a real machine), and waits until all
/// are. How long they last the words say.
pub(crate) fn open_flows(lab: &Lab, pod: &str, of_each: usize, lasting: &str) -> Result<Vec<Child>> {
    let pause = patience(Duration::from_millis(100)).as_millis();
    let flows = [Ip::V4, Ip::V6].map(|ip| {
        let words = format!(
            "coil-lab tool tcp-echo --connections {of_each} --pause {pause} --bytes 1000 {lasting} {}",
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
    edge::watch(&lab)?;
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
    let mut all = gateways(&lab, "nat")?;

    for ip in [Ip::V4, Ip::V6] {
        let ports = outer_ports(&lab, "node2", address(&lab, "default/client", ip)?)?;
        check(ports == [5555].into(), || format!("the client sends FOU from {ports:?}, {}", ip.name()))?;
    }
    patch(&lab, "internet/egress/nat", r#"{"spec": {"fouSourcePortAuto": true}}"#)?;
    echo_101_times(&lab, "default/client")?;
    // Of flows that begin after it. Some may share one.
    for ip in [Ip::V4, Ip::V6] {
        let client = address(&lab, "default/client", ip)?;
        let echo =
            format!("coil-lab tool tcp-echo --connections 4 --times 1 --timeout 5 {}", socket(ip.world(), 7));
        lab.wait_for(&format!("FOU from ports by flow, {}", ip.name()), LIMIT, |lab| {
            lab.exec("default/client", &echo)?.success()?;
            let ports = outer_ports(lab, "node2", client)?;
            let several = ports.iter().filter(|port| **port != 5555).count() >= 3;
            Ok(if several { Ok(()) } else { Err(format!("they are {ports:?}")) })
        })?;
    }
    patch(&lab, "internet/egress/nat", r#"{"spec": {"sessionAffinity": "None"}}"#)?;
    echo_101_times(&lab, "default/client")?;
    // Other source ports are other gateways.
    rolled_out_with(&lab, "nat", "--enable-sport-auto=true")?;
    wait_out(&lab, "default/client", "nat")?;
    all.extend(gateways(&lab, "nat")?);
    edge::nothing_leaked(&lab)?;

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
    all.extend(gateways(&lab, "longer")?);
    annotate("egress.coil.cybozu.com/internet=nat,longer")?;
    wait_out(&lab, "default/client", "longer")?;
    annotate("egress.coil.cybozu.com/internet=,")?;
    wait_out(&lab, "default/client", "longer")?;
    annotate("egress.coil.cybozu.com/internet=nat")?;
    wait_out(&lab, "default/client", "nat")?;

    lab.kubectl("delete egress -n internet nat --wait")?.success()?;
    wait_in(&lab, "default/client")?;
    edge::only_gateways_got_out(&lab, &all)?;
    end(lab)
}

/// First port of the server behind the gateway's node: echo is on the next one, and who asks on the one after that.
const BEHIND_PORT: u16 = 5053;

const fn behind(ip: Ip) -> IpAddr {
    match ip {
        Ip::V4 => IpAddr::V4(Ipv4Addr::new(198, 18, 7, 2)),
        Ip::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x78, 0, 0, 0, 0, 2)),
    }
}

/// A host behind a link of the gateway's node that is no uplink, with a server.
fn serve_behind(lab: &Lab) -> Result<Child> {
    for words in [
        "netns add behind",
        "link add behind type veth peer name eth0 netns behind",
        "addr add 198.18.7.1/24 dev behind",
        "addr add 2001:db8:78::1/64 dev behind nodad",
        "link set behind up",
        "-n behind link set lo up",
        "-n behind addr add 198.18.7.2/24 dev eth0",
        "-n behind addr add 2001:db8:78::2/64 dev eth0 nodad",
        "-n behind link set eth0 up",
        "-n behind route add default via 198.18.7.1",
        "-n behind route add default via 2001:db8:78::1",
    ] {
        lab.node("node3", &format!("ip {words}"))?.success()?;
    }
    let serve = format!("ip netns exec behind coil-lab tool serve {BEHIND_PORT}");
    let server = lab.spawn_on_node("node3", &serve)?;
    for ip in [Ip::V4, Ip::V6] {
        let whoami = format!("coil-lab tool whoami --timeout 1 {}", socket(behind(ip), BEHIND_PORT + 2));
        lab.wait_for(&format!("the server behind node3, {}", ip.name()), LIMIT, |lab| {
            let done = lab.node("node3", &whoami)?;
            Ok(if done.ok { Ok(()) } else { Err(done.stderr) })
        })?;
    }
    Ok(server)
}

/// Every kind of packet that a client exchanges with a host that has an echo server.
fn exchange_every_kind(lab: &Lab, pod: &str, host: IpAddr, echo: u16) -> Result<()> {
    let (flag, to) = (Ip::of(host).flag(), socket(host, echo));
    lab.exec(pod, &format!("ping {flag} -c 2 -i 0.2 -W 2 {host}"))?.success()?;
    // In fragments, both ways.
    lab.exec(pod, &format!("ping {flag} -c 2 -i 0.2 -W 3 -s 4000 {host}"))?.success()?;
    lab.exec(pod, &format!("coil-lab tool tcp-echo --times 3 --timeout 10 {to}"))?.success()?;
    lab.exec(pod, &format!("coil-lab tool udp-echo --bytes 1400 --timeout 3 {to}"))?.success()?;
    // As QUIC sends: the kernel gets several datagrams in one piece.
    lab.exec(pod, &format!("coil-lab tool udp-echo --bytes 1200 --segments 20 --timeout 3 {to}"))?
        .success()?;
    // Nobody listens: the host's error gets back to the client.
    let refused =
        lab.exec(pod, &format!("coil-lab tool udp-echo --times 1 --timeout 3 {}", socket(host, 9)))?;
    check(!refused.ok && refused.stderr.contains("refused"), || {
        format!("{pod} to a closed port of {host}: {}", refused.stderr)
    })?;
    // The last hop: the node of the gateway answers.
    let last = lab.exec(pod, &format!("ping {flag} -c 1 -W 3 -t 1 {host}"))?;
    check(last.stdout.contains("exceeded") || last.stdout.contains("Hop limit"), || {
        format!("{pod} to {host}, one hop: {}{}", last.stdout, last.stderr)
    })
}

/// Where the kernel lacks what the programs leave to it, gateways serve all the same, and the Egress says what they drop.
fn says_what_it_drops(lab: &Lab) -> Result<()> {
    if coil_lab::kernel::lacks()?.is_none() {
        return Ok(());
    }
    lab.wait_for("the Egress to say what its gateways drop", LIMIT, |lab| {
        let status = get(lab, "egress -n internet nat")?["status"].clone();
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let said = conditions.any(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            let what = format!("{OTHERS_DROPPED}{KERNEL_LACKS}");
            (&condition["type"], &condition["status"]) == (&"Available".into(), &"True".into())
                && message.contains(&what)
        });
        Ok(if said { Ok(()) } else { Err(format!("it says {status}")) })
    })
}

#[test]
fn every_kind_of_packet_finds_its_way() -> Result<()> {
    let lab = start("packets")?;
    edge::watch(&lab)?;
    lab.apply(&namespace("internet", "egress"))?;
    let own = "'192.0.2.77/32', '2001:db8:77::77/128', '198.18.7.0/24', '2001:db8:78::/64'";
    let destinations = format!("['198.51.100.0/24', '2001:db8:9::/64', {own}]");
    lab.apply(&egress("nat", &format!("destinations: {destinations}")))?;
    rolled_out(&lab, "nat")?;
    says_what_it_drops(&lab)?;
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
    let mut server = serve_behind(&lab)?;
    let gateways = gateways(&lab, "nat")?;
    // For `near` the gateway is on its own node, and so is the host behind that.
    for pod in ["default/client", "default/near"] {
        for (ip, own) in [(Ip::V4, "192.0.2.77"), (Ip::V6, "2001:db8:77::77")] {
            exchange_every_kind(&lab, pod, ip.world(), 7)?;
            let behind = behind(ip);
            exchange_every_kind(&lab, pod, behind, BEHIND_PORT + 1)?;
            let whoami = format!("coil-lab tool whoami --timeout 3 {}", socket(behind, BEHIND_PORT + 2));
            let seen: IpAddr = lab.exec(pod, &whoami)?.success()?.trim().parse()?;
            check(gateways.contains(&seen), || format!("{behind} saw {pod} as {seen}, not {gateways:?}"))?;
            if pod == "default/client" {
                lab.exec(pod, &format!("ping {} -c 2 -i 0.2 -W 2 {own}", ip.flag()))?.success()?;
            }
        }
    }
    server.kill()?;
    server.wait()?;
    edge::nothing_leaked(&lab)?;
    edge::only_gateways_got_out(&lab, &gateways)?;
    end(lab)
}

#[test]
fn what_came_in_is_answered_the_way_it_came() -> Result<()> {
    let flags = vec!["--enable-originating-only".to_owned()];
    let lab = Lab::start(program(), Options { coild: flags, ..Options::named(&name("originating")) })?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(&egress("nat", &format!("destinations: {DESTINATIONS}")))?;
    rolled_out(&lab, "nat")?;
    // For `beside` the gateway is on its own node.
    let mut own: Vec<IpAddr> = Vec::new();
    for (pod, node) in [("web", "node1"), ("beside", "node3")] {
        let annotated = server_pod("internet", pod, node)
            .replace("annotations: {}", &format!("annotations: {{{ANNOTATION}}}"));
        lab.apply(&annotated)?;
        wait_ready(&lab, "internet", &[pod])?;
        wait_out(&lab, &format!("internet/{pod}"), "nat")?;
        let pod = get(&lab, &format!("pod -n internet {pod}"))?;
        own.extend(addresses(&pod).iter().filter_map(|a| a.parse::<IpAddr>().ok()));
    }
    check(own.len() == 4, || format!("two pods of two families have {own:?}"))?;
    // The flag holds where the Egress says nothing.
    for (says, reached) in [(None, true), (Some(false), false), (Some(true), true)] {
        if let Some(says) = says {
            patch(&lab, "internet/egress/nat", &format!(r#"{{"spec": {{"originatingOnly": {says}}}}}"#))?;
        }
        for address in &own {
            // From an address that is a destination of the Egress: the world has others on the way to the nodes.
            let words = format!("ping -c 1 -W 1 -I {} {address}", Ip::of(*address).world());
            let what = if reached { "directly" } else { "by the gateway" };
            lab.wait_for(&format!("{address} to answer the world {what}, {says:?}"), LIMIT, |lab| {
                let done = lab.world(&words)?;
                Ok(if done.ok == reached { Ok(()) } else { Err(done.stdout) })
            })?;
        }
    }
    // They could be seen as themselves: their own addresses have a way back.
    edge::only_gateways_got_out(&lab, &gateways(&lab, "nat")?)?;
    end(lab)
}
