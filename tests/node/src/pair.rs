//! Two pods that reach each other, and a rule that tells what passes the host's stack between them.

use anyhow::{Context as _, Result};
use coil_netns::NetNs;
use serde_json::json;

use crate::{
    cluster::{Cluster, WATCH_DELAY},
    place::run,
    runtime::{Plugin, Sandbox, addresses},
};

/// Two pods of a pool.
pub struct Pair {
    /// The pods.
    pub pods: [Sandbox; 2],
    /// Their addresses.
    pub addresses: [String; 2],
}

impl Pair {
    /// Makes them of the pool that a namespace has (`v4` or `v6`), and the rule.
    ///
    /// # Errors
    /// When the API or the plugin refuses.
    pub async fn new(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let plugin = Plugin {
            path: cluster.programs.plugin.clone(),
            config: json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "coil", "socket": cluster.socket()}),
        };
        let add = async |name: &str| -> Result<(Sandbox, String)> {
            let uid = cluster.create_pod(namespace, name).await?;
            let pod = Sandbox::new(namespace, name, &uid)?;
            tokio::time::sleep(WATCH_DELAY).await;
            let added = addresses(&pod.call(&plugin, "ADD")?);
            let address = added.first().and_then(|net| net.split('/').next()).context("an address")?;
            Ok((pod, address.to_owned()))
        };
        let (one, two) = (add("one").await?, add("two").await?);
        // A rule that counts is none that would be missed.
        run("nft add table inet watch")?;
        run("nft add chain inet watch gate { type filter hook forward priority 0 ; }")?;
        run("nft add rule inet watch gate counter")?;
        Ok(Self { pods: [one.0, two.0], addresses: [one.1, two.1] })
    }

    /// Runs code in one of the pods.
    ///
    /// # Errors
    /// When its namespace cannot be entered.
    pub fn inside<T: Send>(&self, pod: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(NetNs::open(self.pods[pod].netns())?.run(work)?)
    }

    /// Pings the second from the first: whether the answer came, and how many packets the forward hook saw.
    ///
    /// # Errors
    /// When it cannot be tried.
    pub fn ping(&self) -> Result<(bool, u64)> {
        let before = Self::seen()?;
        let answered = self.pods[0].run(&format!("ping -c1 -W2 {}", self.addresses[1]))?;
        Ok((answered, Self::seen()? - before))
    }

    /// Packets that the forward hook has seen.
    ///
    /// # Errors
    /// When the rule is gone.
    pub fn seen() -> Result<u64> {
        let text = run("nft list chain inet watch gate")?;
        let count = text.split("packets ").nth(1).context("a counter")?.split(' ').next().unwrap_or_default();
        Ok(count.parse()?)
    }

    /// Waits until a ping ends so.
    ///
    /// # Errors
    /// When it does not.
    pub async fn pings(&self, cluster: &Cluster, wanted: (bool, u64), after: &str) -> Result<()> {
        let check = async || {
            let now = self.ping()?;
            let log = cluster.coild_log()?;
            Ok((now != wanted)
                .then(|| format!("(answered, seen by the stack) {now:?}, not {wanted:?}\n{log}")))
        };
        cluster.wait_for(&format!("the ping after {after}"), check).await
    }
}
