//! FOU from those who have no business to send it: it is dropped and counted, and nothing of it gets out.
//!
//! ```text
//!  node1: plain, client of other    node2: client    node3: gateways of nat and of other    world
//! ```

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use coil_lab::{Lab, config::Ip};

use crate::{
    common::{LIMIT, check, end, idle_pod, wait_ready},
    edge,
    egress::{ANNOTATION, egress, gateways, rolled_out, socket, start_with_client},
    gateways::pods_of,
};

/// Datagrams of one forgery.
const TIMES: u64 = 5;
const METRICS: &str = "coil-lab tool http-get http://127.0.0.1:9384/metrics";

/// What a node's programs have dropped for a reason, of a family.
pub(crate) fn dropped(lab: &Lab, node: &str, ip: Ip, reason: &str) -> Result<u64> {
    let metrics = lab.node(node, METRICS)?.success()?;
    let of = |line: &&str| {
        line.starts_with("coil_datapath_packets_total{")
            && line.contains(&format!("reason=\"{reason}\""))
            && line.contains(&format!("family=\"{}\"", ip.name().to_lowercase()))
    };
    let values = metrics.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(values.sum())
}

/// What a node's programs have dropped at all, as the metrics say it.
fn all_drops(lab: &Lab, node: &str) -> Result<Vec<String>> {
    let metrics = lab.node(node, METRICS)?.success()?;
    let is_drop =
        |line: &&str| line.starts_with("coil_datapath_packets_total{") && line.contains("verdict=\"drop\"");
    Ok(metrics.lines().filter(is_drop).filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect())
}

pub(crate) fn address(lab: &Lab, pod: &str, ip: Ip) -> Result<IpAddr> {
    let (namespace, name) = pod.split_once('/').context("NAMESPACE/NAME")?;
    let words = format!("get pod -n {namespace} {name} -o jsonpath={{.status.podIPs[*].ip}}");
    let text = lab.kubectl(&words)?.success()?;
    let mut all = text.split_whitespace().filter_map(|a| a.parse().ok());
    all.find(|a| Ip::of(*a) == ip).with_context(|| format!("{pod} has no address of {}", ip.name()))
}

/// A forgery: who sends it, in whose name (its own if in none), to whom, and what is inside.
struct Forgery<'a> {
    what: &'a str,
    sender: &'a str,
    from: Option<IpAddr>,
    to: IpAddr,
    inner: (SocketAddr, SocketAddr),
    /// The node that drops it, and why.
    dropped: (&'a str, &'a str),
}

impl Forgery<'_> {
    fn attempt(&self, lab: &Lab) -> Result<()> {
        let ip = Ip::of(self.to);
        let (node, reason) = self.dropped;
        let before = dropped(lab, node, ip, reason)?;
        let from = self.from.map(|from| format!("--from {from} ")).unwrap_or_default();
        let words = format!(
            "coil-lab tool fou {from}--inner {} --target {} --times {TIMES} {}",
            self.inner.0,
            self.inner.1,
            socket(self.to, 5555)
        );
        let done = if self.sender == "world" { lab.world(&words) } else { lab.exec(self.sender, &words) };
        done?.success()?;
        lab.wait_for(&format!("{} to be dropped on {node}, {}", self.what, ip.name()), LIMIT, |lab| {
            let now = dropped(lab, node, ip, reason)? - before;
            Ok(if now >= TIMES { Ok(()) } else { Err(format!("{now} of {TIMES} have been, as {reason}")) })
        })
    }
}

