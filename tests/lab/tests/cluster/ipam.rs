//! What Coil v2's own end-to-end tests say of addresses, in each family: blocks outlive coild, come one
//! by one, and are returned; pools can be deleted; blocks of absent nodes are collected.

use anyhow::Result;
use coil_lab::{
    Lab,
    config::{Family, Ip, Options},
};

use crate::common::{
    LIMIT, addresses, check, end, get, idle_pod, items, kill_coilds, name, namespace, program, wait_ready,
};

#[test]
fn coil_v2_scenarios_with_ipv4() -> Result<()> {
    scenarios("ipam-v4", Family::V4)
}

#[test]
fn coil_v2_scenarios_with_ipv6() -> Result<()> {
    scenarios("ipam-v6", Family::V6)
}

#[test]
fn coil_v2_scenarios_with_both_families() -> Result<()> {
    scenarios("ipam-dual", Family::Dual)
}

fn scenarios(test: &str, family: Family) -> Result<()> {
    let lab = Lab::start(program(), Options { family, nodes: 2, ..Options::named(&name(test)) })?;
    // One address to a block: every pod has a block of its own.
    lab.apply(&pool("one", family, 0))?;
    lab.apply(&namespace("ones", "one"))?;
    lab.apply(&[idle_pod("ones", "a", "node1", ""), idle_pod("ones", "b", "node2", "")].concat())?;
    wait_ready(&lab, "ones", &["a", "b"])?;
    for (pod, other) in [("a", "b"), ("b", "a")] {
        for address in addresses(&get(&lab, &format!("pod -n ones {other}"))?) {
            lab.exec(&format!("ones/{pod}"), &format!("ping -c 1 -W 5 {address}"))?.success()?;
        }
    }
    restarts_keep_blocks(&lab, family)?;
    blocks_are_freed(&lab)?;
    a_dummy_pool_deletes(&lab, family)?;
    an_orphan_goes(&lab, family)?;
    both_leases_are_held(&lab)?;
    every_program_has_metrics(&lab)?;
    end(lab)
}

/// A subnet of 2^8 addresses per family, apart from the lab's own pools.
fn subnet(ip: Ip, third: u8) -> String {
    match ip {
        Ip::V4 => format!("10.75.{third}.0/24"),
        Ip::V6 => format!("fd75:{third}::/120"),
    }
}

fn pool(name: &str, family: Family, bits: u8) -> String {
    pool_at(name, family, bits, 0)
}

fn pool_at(name: &str, family: Family, bits: u8, third: u8) -> String {
    let subnets: Vec<String> = family
        .each()
        .iter()
        .map(|ip| format!("{}: '{}'", ip.name().to_lowercase(), subnet(*ip, third)))
        .collect();
    format!(
        "---
apiVersion: coil.cybozu.com/v2
kind: AddressPool
metadata: {{name: {name}}}
spec: {{blockSizeBits: {bits}, subnets: [{{{}}}]}}
",
        subnets.join(", ")
    )
}

/// Names of a pool's blocks and the nodes that have them.
fn blocks(lab: &Lab, pool: &str) -> Result<Vec<(String, String)>> {
    let found = items(lab, &format!("addressblocks -l coil.cybozu.com/pool={pool}"))?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let node = |block: &serde_json::Value| text(&block["metadata"]["labels"]["coil.cybozu.com/node"]);
    Ok(found.iter().map(|block| (text(&block["metadata"]["name"]), node(block))).collect())
}

