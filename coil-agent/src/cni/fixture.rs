//! A node for tests without a kernel's part: other plugins connect its pods, and nobody answers for the API.

use std::sync::Arc;

use kube::{Client, Config};

use crate::{
    egress::plan::Attached,
    ipam::AttachmentId,
    net::{
        Link, Mac, Rtnl,
        host::HostAddresses,
        name::PodIdentity,
        pod::{PodLink, PodNetwork},
        route::Owned,
    },
    node::{Attachment, NewPod, Node, Settings},
    plane::Plane,
    watch::Feed,
};

/// Of a network without a link.
const NO_LINK: u32 = i32::MAX as u32;

pub(super) fn id(id: &str) -> AttachmentId {
    AttachmentId { container_id: id.into(), ifname: "eth0".into() }
}

/// A node without pods. Needs a Tokio runtime.
pub(super) fn node() -> Arc<Node> {
    node_with(Settings::default())
}

/// The same with settings.
pub(crate) fn node_with(settings: Settings) -> Arc<Node> {
    let client = Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let rtnl = Rtnl::open().unwrap();
    let network =
        PodNetwork::new(rtnl.clone(), Owned { table: 116, protocol: 30 }, HostAddresses::default(), 1500);
    Node::new(settings, client, Feed::default(), None, network, Plane::kernel("test"), rtnl)
}

/// A container of the pod with the UID `uid`, in the network `pods`.
pub(super) fn container(name: &str) -> NewPod {
    let identity =
        PodIdentity { uid: "uid".into(), network: "pods".into(), namespace: "n".into(), name: "p".into() };
    let host = Link { index: NO_LINK, ..Link::default() };
    let link = PodLink { host, mac: Mac::default(), ipv4: None, ipv6: None };
    NewPod {
        owner: id("uid"),
        attachment: Attachment::of(&identity.altnames(&id(name)), &id("uid")),
        attached: Attached { link, pod: None, kernel_client: false, kernel_gateway: false },
        netns: "/nowhere".into(),
        routes: Vec::new(),
    }
}