#[test]
fn forged_packets_are_dropped_and_counted() -> Result<()> {
    let lab = start_with_client("forged", "")?;
    lab.apply(&egress("other", "destinations: ['192.0.2.0/30', '2001:db8:fa::/64']"))?;
    rolled_out(&lab, "other")?;
    let other = ANNOTATION.replace("nat", "other");
    lab.apply(
        &[idle_pod("default", "plain", "node1", ""), idle_pod("default", "stranger", "node1", &other)]
            .concat(),
    )?;
    wait_ready(&lab, "default", &["plain", "stranger"])?;
    let (nats, others) = (gateways(&lab, "nat")?, pods_of(&lab, "other")?);
    let other = format!("internet/{}", others.first().context("there is no gateway")?);
    for ip in [Ip::V4, Ip::V6] {
        let of = |pod: &str| address(&lab, &format!("default/{pod}"), ip);
        let (client, plain, stranger) = (of("client")?, of("plain")?, of("stranger")?);
        let gateway = *nats.iter().find(|a| Ip::of(**a) == ip).context("an address of each family")?;
        let nobody: IpAddr = match ip {
            Ip::V4 => [10, 64, 255, 254].into(),
            Ip::V6 => "fd64::fffe".parse()?,
        };
        let world = SocketAddr::new(ip.world(), 7);
        let out = |from| (SocketAddr::new(from, 4444), world);
        let to_gateway = |what, sender, from: Option<IpAddr>, inner, dropped| {
            let inner = out(from.unwrap_or(inner));
            Forgery { what, sender, from, to: gateway, inner, dropped }
        };
        let here = ("node1", "fou-forged");
        let to_client = |what, sender| {
            let inner = (world, SocketAddr::new(client, 4444));
            Forgery { what, sender, from: None, to: client, inner, dropped: ("node2", "fou-not-gateway") }
        };
        for forgery in [
            to_gateway("FOU of a pod that is no client", "default/plain", None, plain, here),
            to_gateway("FOU of another Egress's client", "default/stranger", None, stranger, here),
            to_gateway("FOU in a client's name", "default/plain", Some(client), client, here),
            to_gateway(
                "FOU of a host outside",
                "world",
                Some(ip.world()),
                ip.world(),
                ("node3", "fou-sender"),
            ),
            to_gateway("FOU in the name of no pod", "world", Some(nobody), nobody, ("node3", "fou-sender")),
            to_gateway(
                "FOU in the name of a pod that is no client",
                "world",
                Some(plain),
                plain,
                ("node3", "fou-sender"),
            ),
            to_client("FOU to a client", "default/plain"),
            to_client("FOU of another Egress's gateway to a client", &other),
        ] {
            forgery.attempt(&lab)?;
        }
        // In a client's name, with an inner packet of somebody else's.
        let inner = Forgery {
            what: "another's packet in a client's FOU",
            sender: "world",
            from: Some(client),
            to: gateway,
            inner: out(plain),
            dropped: ("node3", "fou-inner"),
        };
        inner.attempt(&lab)?;
        // A datagram that had got out would have been echoed, and remembered.
        let peers = format!("coil-lab tool http-get http://{}/peers", socket(ip.world(), 80));
        let peers = lab.world(&peers)?.success()?;
        check(!peers.contains("udp/7"), || format!("the world has seen {peers}"))?;
    }
    for ip in [Ip::V4, Ip::V6] {
        let to = socket(ip.world(), 7);
        lab.exec("default/client", &format!("coil-lab tool udp-echo --times 5 --timeout 3 {to}"))?
            .success()?;
    }
    edge::nothing_leaked(&lab)?;
    edge::only_gateways_got_out(&lab, &nats)?;
    end(lab)
}

/// What a client's container sends first arrives, though nobody but its own node knows its address yet.
#[test]
fn the_first_packets_of_new_clients_are_not_taken_for_forged() -> Result<()> {
    let lab = start_with_client("first", "")?;
    // A pod that stays keeps the node's block, to which the others' routes lead once this one is answered.
    lab.apply(&idle_pod("default", "stays", "node1", ANNOTATION))?;
    wait_ready(&lab, "default", &["stays"])?;
    for ip in [Ip::V4, Ip::V6] {
        let words = format!("coil-lab tool udp-echo --times 1 --timeout 1 {}", socket(ip.world(), 7));
        lab.wait_for("the routes to the block", LIMIT, |lab| {
            let echo = lab.exec("default/stays", &words)?;
            Ok(if echo.ok { Ok(()) } else { Err(echo.stderr) })
        })?;
    }
    for n in 0..8 {
        let ip = if n % 2 == 0 { Ip::V4 } else { Ip::V6 };
        let words =
            format!("coil-lab, tool, udp-echo, --times, '1', --timeout, '2', '{}'", socket(ip.world(), 7));
        let pod = idle_pod("default", &format!("first{n}"), "node1", ANNOTATION)
            .replace("image: none", &format!("image: none, command: [{words}]"))
            .replace("spec:\n", "spec:\n  restartPolicy: Never\n");
        lab.apply(&pod)?;
        lab.wait_for("the pod's end", LIMIT, |lab| {
            let phase = lab.kubectl(&format!("get pod first{n} -o jsonpath={{.status.phase}}"))?.success()?;
            Ok(if ["Succeeded", "Failed"].contains(&phase.as_str()) { Ok(phase) } else { Err(phase) })
        })
        .and_then(|phase| {
            check(phase == "Succeeded", || {
                let drops = ["node1", "node2", "node3"].map(|node| (node, all_drops(&lab, node)));
                format!("the first packet of pod {n} got no answer; what was dropped: {drops:#?}")
            })
        })?;
    }
    for ip in [Ip::V4, Ip::V6] {
        let refused = dropped(&lab, "node3", ip, "fou-sender")?;
        check(refused == 0, || format!("{refused} packets of new clients were taken for forged"))?;
    }
    edge::nothing_leaked(&lab)?;
    edge::only_gateways_got_out(&lab, &gateways(&lab, "nat")?)?;
    end(lab)
}
