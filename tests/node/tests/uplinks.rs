//! The built coild finds the node's uplinks from its routes and addresses, several at once, and follows them as they come
//! and go.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use coil_node_tests::{Cluster, Programs, place::ip};

/// True when the programs of uplinks are on a link, by whichever way.
fn is_uplink(link: &str) -> Result<bool> {
    let Ok(shown) = ip(&format!("-o link show dev {link}")) else { return Ok(false) };
    let index = shown.split(':').next().unwrap_or_default();
    let pin = format!("/sys/fs/bpf/coil/links/from_net-{index}");
    let filters =
        Command::new("tc").args(["filter", "show", "dev", link, "ingress"]).output().context("tc")?;
    Ok(std::path::Path::new(&pin).exists() || String::from_utf8_lossy(&filters.stdout).contains("from_net"))
}

/// Waits until exactly these links are uplinks, of all that the test makes.
async fn uplinks(cluster: &Cluster, wanted: &[&str], after: &str) -> Result<()> {
    let check = async || {
        let mut wrong = vec![];
        for link in ["uplink", "second", "trunk", "lo"] {
            if is_uplink(link)? != wanted.contains(&link) {
                wrong.push(link);
            }
        }
        let log = cluster.coild_log()?;
        Ok((!wrong.is_empty()).then(|| format!("{wrong:?} should be otherwise\n{log}")))
    };
    cluster.wait_for(&format!("the uplinks after {after}"), check).await
}

#[test]
fn uplinks_come_and_go() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |cluster| {
        uplinks(&cluster, &["uplink"], "the start").await?;
        // A second one, with as good a way to the world.
        ip("link add second type veth peer name second netns peer")?;
        ip("-n peer link set second up")?;
        ip("link set second up")?;
        ip("addr add 172.19.0.1/24 dev second")?;
        ip("route replace default nexthop via 172.18.0.2 nexthop via 172.19.0.2")?;
        uplinks(&cluster, &["uplink", "second"], "a second way").await?;
        ip("link del second")?;
        ip("route replace default via 172.18.0.2")?;
        uplinks(&cluster, &["uplink"], "its end").await?;
        // One that only other nodes' pods are behind, as a routing daemon makes it.
        ip("link add second type veth peer name second netns peer")?;
        ip("-n peer link set second up")?;
        ip("link set second up")?;
        uplinks(&cluster, &["uplink"], "a link without a way").await?;
        ip("addr add 172.19.0.1/24 dev second")?;
        ip("route add 10.64.200.0/27 via 172.19.0.2 dev second")?;
        ip("link add poke type veth peer name poked")?;
        ip("link del poke")?;
        uplinks(&cluster, &["uplink", "second"], "a way to a block of a pool").await?;
        ip("link del second")?;
        uplinks(&cluster, &["uplink"], "its end").await?;
        // A way without MAC addresses is the kernel's, and so is all else then.
        ip("tuntap add dev tunnel mode tun")?;
        ip("link set tunnel up")?;
        ip("route replace default dev tunnel")?;
        let check = async || {
            let log = cluster.coild_log()?;
            let last =
                log.lines().rfind(|line| line.contains("from pod to pod")).unwrap_or_default().to_owned();
            let said = last.contains("the kernel alone forwards") && last.contains("no MAC addresses");
            Ok((!said).then(|| format!("coild says {last:?}")))
        };
        cluster.wait_for("coild to leave a way without MAC addresses to the kernel", check).await
    })
}

#[test]
fn devices_are_chosen() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &["--devices", "trunk"], async |cluster| {
        ensure!(!is_uplink("uplink")?, "an uplink that nobody named");
        ip("link add trunk type veth peer name trunk netns peer")?;
        ip("link set trunk up")?;
        uplinks(&cluster, &["trunk"], "the named one has come").await
    })
}
