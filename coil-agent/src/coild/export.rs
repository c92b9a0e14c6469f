//! Keeps the export table what the node's blocks are, whoever else writes to it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tracing::{error, info, warn};

use super::RETRY;
use crate::{
    cni::health::{Health, Trouble},
    ipam::NodeIpam,
    net::{
        Rtnl, RtnlError, export,
        monitor::{Monitor, Topic, is_lost_route},
        route::Owned,
    },
};

/// How long the API server is asked whether the Node was deleted, at the end.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Routes that go together come back together.
const SETTLE: Duration = Duration::from_millis(50);

/// The task that exports.
pub(super) struct Exporter {
    rtnl: Rtnl,
    table: Owned,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Starts it; at least every `interval` the whole table is compared.
    pub(super) fn start(
        rtnl: Rtnl,
        table: Owned,
        blocks: watch::Receiver<BTreeSet<IpNet>>,
        ipam: NodeIpam,
        interval: Duration,
        health: Arc<Health>,
    ) -> Result<Self, RtnlError> {
        ipam.will_export();
        let monitor = Monitor::open(&[Topic::LostRoutes])?;
        let task = tokio::spawn(follow(rtnl.clone(), table, blocks, ipam, monitor, interval, health));
        Ok(Self { rtnl, table, task })
    }

    /// Empties the table when the Node was deleted: nobody may be led here any more. Otherwise the routes
    /// stay, and the pods with them.
    pub(super) async fn end(self, client: Client, node: &str) {
        self.task.abort();
        let _ = self.task.await;
        let api: Api<Node> = Api::all(client);
        match timeout(ASK_LIMIT, api.get_opt(node)).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => match export::sync(&self.rtnl, self.table, &BTreeSet::new()).await {
                Ok(changes) => {
                    info!(
                        table = self.table.table,
                        removed = changes.removed,
                        "the Node was deleted: emptied"
                    );
                }
                Err(e) => error!(error = %e, "the Node was deleted, and some of its routes stay"),
            },
            Ok(Err(e)) => warn!(node, error = %e, "cannot read the Node; the exported routes stay"),
            Err(_) => warn!(node, "the API server does not answer; the exported routes stay"),
        }
    }
}

async fn follow(
    rtnl: Rtnl,
    table: Owned,
    mut blocks: watch::Receiver<BTreeSet<IpNet>>,
    ipam: NodeIpam,
    mut monitor: Monitor,
    interval: Duration,
    health: Arc<Health>,
) {
    // Before the first list the set of blocks is not known, and what is exported stays.
    if blocks.changed().await.is_err() {
        return;
    }
    loop {
        let wanted = blocks.borrow_and_update().clone();
        // Until it is done, nobody can say what the table has.
        ipam.will_export();
        let pause = match export::sync(&rtnl, table, &wanted).await {
            Ok(changes) => {
                if changes != export::Changes::default() {
                    let (set, removed) = (changes.set, changes.removed);
                    info!(table = table.table, blocks = wanted.len(), set, removed, "exported blocks");
                }
                health.report("export", None);
                ipam.exported(wanted);
                interval
            }
            Err(e) => {
                error!(error = %e, "cannot export the node's blocks; will try again");
                let text = format!("cannot export the node's blocks to table {}: {e}", table.table);
                health.report("export", Some(Trouble::Impaired(text)));
                RETRY
            }
        };
        tokio::select! {
            changed = blocks.changed() => if changed.is_err() { return },
            () = monitor.changed(|message| is_lost_route(message, table)) => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
