//! Gateways in trouble, and gateways that are pods like others.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use coil_lab::{Lab, config::Ip};

use crate::{
    common::{LIMIT, check, end, idle_pod, items, namespace, server_pod, start, wait_ready},
    edge,
    egress::{
        ANNOTATION, DESTINATIONS, egress, finish, gateways, open_flows, rolled_out, socket,
        start_with_client, wait_out,
    },
    forgers::address,
};

/// From the change of an EndpointSlice on, after which new flows find a gateway that is there.
const NEW_FLOWS: Duration = Duration::from_secs(1);

pub(crate) fn pods_of(lab: &Lab, egress: &str) -> Result<Vec<String>> {
    let pods = items(lab, &format!("pods -n internet -l app.kubernetes.io/instance={egress}"))?;
    Ok(pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

pub(crate) fn addresses_of(lab: &Lab, pod: &str) -> Result<Vec<IpAddr>> {
    let words = format!("get pod -n internet {pod} -o jsonpath={{.status.podIPs[*].ip}}");
    let text = lab.kubectl(&words)?.success()?;
    text.split_whitespace().map(|a| a.parse().context("a pod's address")).collect()
}

/// Echo connections of the world, by the address at their other end.
pub(crate) fn connections_of(lab: &Lab, address: IpAddr) -> Result<usize> {
    let text = lab.world("ss -Htn state established sport = :7")?.success()?;
    let peer = |line: &str| {
        let peer: std::net::SocketAddr = line.split_whitespace().nth(3)?.parse().ok()?;
        Some(peer.ip().to_canonical())
    };
    Ok(text.lines().filter_map(peer).filter(|peer| *peer == address).count())
}

/// What a gateway's metrics say of each that has this name and all of these labels.
pub(crate) fn told(lab: &Lab, gateway: &str, name: &str, labels: &[&str]) -> Result<Vec<u64>> {
    let metrics = lab.exec(gateway, "coil-lab tool http-get http://127.0.0.1:8080/metrics")?.success()?;
    let name = format!("coil_egress_{name}{{");
    let of = |line: &&str| line.starts_with(&name) && labels.iter().all(|label| line.contains(label));
    let values = metrics.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap_or_default().parse());
    values.collect::<Result<_, _>>().with_context(|| format!("{name} of {gateway} is no number: {metrics}"))
}

/// The address that the world's server saw of a pod, in the answer to what had to be sent only once; else what went wrong.
fn at_once(lab: &Lab, pod: &str, ip: Ip) -> Result<Result<IpAddr, String>> {
    let url = format!("http://{}/", socket(ip.world(), 80));
    let done = lab.exec(pod, &format!("coil-lab tool http-get --unrepeated --timeout 20 {url}"))?;
    let answer: Option<serde_json::Value> = serde_json::from_str(&done.stdout).ok();
    let peer = answer.and_then(|answer| answer["peer"].as_str()?.parse().ok());
    Ok(peer.ok_or_else(|| format!("{}{}", done.stdout, done.stderr)))
}

#[test]
fn a_killed_gateway_takes_its_own_flows_and_no_others() -> Result<()> {
    let lab = start_with_client("killed", "replicas: 2, sessionAffinity: None, ")?;

    let mut all = gateways(&lab, "nat")?;
    let each = 20;
    // They flow for half a minute: longer than what follows takes on a machine with other work.
    let mut flows = open_flows(&lab, "default/client", each, "--times 300 --timeout 5")?;
    let pods = pods_of(&lab, "nat")?;
    let killed = pods.first().context("there is no gateway")?;
    let its_addresses = addresses_of(&lab, killed)?;
    let mut expected = Vec::new();
    for address in [true, false].map(|v4| its_addresses.iter().find(|a| a.is_ipv4() == v4)) {
        let count = connections_of(&lab, *address.context("an address of each family")?)?;
        check(count > 0 && count < each, || format!("{count} of {each} flows are on {killed}"))?;
        expected.push(count);
    }
    lab.kubectl(&format!("delete pod -n internet {killed} --force --grace-period=0"))?.success()?;
    lab.wait_for("the EndpointSlices without it", LIMIT, |lab| {
        let words = "get endpointslices -n internet -o jsonpath={.items[*].endpoints[*].addresses[*]}";
        let text = lab.kubectl(words)?.success()?;
        let left = its_addresses.iter().any(|a| text.split_whitespace().any(|t| t == a.to_string()));
        Ok(if left { Err(text) } else { Ok(()) })
    })?;
    for flow in &mut flows {
        let ended = flow.try_wait().context("cannot look at the flows")?;
        check(ended.is_none(), || format!("the flows ended before {killed} was gone: {ended:?}"))?;
    }
    let since = Instant::now();
    let mut new = 0;
    while new < 10 {
        let late = since.elapsed() > NEW_FLOWS;
        for ip in [Ip::V4, Ip::V6] {
            // A gateway that is gone answers nothing: what was sent to it is sent again. A slow machine answers late.
            let seen = at_once(&lab, "default/client", ip)?;
            let wrong = seen.as_ref().ok().is_none_or(|seen| its_addresses.contains(seen));
            check(!(late && wrong), || format!("a new flow, {}, is seen as {seen:?}", ip.name()))?;
        }
        new += usize::from(late);
    }
    for (flow, expected) in flows.into_iter().zip(expected) {
        let output = flow.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        check(said.contains(&format!("{expected} of {each} connections failed")), || {
            format!("{expected} of {each} flows were on {killed}: {said}")
        })?;
    }
    // What its flows went on to send, too.
    edge::nothing_leaked(&lab)?;
    rolled_out(&lab, "nat")?;
    all.extend(gateways(&lab, "nat")?);
    edge::only_gateways_got_out(&lab, &all)?;
    end(lab)
}

#[test]
fn a_gateway_may_be_a_client_of_another() -> Result<()> {
    let lab = start("chain")?;
    edge::watch(&lab)?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(&egress("outer", &format!("destinations: {DESTINATIONS}")))?;
    rolled_out(&lab, "outer")?;
    let annotated = egress("nat", &format!("destinations: {DESTINATIONS}")).replace(
        "template: {",
        "template: {metadata: {annotations: {egress.coil.cybozu.com/internet: outer}}, ",
    );
    lab.apply(&annotated)?;
    rolled_out(&lab, "nat")?;
    lab.apply(&idle_pod("default", "client", "node2", ANNOTATION))?;
    wait_ready(&lab, "default", &["client"])?;
    let inner = pods_of(&lab, "nat")?;
    let inner = format!("internet/{}", inner.first().context("there is no gateway")?);
    // Its own connections. Those that it carries for its clients leave by it alone, whatever it is annotated with.
    wait_out(&lab, &inner, "outer")?;
    wait_out(&lab, "default/client", "nat")?;
    for flow in open_flows(&lab, "default/client", 10, "--times 20 --timeout 5")? {
        finish("flows through a gateway that is a client", flow)?;
    }
    edge::nothing_leaked(&lab)?;
    edge::only_gateways_got_out(&lab, &(&gateways(&lab, "nat")? | &gateways(&lab, "outer")?))?;
    end(lab)
}

#[test]
fn clients_of_everything_reach_what_is_near() -> Result<()> {
    let lab = start("everything")?;
    lab.apply(&namespace("internet", "egress"))?;
    lab.apply(&egress("nat", "destinations: ['0.0.0.0/0', '::/0']"))?;
    rolled_out(&lab, "nat")?;
    // As a node-local DNS cache: addresses of the node alone.
    let near = ["169.254.20.10", "fd00:20::10"];
    let mut cache = lab.spawn_on_node("node2", &format!("coil-lab tool world 5053 {}", near.join(" ")))?;
    let pods = [
        idle_pod("default", "client", "node2", ANNOTATION),
        server_pod("default", "server", "node1"),
        server_pod("default", "beside", "node2"),
    ];
    lab.apply(&pods.concat())?;
    wait_ready(&lab, "default", &["client", "server", "beside"])?;
    wait_out(&lab, "default/client", "nat")?;
    let client = |words: &str| lab.exec("default/client", words);
    for address in near {
        let to = socket(address.parse()?, 5054);
        client(&format!("coil-lab tool udp-echo --timeout 3 {to}"))?.success()?;
        client(&format!("coil-lab tool tcp-echo --bytes 10000 --timeout 3 {to}"))?.success()?;
    }
    let own = lab.kubectl("get pod client -o jsonpath={.status.podIPs[*].ip}")?.success()?;
    for server in ["server", "beside"] {
        let words = format!("get pod {server} -o jsonpath={{.status.podIPs[*].ip}}");
        for address in lab.kubectl(&words)?.success()?.split_whitespace() {
            // Its own address is what another pod sees, not a gateway's.
            let who =
                client(&format!("coil-lab tool whoami {}", socket(address.parse()?, 5003)))?.success()?;
            check(own.split_whitespace().any(|a| a == who.trim()), || format!("{address} saw {who}"))?;
        }
    }
    for node in ["node1", "node2"] {
        let words =
            format!("get node {node} -o jsonpath={{.status.addresses[?(@.type==\"InternalIP\")].address}}");
        for address in
            lab.kubectl_with(&words.split(' ').collect::<Vec<_>>(), "")?.success()?.split_whitespace()
        {
            client(&format!("ping -c 2 -i 0.2 -W 2 {address}"))?.success()?;
        }
    }
    neighbours(&lab)?;
    cache.kill()?;
    cache.wait()?;
    end(lab)
}

/// What a client says to those next to it on its link, its node's end of that answers, and nobody that its Egress leads to. (The
/// client's own kernel could, of what it sends to a group that it is in: `-L` keeps that from it.)
fn neighbours(lab: &Lab) -> Result<()> {
    // The usual kernel answers an echo request to everybody in IPv6 alone.
    lab.node("node2", "sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?.success()?;
    let next_hop = lab.exec("default/client", "ip -6 route show default")?.success()?;
    let next_hop = next_hop.split_whitespace().nth(2).context("a default route has a next hop")?;
    let of_node = |ip: Ip| -> Result<Vec<String>> {
        let words = format!("ip -br {} addr show", ip.flag());
        let text = lab.node("node2", &words)?.success()?;
        let own = text.split_whitespace().filter_map(|word| Some(word.split_once('/')?.0.to_owned()));
        Ok(own.collect())
    };
    for (ip, to, from) in [
        (Ip::V6, format!("{next_hop}%eth0"), vec![next_hop.to_owned()]),
        (Ip::V6, "-L ff02::1%eth0".to_owned(), vec![next_hop.to_owned()]),
        (Ip::V4, "-L 224.0.0.1".to_owned(), of_node(Ip::V4)?),
        (Ip::V4, "-b 255.255.255.255".to_owned(), of_node(Ip::V4)?),
    ] {
        let said =
            lab.exec("default/client", &format!("ping -n {} -c 2 -i 0.2 -W 2 {to}", ip.flag()))?.success()?;
        // `64 bytes from ADDRESS: icmp_seq=…`, with `%eth0` where it is of the link alone.
        let answered = |line: &str| {
            let (from, _) = line.split_once(" bytes from ")?.1.split_once(": ")?;
            Some(from.split('%').next().unwrap_or(from).to_owned())
        };
        let all: Vec<String> = said.lines().filter_map(answered).collect();
        let is_node = !all.is_empty() && all.iter().all(|answered| from.contains(answered));
        check(is_node, || format!("to {to} {all:?} answered, not node2, which is {from:?}: {said}"))?;
    }
    Ok(())
}

/// Datagrams to one remote from so many ports that a gateway is sure to warn, and how many of them have one when it does.
const MANY_PORTS: u16 = 52_000;
const WARNED: u64 = 48_000;

/// Waits until a gateway's metrics tell of that many flows, and of whose they are.
fn many_are_told(lab: &Lab, gateway: &str, client: IpAddr) -> Result<()> {
    let ip = Ip::of(client);
    let family = format!("protocol=\"{}\"", ip.name().to_lowercase());
    let address = format!("pod_ip=\"{client}\"");
    // IPv4 and UDP headers alone; and there are no more ports.
    let (bytes, all) = (WARNED * 28, u16::MAX.into());
    for (name, labels, least, most) in [
        ("nftables_masqueraded_packets_total", &[&*family][..], WARNED, u64::MAX),
        ("nftables_masqueraded_bytes_total", &[&*family], bytes, u64::MAX),
        ("flows", &["protocol=\"udp\"", "state=\"new\""], WARNED, u64::MAX),
        ("busiest_remote_ports", &["what=\"used\""], WARNED, all),
        ("busiest_remote_ports", &["what=\"all\""], MANY_PORTS.into(), all),
        ("client_pod_count", &["egress=\"nat\""], 1, 1),
        ("client_pod_info", &["pod=\"client\"", &address], 1, 1),
    ] {
        lab.wait_for(&format!("metrics of {gateway}: {name}, {}", ip.name()), LIMIT, |lab| {
            let told = told(lab, gateway, name, labels)?;
            let right = matches!(told[..], [value] if (least..=most).contains(&value));
            Ok(if right { Ok(()) } else { Err(format!("{labels:?} has {told:?}, not {least} or more")) })
        })?;
    }
    Ok(())
}

#[test]
fn a_gateway_with_most_ports_lent_warns_and_keeps_its_own() -> Result<()> {
    let lab = start_with_client("ports", "")?;
    lab.apply(&server_pod("default", "server", "node1"))?;
    wait_ready(&lab, "default", &["server"])?;
    let gateway = pods_of(&lab, "nat")?;
    let gateway = format!("internet/{}", gateway.first().context("there is no gateway")?);
    let server = lab.kubectl("get pod server -o jsonpath={.status.podIPs[*].ip}")?.success()?;
    let server: Vec<IpAddr> = server.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    for ip in [Ip::V4, Ip::V6] {
        // A remote that answers nothing: translations stay as they are.
        let to = socket(ip.world(), 9999);
        let words = format!("coil-lab tool udp-ports --ports {MANY_PORTS} {to}");
        let mut load = lab.spawn_in_pod("default/client", &words)?;
        let mut rounds = 0;
        while load.try_wait()?.is_none() || rounds == 0 {
            // As its name server and the API server are asked: pods, and hosts outside.
            let peer = server.iter().find(|a| Ip::of(**a) == ip).context("the server has no such address")?;
            for (host, port) in [(*peer, 5002), (ip.world(), 7)] {
                let to = socket(host, port);
                lab.exec(
                    &gateway,
                    &format!("coil-lab tool udp-echo --times 5 --bytes 300 --timeout 3 {to}"),
                )?
                .success()?;
                lab.exec(
                    &gateway,
                    &format!("coil-lab tool tcp-echo --times 2 --bytes 20000 --timeout 3 {to}"),
                )?
                .success()?;
            }
            rounds += 1;
        }
        finish("the load", load)?;
        let words = "get events -n internet --field-selector reason=PortsRunOut,involvedObject.name=nat \
                     -o jsonpath={.items[*].message}";
        lab.wait_for("a warning", LIMIT, |lab| {
            let said = lab.kubectl(words)?.success()?;
            Ok(if said.contains(&to) { Ok(()) } else { Err(format!("the Events say {said:?}")) })
        })?;
        many_are_told(&lab, &gateway, address(&lab, "default/client", ip)?)?;
    }
    wait_out(&lab, "default/client", "nat")?;
    edge::nothing_leaked(&lab)?;
    edge::only_gateways_got_out(&lab, &gateways(&lab, "nat")?)?;
    end(lab)
}
