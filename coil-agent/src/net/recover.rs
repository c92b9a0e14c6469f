//! What earlier runs of the agent made, found in the kernel.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::PathBuf,
};

use coil_netns::NetNs;
use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
    rule::{RuleAttribute, RuleMessage},
};
use tracing::{info, warn};

use super::{
    link::{Alias, Link, Mac},
    name,
    plan::host_net,
    pod::{self, PodLink},
    route::{MAIN_TABLE, Owned, Path},
    rtnl::{Rtnl, RtnlError},
};
use crate::{egress::kernel::tunnel::RECEIVERS, ipam::Allocation};

/// Where container runtimes keep the namespaces of pods.
const NETNS_DIRS: [&str; 2] = ["/run/netns", "/var/run/docker/netns"];

/// RTPROT_BOOT of linux/rtnetlink.h.
const PROTOCOL_BOOT: u8 = 3;

/// How the names of tunnel links in a pod begin: of a client by its own kernel, and of a gateway.
const FOU_LINK: &str = "fou";
/// The priority of a client's rule to what leaves inside private ranges; gateways have none.
const CLIENT_RULE: u32 = 1900;

/// A pod that is connected.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its pool and attachment.
    pub alias: Alias,
    /// Its link and addresses.
    pub link: PodLink,
    /// Its namespace, when it is where runtimes keep them.
    pub netns: Option<PathBuf>,
    /// It is a client with FOU links of its own.
    pub kernel_client: bool,
    /// It is no such client, and takes FOU: a gateway whose kernel has been made ready.
    pub kernel_gateway: bool,
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
/// `from_main`: pods whose routes are in the main table, where Coil 2.0.1 had them, are found too; the pod
/// table gets the routes that it misses. Links that an older Coil made get the name by which they are found.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn pods(rtnl: &Rtnl, routes: Owned, from_main: bool) -> Result<Vec<Found>, RtnlError> {
    let known = addresses_by_link(&routes.list(rtnl).await?);
    let mut in_main = Vec::new();
    if from_main {
        // Calico makes the protocol of such a route "boot".
        for protocol in [routes.protocol, PROTOCOL_BOOT] {
            in_main.extend(Owned { table: MAIN_TABLE, protocol }.list(rtnl).await?);
        }
    }
    let in_main = addresses_by_link(&in_main);
    let namespaces = namespaces(rtnl).await;
    let mut found = Vec::new();
    for host in rtnl.links().await? {
        let Some(alias) = host.alias.clone() else { continue };
        let own = known.get(&host.index).copied().unwrap_or_default();
        let main = in_main.get(&host.index).copied().unwrap_or_default();
        let (ipv4, ipv6) = (own.0.or(main.0), own.1.or(main.1));
        for address in pod::addresses(main.0.filter(|_| own.0.is_none()), main.1.filter(|_| own.1.is_none()))
        {
            let path = Path { ifindex: Some(host.index), ..Path::default() };
            match routes.add(rtnl, host_net(address), &path).await {
                Ok(()) => info!(%address, link = host.name, "took over a pod's route from the main table"),
                // The pod may have gone meanwhile; another pod's trouble is not this one's.
                Err(e) => warn!(%address, link = host.name, error = %e, "cannot take over a pod's route"),
            }
        }
        let altname = name::of_attachment(&alias.owner);
        // Behind another plugin the alias has the pod's UID, and the names the container.
        if !alias.pool.is_empty()
            && !host.altnames.contains(&altname)
            && let Err(e) = rtnl.add_altname(host.index, &altname).await
        {
            warn!(link = host.name, altname, error = %e, "cannot name a pod's link");
        }
        // An agent was killed before it had connected this pod: its ADD did not succeed, and comes again.
        if !alias.pool.is_empty() && ipv4.is_none() && ipv6.is_none() {
            warn!(owner = %alias.owner, link = host.name, "a pod that was not connected to the end is left out");
            continue;
        }
        let netns = host.peer_nsid.and_then(|id| namespaces.get(&id).cloned());
        let inner = inner_links(rtnl, &host).await;
        // By the pair and not by its name, which the pod may have changed.
        let mac = inner.iter().find(|link| Some(link.index) == host.lower).map_or(Mac::default(), |l| l.mac);
        let tunnels = inner.iter().any(|link| link.name.starts_with(FOU_LINK));
        let kernel_client = tunnels && has_rules_of_client(&host, netns.as_deref()).await;
        let takes_fou = inner.iter().any(|link| RECEIVERS.iter().any(|(name, _)| *name == link.name));
        let kernel_gateway = takes_fou && !kernel_client;
        let link = PodLink { host, mac, ipv4, ipv6 };
        found.push(Found { alias, link, netns, kernel_client, kernel_gateway });
    }
    Ok(found)
}

type Addresses = (Option<Ipv4Addr>, Option<Ipv6Addr>);

/// Which address of each family leads to which link.
fn addresses_by_link(routes: &[(IpNet, Path)]) -> BTreeMap<u32, Addresses> {
    let mut all: BTreeMap<u32, Addresses> = BTreeMap::new();
    for (dst, path) in routes {
        let Some(index) = path.ifindex else { continue };
        let own = all.entry(index).or_default();
        match dst.addr() {
            IpAddr::V4(a) if dst.prefix_len() == 32 => own.0 = Some(a),
            IpAddr::V6(a) if dst.prefix_len() == 128 => own.1 = Some(a),
            _ => {}
        }
    }
    all
}

/// The links of the namespace that a pair's other end is in; empty when they cannot be known.
async fn inner_links(rtnl: &Rtnl, host: &Link) -> Vec<Link> {
    let Some(nsid) = host.peer_nsid else { return Vec::new() };
    rtnl.links_in(nsid).await.unwrap_or_else(|e| {
        warn!(link = host.name, error = %e, "cannot look into a pod's namespace: the host's stack serves it alone");
        Vec::new()
    })
}

/// Whether a pod with tunnels is a client; one that cannot be looked into is taken for one.
async fn has_rules_of_client(host: &Link, netns: Option<&std::path::Path>) -> bool {
    let Some(netns) = netns else { return true };
    let look = async {
        let rtnl = Rtnl::open_in(&NetNs::open(netns)?)??;
        let mut found = false;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RuleMessage::default();
            filter.header.family = family;
            for message in rtnl.dump(RouteNetlinkMessage::GetRule(filter), "the routing rules").await? {
                let RouteNetlinkMessage::NewRule(rule) = message else { continue };
                found |= rule.attributes.contains(&RuleAttribute::Priority(CLIENT_RULE));
            }
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(found)
    };
    look.await.unwrap_or_else(|e| {
        warn!(link = host.name, error = %e, "cannot look at the rules of a pod with tunnels, which is taken for a client");
        true
    })
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
