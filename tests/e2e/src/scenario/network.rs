//! Pods reach each other.

use anyhow::{Result, ensure};

use super::Outcome;
use crate::{
    cluster::Cluster,
    pods::{PORT, Traffic},
};

/// From the server's own node and from another, by every address: a stream with a checksum, echoes, and the sender's
/// own address seen at the other end.
pub(super) async fn traffic(cluster: &Cluster) -> Result<Outcome> {
    let (a, b) = cluster.two()?;
    let addresses = cluster.serve(&Traffic::server("server", a)).await?;
    ensure!(!addresses.is_empty(), "the server has no address");
    for node in [a, b] {
        for ip in &addresses {
            let seen = cluster.run(&Traffic::new("client", node, &format!("visit {ip} {PORT}"))).await?;
            println!("   {node} to {ip}: seen as {seen}");
        }
    }
    cluster.remove("server").await?;
    Ok(Outcome::Passed)
}
