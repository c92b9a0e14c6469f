//! Egress by the kernel alone: links, routes and nftables, and no program anywhere.
//!
//! ```text
//!  node1: plain, client of other    node2: client    node3: gateways of nat and of other, near    world
//! ```
//!
//! Where the kernel has no FOU, `e2e` and `demo` see that it is said. `cargo xtask vm --only lab` runs these on kernels
//! that have it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use coil_lab::{
    Lab,
    config::{Ip, Options},
};
use ipnet::IpNet;

use crate::{
    common::{LIMIT, check, end, idle_pod, name, namespace, program, wait_ready, wait_refused},
    draining::{flows_finish_in_a_rolling_update, patient_egress},
    edge,
    egress::{
        ANNOTATION, DESTINATIONS, egress, gateways, patch, rolled_out, rolled_out_with, socket,
        start_with_client_on, wait_out,
    },
    forgers::address,
    gateways::{pods_of, told},
    restart::flows_outlive_coil_egress,
};

/// Datagrams of one forgery.
const TIMES: u64 = 5;

fn options(test: &str) -> Options {
    Options { datapath: "kernel".into(), ..Options::named(&name(test)) }
}

fn start(test: &str) -> Result<Lab> {
    let lab = Lab::start(program(), options(test))?;
    edge::watch(&lab)?;
    lab.apply(&namespace("internet", "egress"))?;
    Ok(lab)
}

