//! A pod that another plugin connected: finding its link, marking it as known to Coil, its routes.
//!
//! ```text
//!   pod namespace                      node namespace
//!  ┌────────────────┐  veth           ┌─────────────────────────────────────────┐
//!  │ eth0           ├─────────────────┤ veth4d… (ptp), or a port of a bridge    │
//!  │ peer: index n, │                 │ index n, peer: eth0's index in the pod  │
//!  │ in the node    │                 │ alias COIL::<pod's UID>:eth0            │
//!  └────────────────┘                 └─────────────────────────────────────────┘
//! ```
//!
//! The host's link is the one whose peer is the pod's interface, as both ends say it; names in the results
//! of other plugins decide nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use coil_api::names::DEFAULT_PROTOCOL;
use coil_netns::NetNs;
use ipnet::IpNet;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, Prop},
    route::{RouteAttribute, RouteMessage, RouteType},
};

use super::{
    link::{Alias, Link},
    name,
    plan::{PodGateways, pod_routes},
    pod::{PodLink, PodNetError, RoutePolicy},
    recover::{Found, nsid},
    route::{Changes, FAMILIES, MAIN_TABLE, Owned, Routes, address},
    rtnl::{Mode, Rtnl, RtnlError},
};
use crate::ipam::AttachmentId;

/// Coil's own routes in such a pod. `--protocol-id` is not used: it is the other plugin's, or the kernel's.
const ROUTES: Owned = Owned { table: MAIN_TABLE, protocol: DEFAULT_PROTOCOL };

/// Pods that other plugins connect, on this node.
#[derive(Debug, Clone)]
pub struct Chained {
    rtnl: Rtnl,
}

impl Chained {
    /// `rtnl` is of the node's namespace.
    #[must_use]
    pub fn new(rtnl: Rtnl) -> Self {
        Self { rtnl }
    }

    /// The pod's link, with the addresses of its interface. None when the interface is no end of a veth pair
    /// whose other end is on this node.
    ///
    /// # Errors
    /// When the namespace has no such interface, or cannot be looked into.
    pub async fn find(&self, ns: &NetNs, ifname: &str) -> Result<Option<PodLink>, PodNetError> {
        let inside = Rtnl::open_in(ns)??;
        let what = || PodNetError::Missing { what: format!("interface {ifname} in {}", ns.path().display()) };
        let inner = inside.link_by_name(ifname).await?.ok_or_else(what)?;
        let Some(peer) = inner.lower else { return Ok(None) };
        let Some(host) = self.rtnl.link_by_index(peer).await? else { return Ok(None) };
        // Asking for the link gave the pod's namespace its number, if it had none.
        let behind = nsid(&self.rtnl, ns).await;
        if host.lower != Some(inner.index) || behind.is_none() || host.peer_nsid != behind {
            return Ok(None);
        }
        let (ipv4, ipv6) = addresses_of(&inside, &inner).await?;
        Ok(Some(PodLink { host, mac: inner.mac, ipv4, ipv6 }))
    }

    /// Notes on the host's link whose it is: an agent that starts later finds the pod by that.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn mark(&self, link: &Link, alias: &Alias, altnames: &[String]) -> Result<(), RtnlError> {
        self.set_alias(link.index, &alias.to_string()).await?;
        let (known, stale): (Vec<_>, Vec<_>) =
            link.altnames.iter().filter(|name| name::is_ours(name)).partition(|name| altnames.contains(name));
        for name in stale {
            self.remove_altname(link.index, name).await?;
        }
        for name in altnames.iter().filter(|name| !known.contains(name)) {
            self.rtnl.add_altname(link.index, name).await?;
        }
        Ok(())
    }

    /// Undoes [`Chained::mark`]; fine when the link is gone, or somebody else's by now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn unmark(&self, index: u32, owner: &AttachmentId) -> Result<(), RtnlError> {
        let Some(link) = self.rtnl.link_by_index(index).await? else { return Ok(()) };
        if link.alias.as_ref().is_none_or(|alias| alias.owner != *owner) {
            return Ok(());
        }
        for name in link.altnames.iter().filter(|name| name::is_ours(name)) {
            self.remove_altname(index, name).await?;
        }
        self.set_alias(index, "").await
    }

    /// Makes the pod's routes to the destinations of its Egresses have the MTU that leaves room for the
    /// encapsulation. The other plugin's routes stay as they are.
    ///
    /// # Errors
    /// When the pod's namespace or link is gone, or the kernel refuses.
    pub async fn update_routes(
        &self,
        ns: &NetNs,
        ifname: &str,
        policy: RoutePolicy,
    ) -> Result<Changes, PodNetError> {
        let inside = Rtnl::open_in(ns)??;
        let what = || PodNetError::Missing { what: format!("interface {ifname} in {}", ns.path().display()) };
        let inner = inside.link_by_name(ifname).await?.ok_or_else(what)?;
        let gateways = gateways_on(&inside, inner.index).await?;
        Ok(ROUTES.sync(&inside, &routes(gateways, &inner, policy)).await?)
    }

    /// Removes Coil's routes from a pod that may live on. There are none when its interface is gone, or is
    /// no end of the link any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn clear_routes(&self, ns: &NetNs, ifname: &str, link: u32) -> Result<(), PodNetError> {
        match self.find(ns, ifname).await {
            Ok(Some(found)) if found.host.index == link => {
                ROUTES.sync(&Rtnl::open_in(ns)??, &Routes::new()).await?;
                Ok(())
            }
            Ok(_) | Err(PodNetError::Missing { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Looks up the addresses of pods that other plugins connected, which no route of Coil's tells.
    pub async fn complete(&self, found: &mut [Found]) {
        for pod in found.iter_mut().filter(|pod| pod.is_chained()) {
            let Some(ns) = pod.netns.as_ref().and_then(|path| NetNs::open(path).ok()) else { continue };
            if let Ok(Some(link)) = self.find(&ns, &pod.alias.owner.ifname).await
                && link.host.index == pod.link.host.index
            {
                pod.link = link;
            }
        }
    }

    async fn set_alias(&self, index: u32, alias: &str) -> Result<(), RtnlError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        let doing = || format!("set the alias of link {index}");
        self.rtnl.change(RouteNetlinkMessage::SetLink(message), Mode::Change, doing).await
    }

    async fn remove_altname(&self, index: u32, name: &str) -> Result<(), RtnlError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())]));
        let doing = || format!("take the alternative name {name} from link {index}");
        self.rtnl.change(RouteNetlinkMessage::DelLinkProp(message), Mode::Change, doing).await
    }
}