fn restarts_keep_blocks(lab: &Lab, family: Family) -> Result<()> {
    let before = blocks(lab, "one")?;
    check(before.len() == 2, || format!("two pods have the blocks {before:?}"))?;
    kill_coilds(lab, &["node1", "node2"])?;
    let after = blocks(lab, "one")?;
    check(before == after, || format!("{before:?} became {after:?} when coild was restarted"))?;
    lab.apply(&idle_pod("ones", "c", "node1", ""))?;
    wait_ready(lab, "ones", &["c"])?;
    let one_more = blocks(lab, "one")?;
    let of_node1 = one_more.iter().filter(|(_, node)| node == "node1").count();
    check(one_more.len() == 3 && of_node1 == 2, || {
        format!("one more pod on node1 made {after:?} {one_more:?}")
    })?;

    // Each block, and nothing else, is in the node's table 119.
    let objects = items(lab, "addressblocks")?;
    for node in ["node1", "node2"] {
        for ip in family.each() {
            let field = ip.name().to_lowercase();
            let mut owned: Vec<String> = objects
                .iter()
                .filter(|block| block["metadata"]["labels"]["coil.cybozu.com/node"] == node)
                .filter_map(|block| block[&field].as_str())
                .map(|net| net.trim_end_matches("/32").trim_end_matches("/128").to_owned())
                .collect();
            owned.sort();
            lab.wait_for(&format!("table 119 of {node} to be its blocks"), LIMIT, |lab| {
                let table = lab.node(node, &format!("ip {} route show table 119", ip.flag()))?.stdout;
                let mut exported: Vec<String> = table
                    .lines()
                    .filter_map(|line| line.split_whitespace().next())
                    .map(str::to_owned)
                    .collect();
                exported.sort();
                Ok(if exported == owned { Ok(()) } else { Err(format!("{table:?}, not {owned:?}")) })
            })?;
        }
    }
    Ok(())
}

fn blocks_are_freed(lab: &Lab) -> Result<()> {
    lab.kubectl("delete pods --all -n ones --wait")?.success()?;
    lab.wait_for("all blocks to be returned", LIMIT, |lab| {
        let left = blocks(lab, "one")?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
    })
}

fn a_dummy_pool_deletes(lab: &Lab, family: Family) -> Result<()> {
    lab.apply(&pool_at("dummy", family, 0, 1))?;
    lab.wait_for("the pool's finalizer", LIMIT, |lab| {
        let pool = get(lab, "addresspool dummy")?;
        let held = pool["metadata"]["finalizers"] == serde_json::json!(["coil.cybozu.com"]);
        Ok(if held { Ok(()) } else { Err(pool["metadata"].to_string()) })
    })?;
    let seconds = LIMIT.as_secs();
    lab.kubectl(&format!("delete addresspool dummy --timeout={seconds}s"))?.success()?;
    let left = lab.kubectl("get addresspools -o name")?.success()?;
    check(!left.contains("dummy"), || left)
}

fn an_orphan_goes(lab: &Lab, family: Family) -> Result<()> {
    let fields: Vec<String> = family
        .each()
        .iter()
        .map(|ip| match ip {
            Ip::V4 => "ipv4: 10.224.0.100/32\n".to_owned(),
            Ip::V6 => "ipv6: 'fd24::100/128'\n".to_owned(),
        })
        .collect();
    lab.apply(&format!(
        "
apiVersion: coil.cybozu.com/v2
kind: AddressBlock
metadata:
  name: default-100
  finalizers: [coil.cybozu.com]
  labels: {{coil.cybozu.com/node: node100, coil.cybozu.com/pool: default}}
index: 100
{}",
        fields.concat()
    ))?;
    // The lab lets the collector run every ten seconds.
    lab.wait_for("the orphaned block to go", LIMIT, |lab| {
        let found = lab.kubectl("get addressblock default-100 --ignore-not-found -o name")?.success()?;
        Ok(if found.trim().is_empty() { Ok(()) } else { Err(found) })
    })
}

fn both_leases_are_held(lab: &Lab) -> Result<()> {
    for lease in ["coil-ipam-leader", "coil-egress-leader"] {
        let lease = get(lab, &format!("lease -n kube-system {lease}"))?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        check(!holder.is_empty(), || format!("nobody holds {lease}"))?;
    }
    Ok(())
}

fn every_program_has_metrics(lab: &Lab) -> Result<()> {
    for (place, port, metric) in [
        ("node1", 9384, "grpc_server_handled_total"),
        ("node1", 9388, "coil_router_syncs_total"),
        ("control", 9386, "coil_controller_max_blocks"),
        ("control", 9396, "process_cpu_seconds_total"),
    ] {
        let get = format!("coil-lab tool http-get http://127.0.0.1:{port}/metrics");
        let text = lab.node(place, &get)?.success()?;
        check(text.contains(metric), || format!("{metric} is not among the metrics of port {port}"))?;
    }
    Ok(())
}