#[test]
#[ignore = "needs FOU: cargo xtask vm --only lab"]
fn by_the_kernel_clients_follow_their_egress() -> Result<()> {
    let lab = start("kernel")?;
    lab.apply(&egress("nat", &format!("replicas: 2, destinations: {DESTINATIONS}")))?;
    rolled_out(&lab, "nat")?;
    let elsewhere = ANNOTATION.replace("nat", "natt");
    lab.apply(
        &[
            idle_pod("default", "client", "node2", ANNOTATION),
            idle_pod("default", "near", "node3", ANNOTATION),
            idle_pod("default", "plain", "node1", ""),
            idle_pod("default", "astray", "node1", &elsewhere),
        ]
        .concat(),
    )?;
    wait_ready(&lab, "default", &["client", "near", "plain"])?;
    for pod in ["default/client", "default/near"] {
        wait_out(&lab, pod, "nat")?;
    }
    wait_refused(&lab, "default", "astray", &["pod default/astray", "Egress", "internet/natt"])?;
    edge::nothing_leaked(&lab)?;
    edge::wait_in(&lab, "default/plain")?;
    let mut all = gateways(&lab, "nat")?;

    patch(&lab, "internet/egress/nat", r#"{"spec": {"fouSourcePortAuto": true}}"#)?;
    rolled_out_with(&lab, "nat", "--enable-sport-auto=true")?;
    for pod in ["default/client", "default/near"] {
        wait_out(&lab, pod, "nat")?;
    }
    all.extend(gateways(&lab, "nat")?);

    // Destinations of a running client, and its annotation.
    patch(&lab, "internet/egress/nat", r#"{"spec": {"destinations": ["203.0.113.0/24"]}}"#)?;
    edge::wait_in(&lab, "default/client")?;
    let both = r#"{"spec": {"destinations": ["198.51.100.0/24", "2001:db8:9::/64"]}}"#;
    patch(&lab, "internet/egress/nat", both)?;
    wait_out(&lab, "default/client", "nat")?;
    lab.kubectl("annotate pod client egress.coil.cybozu.com/internet-")?.success()?;
    edge::wait_in(&lab, "default/client")?;
    wait_out(&lab, "default/near", "nat")?;

    // Another Egress has the longer prefixes, until it is deleted.
    let part = [Ip::V4, Ip::V6].map(|ip| format!("'{}'", IpNet::from(ip.world()))).join(", ");
    lab.apply(&egress("part", &format!("destinations: [{part}]")))?;
    rolled_out(&lab, "part")?;
    all.extend(gateways(&lab, "part")?);
    lab.kubectl("annotate --overwrite pod near egress.coil.cybozu.com/internet=nat,part")?.success()?;
    wait_out(&lab, "default/near", "part")?;
    lab.kubectl("delete egress -n internet part --wait")?.success()?;
    wait_out(&lab, "default/near", "nat")?;
    edge::only_gateways_got_out(&lab, &all)?;
    end(lab)
}

#[test]
#[ignore = "needs FOU: cargo xtask vm --only lab"]
fn by_the_kernel_flows_outlive_restarts() -> Result<()> {
    // A port for each flow: with one for all, a client is a single flow to its node, which leads it to one gateway for as long as
    // that serves.
    let egress = patient_egress("fouSourcePortAuto: true, ");
    let lab = start_with_client_on(options("kernelrestart"), &egress)?;
    // With another gateway kube-proxy would lead the flows there at once: one whose coil-egress was killed does not serve.
    flows_outlive_coil_egress(&lab, &[&["node2", "node3"]])?;
    patch(&lab, "internet/egress/nat", r#"{"spec": {"replicas": 2}}"#)?;
    lab.wait_for("a second gateway", LIMIT, |lab| {
        let now = gateways(lab, "nat")?;
        Ok(if now.len() == 4 { Ok(()) } else { Err(format!("there are {now:?}")) })
    })?;
    rolled_out(&lab, "nat")?;
    // As many as there have to be for each gateway to have some.
    flows_finish_in_a_rolling_update(&lab, 20)?;
    end(lab)
}

/// Packets that a gateway's nftables have dropped as of no client, as its metrics say it.
fn forged(lab: &Lab, gateway: &str, ip: Ip) -> Result<u64> {
    let family = format!("protocol=\"{}\"", ip.name().to_lowercase());
    let count = told(lab, gateway, "forged_packets_total", &[&family])?.first().copied();
    count.with_context(|| format!("{gateway} does not count {} that is forged", ip.name()))
}

#[test]
#[ignore = "needs FOU: cargo xtask vm --only lab"]
fn by_the_kernel_forged_packets_do_not_get_out() -> Result<()> {
    let lab = start("kernelforged")?;
    lab.apply(&egress("nat", &format!("destinations: {DESTINATIONS}")))?;
    lab.apply(&egress("other", "destinations: ['192.0.2.0/30', '2001:db8:fa::/64']"))?;
    rolled_out(&lab, "nat")?;
    rolled_out(&lab, "other")?;
    let other = ANNOTATION.replace("nat", "other");
    lab.apply(
        &[
            idle_pod("default", "client", "node2", ANNOTATION),
            idle_pod("default", "plain", "node1", ""),
            idle_pod("default", "stranger", "node1", &other),
        ]
        .concat(),
    )?;
    wait_ready(&lab, "default", &["client", "plain", "stranger"])?;
    wait_out(&lab, "default/client", "nat")?;
    let nats = gateways(&lab, "nat")?;
    let gateway = format!("internet/{}", pods_of(&lab, "nat")?.first().context("there is no gateway")?);
    for ip in [Ip::V4, Ip::V6] {
        let of = |pod: &str| address(&lab, &format!("default/{pod}"), ip);
        let to = *nats.iter().find(|a| Ip::of(**a) == ip).context("an address of each family")?;
        for (sender, from) in
            [("default/plain", of("plain")?), ("default/stranger", of("stranger")?), ("world", ip.world())]
        {
            forge(&lab, &gateway, sender, from, to)?;
        }
        let echo = format!("coil-lab tool udp-echo --times 5 --timeout 3 {}", socket(ip.world(), 7));
        lab.exec("default/client", &echo)?.success()?;
    }
    edge::nothing_leaked(&lab)?;
    edge::only_gateways_got_out(&lab, &nats)?;
    end(lab)
}

/// FOU of one whom the gateway does not know: dropped there, and nothing of it reaches the world.
fn forge(lab: &Lab, gateway: &str, sender: &str, from: IpAddr, to: IpAddr) -> Result<()> {
    let ip = Ip::of(to);
    let seen = || lab.world(&format!("coil-lab tool http-get http://{}/peers", socket(ip.world(), 80)));
    let datagrams = |text: &str| text.matches("udp/7").count();
    let (seen_before, before) = (datagrams(&seen()?.success()?), forged(lab, gateway, ip)?);
    let (inner, target) = (SocketAddr::new(from, 4444), socket(ip.world(), 7));
    let words =
        format!("coil-lab tool fou --inner {inner} --target {target} --times {TIMES} {}", socket(to, 5555));
    let done = if sender == "world" { lab.world(&words) } else { lab.exec(sender, &words) };
    done?.success()?;
    lab.wait_for(&format!("FOU of {sender} to be dropped by {gateway}, {}", ip.name()), LIMIT, |lab| {
        let now = forged(lab, gateway, ip)? - before;
        Ok(if now >= TIMES { Ok(()) } else { Err(format!("{now} of {TIMES} have been")) })
    })?;
    let seen = seen()?.success()?;
    check(datagrams(&seen) == seen_before, || format!("the world has seen {seen}"))
}
