//! Routes to the blocks that nodes export: what a router of the network learns by BGP.
//!
//! coild puts each block of its node into a routing table of its own, for a routing daemon to
//! announce. Here the network is the lab's: control learns all of them, the world those
//! that are routable.

use std::{collections::BTreeSet, net::IpAddr, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use coil_api::names::DEFAULT_EXPORT_TABLE;
use ipnet::IpNet;
use serde::Deserialize;
use tokio::{
    io::AsyncBufReadExt as _,
    process::Command,
    time::{self, Instant},
};

use crate::{
    config::{self, Family, Ip},
    place::OpenPlace,
    topology,
};

/// Changes that come together are imported together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A node that could not be followed, such as one that is just starting, is tried again after so long.
const RETRY: Duration = Duration::from_millis(100);
/// Without any change the tables are compared this often.
const RESYNC: Duration = Duration::from_secs(10);

/// A namespace that learns routes, and which.
#[derive(Debug, Clone)]
pub(super) struct Importer {
    pub(super) place: OpenPlace,
    pub(super) only_routable: bool,
}

/// Follows a node's exports until the lab ends.
pub(super) fn follow(family: Family, name: String, node: OpenPlace, importers: Vec<Importer>) {
    tokio::spawn(async move {
        let mut installed = vec![BTreeSet::new(); importers.len()];
        loop {
            if let Err(error) = watch(family, &name, &node, &importers, &mut installed).await {
                tracing::warn!(node = name, error = format!("{error:#}"), "cannot follow the node's routes");
            }
            time::sleep(RETRY).await;
        }
    });
}

async fn watch(
    family: Family,
    name: &str,
    node: &OpenPlace,
    importers: &[Importer],
    installed: &mut [BTreeSet<IpNet>],
) -> Result<()> {
    let mut monitor = node.command("ip");
    monitor.args(["monitor", "route"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut monitor = Command::from(monitor).kill_on_drop(true).spawn().context("cannot run ip monitor")?;
    let mut changes =
        tokio::io::BufReader::new(monitor.stdout.take().context("ip monitor has no output")?).lines();
    loop {
        let exported = exported(family, node).await?;
        for (importer, installed) in importers.iter().zip(installed.iter_mut()) {
            let wanted: BTreeSet<IpNet> =
                exported.iter().copied().filter(|net| !importer.only_routable || is_routable(net)).collect();
            let lines = diff(family, name, installed, &wanted)?;
            if !lines.is_empty() {
                let place = importer.place.clone();
                // -force: a route that is gone already is no reason to keep the others.
                let run = move || topology::run_batch(place.command("ip").arg("-force"), &lines);
                tokio::task::spawn_blocking(run).await??;
                *installed = wanted;
            }
        }
        tokio::select! {
            line = changes.next_line() => ensure!(line?.is_some(), "ip monitor ended"),
            () = time::sleep(RESYNC) => {}
        }
        let until = Instant::now() + DEBOUNCE;
        while let Ok(line) = time::timeout_at(until, changes.next_line()).await {
            ensure!(line?.is_some(), "ip monitor ended");
        }
    }
}

fn is_routable(net: &IpNet) -> bool {
    Ip::of(net.addr()).routable().contains(net)
}

#[derive(Deserialize)]
struct Route {
    dst: String,
}

async fn exported(family: Family, node: &OpenPlace) -> Result<BTreeSet<IpNet>> {
    let mut nets = BTreeSet::new();
    for ip in family.each() {
        let mut show = node.command("ip");
        show.args([ip.flag(), "-j", "route", "show", "table", &DEFAULT_EXPORT_TABLE.to_string()]);
        let output = Command::from(show).output().await.context("cannot run ip")?;
        // A table that was never written to does not exist, which ip calls an error.
        let routes: Vec<Route> =
            if output.status.success() { serde_json::from_slice(&output.stdout)? } else { Vec::new() };
        for Route { dst } in routes {
            // A block of one address is written without its length.
            let one = || dst.parse::<IpAddr>().map(IpNet::from);
            let net = dst.parse::<IpNet>().or_else(|_| one());
            nets.insert(net.with_context(|| format!("{dst:?} is no network"))?);
        }
    }
    Ok(nets)
}

/// The `ip -batch` lines that turn `installed` into `wanted`.
fn diff(family: Family, node: &str, installed: &BTreeSet<IpNet>, wanted: &BTreeSet<IpNet>) -> Result<String> {
    use std::fmt::Write as _;
    let next_hops = config::node_addresses(family, node)?;
    let mut lines = String::new();
    for net in installed.difference(wanted) {
        let _ = writeln!(lines, "route del {net}");
    }
    for net in wanted.difference(installed) {
        let hop = next_hops.iter().find(|hop| Ip::of(**hop) == Ip::of(net.addr()));
        let hop = hop.with_context(|| format!("{net}: {node} has no address of this family"))?;
        let _ = writeln!(lines, "route replace {net} via {hop} dev eth0");
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn only_the_difference_is_written() {
        let lines = diff(
            Family::Dual,
            "node2",
            &nets(&["10.64.0.0/27", "10.64.0.32/27"]),
            &nets(&["10.64.0.32/27", "2001:db8:113::/125"]),
        );
        assert_eq!(
            lines.unwrap(),
            "route del 10.64.0.0/27\nroute replace 2001:db8:113::/125 via fd00:18::2 dev eth0\n"
        );
    }

    #[test]
    fn the_world_takes_public_blocks_only() {
        let public: Vec<_> = nets(&["10.64.0.0/27", "203.0.113.8/29", "fd64::/123", "2001:db8:113::8/125"])
            .into_iter()
            .filter(is_routable)
            .collect();
        assert_eq!(public, nets(&["203.0.113.8/29", "2001:db8:113::8/125"]).into_iter().collect::<Vec<_>>());
    }
}
