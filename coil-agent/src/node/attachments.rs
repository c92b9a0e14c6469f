//! Connected pods as the runtime and the kernel know them, and what is wrong on the node.

use std::{path::PathBuf, sync::atomic::Ordering};

use coil_netns::NetNs;
use futures::FutureExt as _;
use tokio::time::Instant;

use super::{Node, lock};
use crate::{
    cni::health::Trouble,
    egress::plan::Attached,
    ipam::AttachmentId,
    net::{
        Link, RtnlError, name,
        pod::{PodNetError, RoutePolicy},
    },
};

/// What a connected pod is to the runtime, by the names of its link (see [`name`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The attachment's name.
    pub name: String,
    /// The network's number; none when an older Coil connected the pod.
    pub network: Option<String>,
}

impl Attachment {
    /// What alternative names say; for a link without them, its alias.
    #[must_use]
    pub fn of(altnames: &[String], owner: &AttachmentId) -> Self {
        Self {
            name: name::attachment_of(altnames).cloned().unwrap_or_else(|| name::of_attachment(owner)),
            network: name::network_of(altnames).map(str::to_owned),
        }
    }
}

/// A connected pod as it was found in a list.
#[derive(Debug, Clone)]
pub struct Connected {
    /// By what it is known.
    pub owner: AttachmentId,
    /// What it is to the runtime.
    pub attachment: Attachment,
    since: Instant,
}

impl Node {
    /// All connected pods.
    #[must_use]
    pub fn attachments(&self) -> Vec<Connected> {
        let pods = lock(&self.pods);
        let connected = |(owner, entry): (&AttachmentId, &super::Entry)| Connected {
            owner: owner.clone(),
            attachment: entry.attachment.clone(),
            since: entry.since,
        };
        pods.iter().map(connected).collect()
    }

    /// Whether a pod of a list is still the same: neither removed nor connected again.
    #[must_use]
    pub fn is_still_there(&self, pod: &Connected) -> bool {
        lock(&self.pods).get(&pod.owner).is_some_and(|entry| entry.since == pod.since)
    }

    /// By what a pod is known, which the runtime names so. `uid` is the pod's, if the runtime told it: a pod
    /// that Coil v2 of Go took over from another plugin is known by that alone.
    #[must_use]
    pub fn owner_of(&self, attachment: &AttachmentId, uid: Option<&str>) -> Option<AttachmentId> {
        let pods = lock(&self.pods);
        let named = |name: &str| {
            pods.iter().find(|(_, entry)| entry.attachment.name == name).map(|(owner, _)| owner.clone())
        };
        named(&name::of_attachment(attachment)).or_else(|| {
            let (container_id, ifname) = (uid?.to_owned(), attachment.ifname.clone());
            named(&name::of_attachment(&AttachmentId { container_id, ifname }))
        })
    }

    /// Where a connected pod's namespace is, when that is known.
    #[must_use]
    pub fn netns_of(&self, owner: &AttachmentId) -> Option<PathBuf> {
        lock(&self.pods).get(owner).and_then(|entry| entry.netns.clone())
    }

    /// The host's side of a connected pod's link.
    #[must_use]
    pub fn link_of(&self, owner: &AttachmentId) -> Option<Link> {
        lock(&self.pods).get(owner).map(|entry| entry.attached.link.host.clone())
    }

    /// Whether the host's side of a pod's link, which was there when the pod was connected, is gone.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn has_lost_link(&self, owner: &AttachmentId) -> Result<bool, RtnlError> {
        let Some(known) = self.link_of(owner) else { return Ok(false) };
        let found = self.rtnl.link_by_index(known.index).await?;
        Ok(found.is_none_or(|link| link.alias.is_none_or(|alias| alias.owner != *owner)))
    }

    /// Makes the routes inside a pod follow a policy.
    ///
    /// # Errors
    /// When the pod's namespace or link is gone, or the kernel refuses.
    pub async fn update_routes(
        &self,
        ns: &NetNs,
        owner: &AttachmentId,
        pod: &Attached,
        policy: RoutePolicy,
    ) -> Result<(), PodNetError> {
        if self.ipam.is_some() {
            self.network.update_routes(ns, &owner.ifname, &pod.link, policy).await?;
        } else {
            self.chained.update_routes(ns, &owner.ifname, policy).await?;
        }
        Ok(())
    }

    /// What keeps pods from being connected, or connected pods from what they need. Asks nobody.
    #[must_use]
    pub fn troubles(&self) -> Vec<Trouble> {
        let mut missing = self.feed.missing();
        if self.ipam.as_ref().is_some_and(|ipam| ipam.synced().now_or_never().is_none()) {
            missing.push("addressblocks");
        }
        if !missing.is_empty() {
            let kinds = missing.join(", ");
            return vec![Trouble::NotReady(format!("coild waits for the API server to list: {kinds}"))];
        }
        if self.applied.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let text = "the datapath is not programmed; coild's log says why".to_owned();
        let pods = !lock(&self.pods).is_empty();
        vec![if pods { Trouble::Impaired(text) } else { Trouble::NotReady(text) }]
    }
}
