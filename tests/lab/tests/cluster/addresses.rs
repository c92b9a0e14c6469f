//! A namespace with a pool of its own, all through kubectl.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use ipnet::IpNet;

use crate::common::{LIMIT, addresses, check, end, get, idle_pod, items, namespace, start, wait_ready};

const POOL: &str = "
apiVersion: coil.cybozu.com/v2
kind: AddressPool
metadata: {name: own}
spec:
  blockSizeBits: 2
  subnets: [{ipv4: 10.70.0.0/28, ipv6: 'fd70::/124'}]
";

fn blocks(lab: &coil_lab::Lab) -> Result<Vec<String>> {
    let blocks = items(lab, "addressblocks -l coil.cybozu.com/pool=own")?;
    Ok(blocks.iter().filter_map(|block| block["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

#[test]
fn a_pod_gets_and_returns_an_address_of_its_namespaces_pool() -> Result<()> {
    let lab = start("addresses")?;
    lab.apply(POOL)?;
    lab.apply(&namespace("mine", "own"))?;
    lab.apply(&[idle_pod("mine", "a", "node1", ""), idle_pod("mine", "b", "node1", "")].concat())?;
    wait_ready(&lab, "mine", &["a", "b"])?;
    let mut seen = BTreeSet::new();
    for pod in ["a", "b"] {
        let own = addresses(&get(&lab, &format!("pod -n mine {pod}"))?);
        check(own.len() == 2, || format!("{pod} has {own:?}"))?;
        for (address, subnet) in own.iter().zip(["10.70.0.0/28", "fd70::/124"]) {
            let subnet: IpNet = subnet.parse()?;
            check(subnet.contains(&address.parse::<std::net::IpAddr>()?), || {
                format!("{pod} has {address}, which is not of {subnet}")
            })?;
            check(seen.insert(address.clone()), || format!("{address} is given twice"))?;
            let inside = lab.exec(&format!("mine/{pod}"), "ip -o addr show dev eth0")?.success()?;
            check(inside.contains(&format!(" {address}/")), || {
                format!("{address} is not on eth0: {inside}")
            })?;
        }
    }
    // Both are of one block, which table 119 of the node exports.
    let block = blocks(&lab)?.pop().context("there is no block of the pool")?;
    check(blocks(&lab)?.len() == 1, || "two pods of one node have more than one block".into())?;
    let fields = get(&lab, &format!("addressblock {block}"))?;
    let net = fields["ipv4"].as_str().unwrap_or_default().to_owned();
    lab.wait_for("the block in table 119", LIMIT, |lab| {
        let table = lab.node("node1", "ip route show table 119")?.stdout;
        Ok(if table.contains(&net) { Ok(()) } else { Err(format!("{net} is not in {table:?}")) })
    })?;

    // The first pod gives its address back, the last one the block as well.
    let freed = addresses(&get(&lab, "pod -n mine a")?).remove(0);
    lab.kubectl("delete pod -n mine a --wait")?.success()?;
    lab.wait_for("the route of the deleted pod to go", LIMIT, |lab| {
        let table = lab.node("node1", "ip route show table 116")?.stdout;
        let there = table.lines().any(|line| line.split(' ').next() == Some(&freed));
        Ok(if there { Err(table) } else { Ok(()) })
    })?;
    check(blocks(&lab)? == [block.clone()], || "the block went while a pod has an address of it".into())?;
    lab.kubectl("delete pod -n mine b --wait")?.success()?;
    lab.wait_for("the block to be returned", LIMIT, |lab| {
        let left = blocks(lab)?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are there")) })
    })?;
    lab.wait_for("table 119 to follow", LIMIT, |lab| {
        let table = lab.node("node1", "ip route show table 119")?.stdout;
        Ok(if table.contains(&net) { Err(table) } else { Ok(()) })
    })?;

    // What was freed can be had again: four addresses to a block, four pods fill one.
    let names = ["c", "d", "e", "f"];
    lab.apply(&names.map(|name| idle_pod("mine", name, "node1", "")).concat())?;
    wait_ready(&lab, "mine", &names)?;
    check(blocks(&lab)?.len() == 1, || "four pods do not fit into a block of four".into())?;
    end(lab)
}
