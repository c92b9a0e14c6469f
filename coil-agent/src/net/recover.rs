//! What earlier runs of the agent made, found in the kernel.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use coil_netns::NetNs;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};

use super::{
    link::{Alias, Link, Mac},
    pod::PodLink,
    route::Owned,
    rtnl::{Rtnl, RtnlError},
};
use crate::ipam::Allocation;

/// Where container runtimes keep the namespaces of pods.
const NETNS_DIRS: [&str; 2] = ["/run/netns", "/var/run/docker/netns"];

/// How the names of the Go version's tunnel links in a client pod begin.
const FOU_LINK: &str = "fou";

/// A pod that is connected.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its pool and attachment.
    pub alias: Alias,
    /// Its link and addresses.
    pub link: PodLink,
    /// Its namespace, when it is where runtimes keep them.
    pub netns: Option<PathBuf>,
    /// It has FOU links of its own, made by the Go version of Coil.
    pub kernel_client: bool,
}

impl Found {
    /// Whether another plugin connected it: then it has nothing of a pool.
    #[must_use]
    pub fn is_chained(&self) -> bool {
        self.alias.pool.is_empty()
    }

    /// What it has of its pool.
    #[must_use]
    pub fn allocation(&self) -> Allocation {
        Allocation {
            pool: self.alias.pool.clone(),
            owner: self.alias.owner.clone(),
            ipv4: self.link.ipv4,
            ipv6: self.link.ipv6,
        }
    }
}

/// All pods that are connected: links with Coil's alias, with the addresses that `routes` lead to them.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn pods(rtnl: &Rtnl, routes: Owned) -> Result<Vec<Found>, RtnlError> {
    let routes = routes.list(rtnl).await?;
    let namespaces = namespaces(rtnl).await;
    let mut found = Vec::new();
    for host in rtnl.links().await? {
        let Some(alias) = host.alias.clone() else { continue };
        let (mut ipv4, mut ipv6) = (None, None);
        for (dst, _) in routes.iter().filter(|(_, path)| path.ifindex == Some(host.index)) {
            match dst.addr() {
                IpAddr::V4(a) if dst.prefix_len() == 32 => ipv4 = Some(a),
                IpAddr::V6(a) if dst.prefix_len() == 128 => ipv6 = Some(a),
                _ => {}
            }
        }
        let netns = host.peer_nsid.and_then(|id| namespaces.get(&id).cloned());
        let inner = match &netns {
            Some(path) => inner_links(path).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let mac = inner.iter().find(|link| link.name == alias.owner.ifname).map_or(Mac::default(), |l| l.mac);
        let kernel_client = inner.iter().any(|link| link.name.starts_with(FOU_LINK));
        found.push(Found { alias, link: PodLink { host, mac, ipv4, ipv6 }, netns, kernel_client });
    }
    Ok(found)
}

async fn inner_links(netns: &Path) -> Option<Vec<Link>> {
    Rtnl::open_in(&NetNs::open(netns).ok()?).ok()?.ok()?.links().await.ok()
}

/// The namespaces that runtimes keep, by this namespace's id for them.
async fn namespaces(rtnl: &Rtnl) -> BTreeMap<i32, PathBuf> {
    let mut all = BTreeMap::new();
    let files = NETNS_DIRS.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    for path in files.map(|file| file.path()) {
        let Ok(ns) = NetNs::open(&path) else { continue };
        all.extend(nsid(rtnl, &ns).await.map(|id| (id, path)));
    }
    all
}

/// This namespace's id for another one; none when it has not been given any.
pub(super) async fn nsid(rtnl: &Rtnl, ns: &NetNs) -> Option<i32> {
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(u32::try_from(ns.as_raw_fd()).ok()?));
    let Ok(RouteNetlinkMessage::NewNsId(answer)) = rtnl.get(RouteNetlinkMessage::GetNsId(question)).await
    else {
        return None;
    };
    answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
        _ => None,
    })
}
