//! The world's edge: who comes there, and in whose name.
//!
//! No server of the world sees what a pod sends in its own name: the world drops it, as a provider's edge does. Before that it
//! is counted here.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result};
use coil_lab::{Lab, config::Ip};
use serde_json::{Value, json};

use crate::{
    common::{LIMIT, check, end},
    egress::{gateways, patch, seen, socket, start_with_client, wait_out},
    forgers::dropped,
};

/// nftables' word for packets of a family.
fn word(ip: Ip) -> &'static str {
    match ip {
        Ip::V4 => "ip",
        Ip::V6 => "ip6",
    }
}

/// Counts from now on what comes to the world's address from addresses of pods that are no gateways.
pub(crate) fn watch(lab: &Lab) -> Result<()> {
    let nft = |words: &str| lab.world(&format!("nft {words}"))?.success().map(drop);
    nft("add table inet edge")?;
    // Before the world asks for a route back.
    nft("add chain inet edge arriving { type filter hook prerouting priority -300 ; }")?;
    for ip in lab.options().family.each() {
        let (name, word) = (ip.name(), word(*ip));
        nft(&format!("add counter inet edge {name}"))?;
        let from_pods = format!("iifname eth0 {word} saddr {}", ip.default_pool());
        nft(&format!(
            "add rule inet edge arriving {from_pods} {word} daddr {} counter name {name}",
            ip.world()
        ))?;
    }
    Ok(())
}

/// How many packets have come in pods' own names.
fn in_own_name(lab: &Lab, ip: Ip) -> Result<u64> {
    let text = lab.world(&format!("nft -j list counter inet edge {}", ip.name()))?.success()?;
    let listed: Value = serde_json::from_str(&text).context("nft's output is no JSON")?;
    let mut objects = listed["nftables"].as_array().into_iter().flatten();
    let packets = objects.find_map(|object| object["counter"]["packets"].as_u64());
    packets.with_context(|| format!("there is no counter in {text}"))
}

/// Waits until a pod leaves as one that is no client does: in its own name, with which it gets no further than the edge.
pub(crate) fn wait_in(lab: &Lab, pod: &str) -> Result<()> {
    for ip in lab.options().family.each() {
        lab.wait_for(&format!("{pod} to stay in, {}", ip.name()), LIMIT, |lab| {
            let before = in_own_name(lab, *ip)?;
            let seen = seen(lab, pod, *ip)?;
            let own = in_own_name(lab, *ip)? - before;
            Ok(match seen {
                None if own > 0 => Ok(()),
                None => Err("nothing came to the world's edge in its own name".to_owned()),
                Some(seen) => Err(format!("the world saw {seen}")),
            })
        })?;
    }
    Ok(())
}

/// Fails when anything has come to the world in a pod's own name since [`watch`].
pub(crate) fn nothing_leaked(lab: &Lab) -> Result<()> {
    for ip in lab.options().family.each() {
        let leaked = in_own_name(lab, *ip)?;
        check(leaked == 0, || format!("{leaked} packets came out in a pod's own name, {}", ip.name()))?;
    }
    Ok(())
}

/// Everybody whom the world's servers have ever seen, but those that ask from the world itself.
fn peers(lab: &Lab) -> Result<BTreeSet<IpAddr>> {
    let families = lab.options().family.each();
    let any = families.first().context("a lab has a family")?;
    let url = format!("http://{}/peers", socket(any.world(), 80));
    let text = lab.world(&format!("coil-lab tool http-get {url}"))?.success()?;
    let all: Vec<Value> = serde_json::from_str(&text).context("the world's answer is no list")?;
    let peer = |entry: &Value| entry["peer"].as_str()?.parse().ok();
    let all = all.iter().map(|entry| peer(entry).with_context(|| format!("{entry} has no peer")));
    let all = all.collect::<Result<BTreeSet<IpAddr>>>()?;
    Ok(all.into_iter().filter(|peer| families.iter().all(|ip| ip.world() != *peer)).collect())
}

/// Fails unless everybody whom the world has ever seen is one of these gateways, and there was somebody of each family.
pub(crate) fn only_gateways_got_out(lab: &Lab, gateways: &BTreeSet<IpAddr>) -> Result<()> {
    let peers = peers(lab)?;
    check(peers.is_subset(gateways), || format!("the world saw {peers:?}, the gateways had {gateways:?}"))?;
    let each = lab.options().family.each().iter().all(|ip| peers.iter().any(|peer| Ip::of(*peer) == *ip));
    check(each, || format!("the world saw none of one family, but {peers:?}"))
}

#[test]
fn without_a_gateway_nothing_leaves() -> Result<()> {
    const TIMES: u64 = 3;
    // There is no node `nowhere`: its gateways wait for one, and have no address.
    let on = |node: &str| {
        let place = json!({"nodeName": null, "nodeSelector": {"kubernetes.io/hostname": node}});
        json!({"spec": {"strategy": {"type": "Recreate"}, "template": {"spec": place}}}).to_string()
    };
    let lab = start_with_client("shut", "")?;
    let first = gateways(&lab, "nat")?;
    patch(&lab, "internet/egress/nat", &on("nowhere"))?;
    lab.wait_for("the gateway to go", LIMIT * 2, |lab| {
        let left = gateways(lab, "nat")?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("there are {left:?}")) })
    })?;
    for ip in [Ip::V4, Ip::V6] {
        let words = format!("coil-lab tool udp-echo --times {TIMES} --timeout 1 {}", socket(ip.world(), 7));
        // The client's node may hear of it a moment later.
        lab.wait_for(&format!("its packets to be dropped, {}", ip.name()), LIMIT, |lab| {
            let before = dropped(lab, "node2", ip, "no-gateway")?;
            let (echo, seen) = (lab.exec("default/client", &words)?, seen(lab, "default/client", ip)?);
            let now = dropped(lab, "node2", ip, "no-gateway")? - before;
            let shut = !echo.ok && seen.is_none() && now > TIMES;
            Ok(if shut {
                Ok(())
            } else {
                Err(format!("{now} were; the world saw {seen:?}; {}", echo.stderr))
            })
        })?;
    }
    nothing_leaked(&lab)?;
    patch(&lab, "internet/egress/nat", &on("node3"))?;
    wait_out(&lab, "default/client", "nat")?;
    nothing_leaked(&lab)?;
    only_gateways_got_out(&lab, &(&first | &gateways(&lab, "nat")?))?;
    end(lab)
}