/// The first address of each family that others can reach.
async fn addresses_of(inside: &Rtnl, link: &Link) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), RtnlError> {
    let (mut ipv4, mut ipv6) = (None, None);
    for (_, net) in inside.addresses().await?.into_iter().filter(|(index, _)| *index == link.index) {
        match net.addr() {
            IpAddr::V4(a) if !a.is_link_local() => ipv4 = ipv4.or(Some(a)),
            IpAddr::V6(a) if !a.is_unicast_link_local() => ipv6 = ipv6.or(Some(a)),
            _ => {}
        }
    }
    Ok((ipv4, ipv6))
}

/// The gateways of the default routes on a link, whoever made them.
async fn gateways_on(inside: &Rtnl, index: u32) -> Result<PodGateways, RtnlError> {
    let mut gateways = PodGateways::default();
    for family in FAMILIES {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.attributes.push(RouteAttribute::Table(MAIN_TABLE));
        for message in inside.dump(RouteNetlinkMessage::GetRoute(filter), "the pod's routes").await? {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
            match default_gateway(&route, index) {
                Some(IpAddr::V4(a)) => gateways.ipv4 = gateways.ipv4.or(Some(a)),
                Some(IpAddr::V6(a)) => gateways.ipv6 = gateways.ipv6.or(Some(a)),
                None => {}
            }
        }
    }
    Ok(gateways)
}

fn default_gateway(route: &RouteMessage, index: u32) -> Option<IpAddr> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return None;
    }
    let on_link = route.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(oif) if *oif == index));
    let gateway = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(gateway) => address(gateway),
        _ => None,
    });
    gateway.filter(|_| on_link)
}

/// The routes that a client needs besides those of the other plugin. Its default route is covered by two
/// halves, so that it need not be changed.
fn routes(gateways: PodGateways, link: &Link, policy: RoutePolicy) -> Routes {
    let mut routes = Routes::new();
    for (dst, path) in pod_routes(gateways, link.index, link.mtu, policy) {
        let is_default = dst.prefix_len() == 0;
        match path.gateway {
            Some(_) if is_default && path.mtu != 0 => {
                routes.extend(halves(dst).map(|net| (net, path.clone())));
            }
            Some(_) if !is_default => drop(routes.insert(dst, path)),
            _ => {}
        }
    }
    routes
}

fn halves(net: IpNet) -> impl Iterator<Item = IpNet> {
    net.subnets(net.prefix_len() + 1).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_covered_and_not_changed() {
        let gateways = PodGateways { ipv4: "10.244.0.1".parse().ok(), ipv6: "fd00:244::1".parse().ok() };
        let link = Link { index: 2, mtu: 1500, ..Link::default() };
        let policy =
            [("0.0.0.0/0", true), ("10.0.0.0/8", false), ("10.244.0.1/32", false), ("2001:db8::/32", true)];
        let policy = policy.map(|(net, egress)| (net.parse().unwrap(), egress)).to_vec();
        let text: Vec<String> = routes(gateways, &link, policy)
            .iter()
            .map(|(dst, p)| format!("{dst} {} {}", p.gateway.unwrap(), p.mtu))
            .collect();
        assert_eq!(
            text,
            [
                "0.0.0.0/1 10.244.0.1 1472",
                "10.0.0.0/8 10.244.0.1 0",
                "128.0.0.0/1 10.244.0.1 1472",
                "2001:db8::/32 fd00:244::1 1452"
            ]
        );
        assert!(routes(gateways, &link, Vec::new()).is_empty());
    }
}
