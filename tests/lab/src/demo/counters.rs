//! Proof of the path that packets took: coild's counters, and the maps themselves.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::{
    Demo,
    manifests::{EGRESS, EGRESS_NAMESPACE},
};
use crate::config::Ip;

const METRICS: &str = "coil-lab tool http-get http://127.0.0.1:9384/metrics";
const PACKETS: &str = "coil_datapath_packets_total";
const MAPS: &str = "/sys/fs/bpf/coil/maps";
/// Lines of a map's dump that are shown.
const SHOWN: usize = 32;

/// The non-zero packet counters of a node, by their labels as printed.
type Counters = BTreeMap<String, f64>;

/// Shows the packets that programs sent themselves, and checks each hop of both journeys.
pub(super) fn fast_path(demo: &mut Demo) -> Result<()> {
    demo.report.heading("Packets that the eBPF programs sent on themselves");
    let gateway = gateway_node(demo)?;
    let mut nodes = BTreeMap::new();
    for node in demo.lab.options().node_names() {
        let metrics = demo.lab.node(&node, METRICS)?.success()?;
        let counters = counters(&metrics);
        println!("$ lab node {node} -- {METRICS} | grep '^{PACKETS}.*sent' | grep -v ' 0$'");
        counters.iter().for_each(|(labels, value)| println!("  {PACKETS}{{{labels}}} {value}"));
        nodes.insert(node, counters);
    }
    for ip in demo.lab.options().family.each() {
        let name = ip.name();
        let hop = |node: &str, path: &str, reasons: &[&str]| {
            let sum: f64 = nodes.get(node).map_or(0.0, |counters| sum(counters, *ip, path, reasons));
            if sum > 0.0 { Ok(()) } else { Err(format!("{node}: {path} has sent nothing for {reasons:?}")) }
        };
        let same = hop("node1", "from_pod", &["to-pod"]);
        let between = hop("node2", "from_pod", &["to-node"]).and(hop("node1", "from_net", &["to-pod"]));
        let out = hop("node2", "from_pod", &["to-gateway", "snat-out"]);
        let snat = hop(&gateway, if gateway == "node2" { "from_pod" } else { "from_net" }, &["snat-out"]);
        let back = hop(&gateway, "from_net", &["reply-to-node", "reply-to-pod"]);
        demo.report.check(&format!("pod to pod on one node took the eBPF path, {name}"), same);
        demo.report.check(&format!("pod to pod between nodes took the eBPF path, {name}"), between);
        demo.report.check(&format!("egress took the eBPF path, {name}"), out.and(snat).and(back));
    }
    Ok(())
}

/// The node of the gateway pod.
fn gateway_node(demo: &Demo) -> Result<String> {
    let get = format!(
        "get pods -n {EGRESS_NAMESPACE} -l app.kubernetes.io/instance={EGRESS} -o jsonpath={{.items[0].spec.nodeName}}"
    );
    demo.lab.kubectl(&get)?.success()
}

fn counters(metrics: &str) -> Counters {
    metrics
        .lines()
        .filter_map(|line| {
            let (labels, value) = line.strip_prefix(PACKETS)?.strip_prefix('{')?.split_once("} ")?;
            Some((labels.to_owned(), value.parse().ok()?))
        })
        .filter(|(labels, value)| *value > 0.0 && labels.contains("verdict=\"sent\""))
        .collect()
}

fn sum(counters: &Counters, ip: Ip, path: &str, reasons: &[&str]) -> f64 {
    let has = |labels: &str, key: &str, value: &str| labels.contains(&format!("{key}=\"{value}\""));
    counters
        .iter()
        .filter(|(labels, _)| has(labels, "family", &ip.name().to_lowercase()) && has(labels, "path", path))
        .filter(|(labels, _)| reasons.iter().any(|reason| has(labels, "reason", reason)))
        .map(|(_, value)| value)
        .sum()
}

/// Shows the NAT map on the gateway's node: a person can read it.
pub(super) fn nat_map(demo: &mut Demo) -> Result<()> {
    demo.report.heading("The NAT map on the gateway's node");
    let gateway = gateway_node(demo)?;
    for ip in demo.lab.options().family.each() {
        let map = match ip {
            Ip::V4 => "coil_nat4",
            Ip::V6 => "coil_nat6",
        };
        let dump = demo.lab.node(&gateway, &format!("bpftool map dump pinned {MAPS}/{map}"))?;
        println!("$ {} | head -n {SHOWN}", dump.command);
        dump.stdout.lines().take(SHOWN).for_each(|line| println!("  {line}"));
        dump.stderr.lines().for_each(|line| println!("  {line}"));
        let names = ["gateway", "client", "remote", "client_port", "remote_port", "protocol", "port"];
        let missing: Vec<&&str> =
            names.iter().filter(|n| !dump.stdout.contains(&format!("\"{n}\":"))).collect();
        let outcome =
            if missing.is_empty() { Ok(()) } else { Err(format!("{map}: no field named {missing:?}")) };
        demo.report.check(&format!("bpftool shows {map} with field names"), outcome);
    }
    Ok(())
}

/// With the kernel's datapath there is no BPF object of Coil's: a link lives by a pin or by a
/// descriptor, a classifier shows in `bpftool net`.
pub(super) fn no_ebpf(demo: &mut Demo) -> Result<()> {
    demo.report.heading("No eBPF anywhere");
    let mut outcome = Ok(());
    for node in demo.lab.options().node_names() {
        let coild = demo.lab.program_pid(&node, "coild")?;
        // The kernel itself has two files at the top of a BPF file system.
        let pins = demo.lab.node(&node, "find /sys/fs/bpf -mindepth 1 -not -name *.debug");
        let pins = demo.report.show(pins)?.success()?;
        let open = demo.lab.node(&node, &format!("find /proc/{coild}/fd -lname *bpf*"));
        let open = demo.report.show(open)?.success()?;
        let attached = demo.report.show(demo.lab.node(&node, "bpftool -j net show"))?.success()?;
        let attached: Vec<serde_json::Value> =
            serde_json::from_str(&attached).context("bpftool's output cannot be understood")?;
        let attached = attached.iter().filter_map(|kinds| kinds.as_object()).flat_map(|kinds| kinds.values());
        if !pins.is_empty() {
            outcome = Err(format!("{node}: pinned {pins:?}"));
        } else if !open.is_empty() {
            outcome = Err(format!("{node}: coild holds {open:?}"));
        } else if attached.filter_map(|list| list.as_array()).any(|list| !list.is_empty()) {
            outcome = Err(format!("{node}: programs are attached"));
        }
    }
    demo.report.check("no eBPF program or map exists", outcome);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_programs_sent_is_counted() {
        let counters = counters(
            "# HELP x\n\
             coil_datapath_packets_total{family=\"ipv4\",path=\"from_pod\",reason=\"to-pod\",verdict=\"sent\"} 271\n\
             coil_datapath_packets_total{family=\"ipv6\",path=\"from_pod\",reason=\"to-pod\",verdict=\"sent\"} 0\n\
             coil_datapath_packets_total{family=\"ipv4\",path=\"from_pod\",reason=\"not-a-pod\",verdict=\"next\"} 5\n",
        );
        assert_eq!(counters.len(), 1);
        assert!((sum(&counters, Ip::V4, "from_pod", &["to-pod"]) - 271.0).abs() < f64::EPSILON);
        assert!(sum(&counters, Ip::V6, "from_pod", &["to-pod"]).abs() < f64::EPSILON);
    }
}
