//! GC: attachments of a network that its runtime does not know any more.

use std::{collections::BTreeSet, sync::Arc};

use coil_api::cni::{NetConf, code};
use tracing::{info, warn};

use super::{Failure, Phases, del, locks::Locks};
use crate::{
    ipam::AttachmentId,
    net::name,
    node::{Attachment, Connected, Node},
};

/// What became of the attachments of this node.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) known: usize,
    pub(super) removed: usize,
    /// What could not be removed, and why.
    pub(super) failed: Vec<String>,
}

impl Collected {
    /// GC removes what it can; what it cannot, it reports.
    pub(super) fn outcome(&self) -> Result<(), Failure> {
        if self.failed.is_empty() {
            return Ok(());
        }
        Err(Failure::new(code::INTERNAL, format!("cannot remove {}", self.failed.join("; "))))
    }
}

/// The network of a GC, and what of it lives.
#[derive(Debug)]
struct Live {
    network: String,
    names: BTreeSet<String>,
}

impl Live {
    /// None when the runtime gave no list: then nothing is known to be stale.
    fn of(config: &NetConf) -> Option<Self> {
        let names = config
            .live_attachments()?
            .into_iter()
            .map(|a| AttachmentId { container_id: a.container_id.clone(), ifname: a.ifname.clone() })
            .map(|id| name::of_attachment(&id))
            .collect();
        Some(Self { network: name::network_number(&config.name), names })
    }

    /// Whether an attachment is of this network and not in the list. Of one whose network is not known, because
    /// an older Coil connected it, that cannot be told: it stays until its link is gone.
    fn lacks(&self, attachment: &Attachment) -> bool {
        attachment.network.as_ref() == Some(&self.network) && !self.names.contains(&attachment.name)
    }
}

pub(super) async fn gc(node: &Arc<Node>, locks: &Locks, config: &NetConf, phases: &mut Phases) -> Collected {
    let attachments = node.attachments();
    let mut collected = Collected { known: attachments.len(), ..Collected::default() };
    let Some(live) = Live::of(config) else {
        warn!(network = config.name, "GC without a list of attachments removes nothing");
        return collected;
    };
    let stale = attachments.into_iter().filter(|pod| live.lacks(&pod.attachment));
    remove(node, locks, stale, &mut collected).await;
    phases.end("attachments");
    match del::lost(node, locks).await {
        Ok(lost) => collected.removed += lost.len(),
        Err(e) => collected.failed.push(format!("pods without links: {e}")),
    }
    phases.end("links");
    collected
}

async fn remove(
    node: &Arc<Node>,
    locks: &Locks,
    stale: impl Iterator<Item = Connected>,
    collected: &mut Collected,
) {
    for pod in stale {
        let _alone = locks.lock(&pod.owner).await;
        // With the lock: ADD may have connected it anew in between, and the runtime's list is older than that.
        if !node.is_still_there(&pod) {
            continue;
        }
        match del::del_known(node, &pod.owner, &mut Phases::default()).await {
            Ok(()) => {
                info!(owner = %pod.owner, "GC: removed what a gone pod left");
                collected.removed += 1;
            }
            Err(e) => collected.failed.push(format!("{}: {e}", pod.attachment.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cni::fixture::{container, id, node},
        net::name::PodIdentity,
    };

    #[tokio::test]
    async fn what_add_makes_while_gc_waits_stays() {
        let (node, locks) = (node(), Locks::default());
        for connected_anew in [true, false] {
            node.add(container("first")).await.unwrap();
            let add = locks.lock(&id("uid")).await;
            let mut collected = Collected::default();
            let mut gc = Box::pin(remove(&node, &locks, node.attachments().into_iter(), &mut collected));
            assert!(futures::poll!(&mut gc).is_pending(), "an ADD of the same pod runs");
            if connected_anew {
                node.add(container("second")).await.unwrap();
            }
            drop(add);
            gc.await;
            assert_eq!(collected.removed, usize::from(!connected_anew));
            assert_eq!(node.attachments().len(), usize::from(connected_anew));
        }
    }

    #[test]
    fn only_what_the_networks_runtime_does_not_name_is_stale() {
        let owner = |id: &str| AttachmentId { container_id: id.into(), ifname: "eth0".into() };
        let attachment = |id: &str, network: &str| {
            let pod = PodIdentity { uid: "u".into(), network: network.into(), ..PodIdentity::default() };
            Attachment::of(&pod.altnames(&owner(id)), &owner(id))
        };
        let live = |text: &str| Live::of(&serde_json::from_str(text).unwrap());
        let list = live(
            r#"{"name":"pods","cni.dev/valid-attachments":[{"containerID":"live","ifname":"eth0"},
                {"containerID":"other","ifname":"net1"}]}"#,
        )
        .unwrap();
        assert!(!list.lacks(&attachment("live", "pods")));
        assert!(list.lacks(&attachment("stale", "pods")));
        assert!(list.lacks(&attachment("other", "pods")), "another interface of the container");
        assert!(!list.lacks(&attachment("stale", "storage")), "another network's");
        assert!(!list.lacks(&Attachment::of(&[], &owner("stale"))), "nobody knows whose");
        assert!(
            live(r#"{"name":"pods","cni.dev/attachments":[]}"#).unwrap().lacks(&attachment("live", "pods"))
        );
        assert!(live(r#"{"name":"pods"}"#).is_none());
        let failed = Collected { failed: vec!["a: no".into(), "b: no".into()], ..Collected::default() };
        assert_eq!(failed.outcome().unwrap_err().msg, "cannot remove a: no; b: no");
    }
}
