//! Table 119 while coild runs, when it ends, and when the Node is deleted.

use anyhow::{Result, ensure};
use coil_node_tests::{Cluster, Plugin, Programs, Sandbox, place::ip};
use serde_json::json;

/// The table's lines that are of a protocol, both families.
fn routes(protocol: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        // A table without a route is one that does not exist, which ip calls an error.
        let table = ip(&format!("{family} route show table 119")).unwrap_or_default();
        let of = table.lines().filter(|line| line.contains(&format!("dev lo proto {protocol} ")));
        lines.extend(of.map(|line| line.split(' ').next().unwrap_or_default().to_owned()));
    }
    Ok(lines)
}

#[test]
fn the_table_is_the_nodes_whoever_else_writes_to_it() -> Result<()> {
    // The interval of the full sync is far away.
    let flags = ["--clear-routes-on-shutdown", "--addressblock-gc-interval", "1h"];
    Cluster::run(Programs::beside_tests()?, &flags, async |mut cluster| {
        let plugin = Plugin {
            path: cluster.programs.plugin.clone(),
            config: json!({"cniVersion": "1.0.0", "name": "n", "type": "coil", "socket": cluster.socket()}),
        };
        let uid = cluster.create_pod("dual", "p").await?;
        let sandbox = Sandbox::new("dual", "p", &uid)?;
        sandbox.call(&plugin, "ADD")?;
        let exported = async |wanted: &[&str]| {
            let check = async || {
                let now = routes("30")?;
                Ok((now != wanted).then(|| format!("{now:?} instead of {wanted:?}")))
            };
            cluster.wait_for("the exported blocks", check).await
        };
        let blocks = ["10.65.0.0/26", "fd65::/122"];
        exported(&blocks).await?;

        ip("route add 192.0.2.0/24 dev lo table 119 proto static")?;
        ip("-6 route add 2001:db8:7::/64 dev lo table 119 proto static")?;
        ip("route del 10.65.0.0/26 table 119")?;
        ip("-6 route del fd65::/122 table 119")?;
        exported(&blocks).await?;

        // coild ends and comes back: nothing moves.
        cluster.stop_coild()?;
        ensure!(routes("30")? == blocks, "the routes go with coild: {:?}", routes("30")?);
        cluster.start_coild().await?;
        ensure!(routes("30")? == blocks, "the routes go when coild comes back: {:?}", routes("30")?);

        cluster.delete_node().await?;
        cluster.stop_coild()?;
        ensure!(routes("30")?.is_empty(), "a deleted node is announced: {:?}", routes("30")?);
        ensure!(routes("static")?.len() == 2, "another protocol's routes are gone: {:?}", routes("static")?);
        Ok(())
    })
}
