//! One pod's network: made in one go or not at all, checked, removed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use coil_netns::{NetNs, NetNsError};
use ipnet::IpNet;

use super::{
    host::HostAddresses,
    link::{Alias, Link, Mac, Veth, random},
    plan::{PodGateways, host_net, pod_routes},
    route::{Changes, MAIN_TABLE, Owned, Path},
    rtnl::{Rtnl, RtnlError},
    sysctl,
};
use crate::ipam::{Allocation, AttachmentId};

/// The pod's network could not be made, checked or changed.
#[derive(Debug, thiserror::Error)]
pub enum PodNetError {
    /// A change was refused.
    #[error(transparent)]
    Rtnl(#[from] RtnlError),
    /// The pod's namespace cannot be used.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// The pod has such an interface.
    #[error("{path} has an interface {ifname} already: it is not a new pod")]
    InterfaceExists {
        /// Path of the namespace.
        path: String,
        /// Name of the interface.
        ifname: String,
    },
    /// A family without a gateway.
    #[error(
        "address {address} needs a gateway: give the Node an {family} InternalIP, or use a pool without {family}"
    )]
    NoGateway {
        /// The pod's address.
        address: IpAddr,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// Something that was made is not there any more.
    #[error("{what} is missing")]
    Missing {
        /// What it is.
        what: String,
    },
}

/// How pods are connected on this node.
#[derive(Debug, Clone)]
pub struct PodNetwork {
    rtnl: Rtnl,
    routes: Owned,
    host: HostAddresses,
    mtu: u32,
}

/// A pod's network as it was made or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLink {
    /// The veth's host side.
    pub host: Link,
    /// Hardware address of the pod's side.
    pub mac: Mac,
    /// The pod's addresses.
    pub ipv4: Option<Ipv4Addr>,
    /// See `ipv4`.
    pub ipv6: Option<Ipv6Addr>,
}

impl PodLink {
    /// All addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        addresses(self.ipv4, self.ipv6)
    }
}

fn addresses(ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Vec<IpAddr> {
    ipv4.map(IpAddr::from).into_iter().chain(ipv6.map(IpAddr::from)).collect()
}

/// What of the pod's destinations is egress; see [`pod_routes`].
pub type RoutePolicy = Vec<(IpNet, bool)>;

impl PodNetwork {
    /// `routes` is where the routes to pods are; `host` the pods' gateway; `mtu` that of the pods' links.
    #[must_use]
    pub fn new(rtnl: Rtnl, routes: Owned, host: HostAddresses, mtu: u32) -> Self {
        Self { rtnl, routes, host, mtu }
    }

    /// The MTU of the pods' links.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The gateways of a pod with these addresses and this host side.
    #[must_use]
    pub fn gateways(&self, pod: &PodLink) -> PodGateways {
        PodGateways { ipv4: pod.ipv4.and(self.host.ipv4), ipv6: pod.ipv6.map(|_| pod.host.mac.link_local()) }
    }

    /// Connects a pod. When anything fails, nothing is left behind. `altnames` are further names for the host
    /// side, by which the pod is known again after a restart.
    ///
    /// # Errors
    /// When the namespace is no new one, or the kernel refuses a step.
    pub async fn setup(
        &self,
        ns: &NetNs,
        allocation: &Allocation,
        altnames: &[String],
        policy: RoutePolicy,
    ) -> Result<PodLink, PodNetError> {
        let ifname = &allocation.owner.ifname;
        for address in addresses(allocation.ipv4, allocation.ipv6) {
            // The IPv6 gateway is the veth's own link-local address.
            if address.is_ipv4() && self.host.ipv4.is_none() {
                return Err(PodNetError::NoGateway { address, family: "IPv4" });
            }
        }
        let inside = Rtnl::open_in(ns)??;
        // A veth of an earlier attempt that did not come to its end.
        if let Some(stale) = self.find(&allocation.owner).await? {
            self.rtnl.delete_link(stale.index).await?;
        }
        if inside.link_by_name(ifname).await?.is_some() {
            let path = ns.path().display().to_string();
            return Err(PodNetError::InterfaceExists { path, ifname: ifname.clone() });
        }

        let name = format!("veth{:08x}", u32::from_ne_bytes(random()?));
        let (mac, peer_mac) = (Mac::random()?, Mac::random()?);
        let veth = Veth { name: &name, mac, peer: ifname, peer_mac, mtu: self.mtu };
        self.rtnl.add_veth(&veth, ns).await?;
        let made = self.connect(&name, ns, &inside, peer_mac, allocation, altnames, policy).await;
        if made.is_err() {
            // Addresses and routes go with the link, and the pod's side goes with the host's.
            if let Ok(Some(link)) = self.rtnl.link_by_name(&name).await {
                let _ = self.rtnl.delete_link(link.index).await;
            }
        }
        made
    }

    #[expect(clippy::too_many_arguments, reason = "the second half of setup, apart only for its undo")]
    async fn connect(
        &self,
        name: &str,
        ns: &NetNs,
        inside: &Rtnl,
        mac: Mac,
        allocation: &Allocation,
        altnames: &[String],
        policy: RoutePolicy,
    ) -> Result<PodLink, PodNetError> {
        let alias = Alias { pool: allocation.pool.clone(), owner: allocation.owner.clone() };
        let missing = |what: &str| PodNetError::Missing { what: format!("the veth {what} that was made") };
        let host = self.rtnl.link_by_name(name).await?.ok_or_else(|| missing(name))?;
        let ifname = alias.owner.ifname.as_str();
        let inner = inside.link_by_name(ifname).await?.ok_or_else(|| missing(ifname))?;
        let (ipv4, ipv6) = (allocation.ipv4, allocation.ipv6);
        let pod = PodLink { host, mac, ipv4, ipv6 };
        let index = pod.host.index;

        host_settings(name, ipv6.is_some())?;
        self.rtnl.set_up(index, Some(&alias)).await?;
        for altname in altnames {
            self.rtnl.add_altname(index, altname).await?;
        }
        ns.run(|| pod_settings(ifname, ipv6.is_some()))??;
        inside.set_up(inner.index, None).await?;

        let gateways = self.gateways(&pod);
        if let Some(address) = gateways.ipv4 {
            self.rtnl.add_address(index, host_net(address.into())).await?;
            inside.add_neighbour(inner.index, address.into(), pod.host.mac).await?;
        }
        if let Some(address) = gateways.ipv6 {
            self.rtnl.add_address(index, link_local_net(address)).await?;
            if let Some(host) = self.host.ipv6 {
                self.rtnl.add_address(index, host_net(host.into())).await?;
            }
            inside.add_address(inner.index, link_local_net(mac.link_local())).await?;
            inside.add_neighbour(inner.index, address.into(), pod.host.mac).await?;
        }
        for address in pod.addresses() {
            inside.add_address(inner.index, host_net(address)).await?;
        }
        let routes = pod_routes(gateways, inner.index, self.mtu, policy);
        self.inside_routes().sync(inside, &routes).await?;
        // Last: what is sent to the pod finds all of it.
        for address in pod.addresses() {
            self.routes
                .add(&self.rtnl, host_net(address), &Path { ifindex: Some(index), ..Path::default() })
                .await?;
        }
        Ok(pod)
    }

    fn inside_routes(&self) -> Owned {
        Owned { table: MAIN_TABLE, protocol: self.routes.protocol }
    }

    /// Changes a running pod's routes to another policy.
    ///
    /// # Errors
    /// When the pod's namespace or link is gone, or the kernel refuses.
    pub async fn update_routes(
        &self,
        ns: &NetNs,
        ifname: &str,
        pod: &PodLink,
        policy: RoutePolicy,
    ) -> Result<Changes, PodNetError> {
        let inside = Rtnl::open_in(ns)??;
        let what = || PodNetError::Missing { what: format!("interface {ifname} in {}", ns.path().display()) };
        let inner = inside.link_by_name(ifname).await?.ok_or_else(what)?;
        let routes = pod_routes(self.gateways(pod), inner.index, self.mtu, policy);
        Ok(self.inside_routes().sync(&inside, &routes).await?)
    }

    /// Disconnects a pod; also when its namespace, or everything, is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(&self, owner: &AttachmentId) -> Result<(), PodNetError> {
        if let Some(link) = self.find(owner).await? {
            self.rtnl.delete_link(link.index).await?;
        }
        Ok(())
    }

    async fn find(&self, owner: &AttachmentId) -> Result<Option<Link>, RtnlError> {
        let links = self.rtnl.links().await?;
        Ok(links.into_iter().find(|link| link.alias.as_ref().is_some_and(|a| a.owner == *owner)))
    }

    /// Finds the first thing that is missing of what [`PodNetwork::setup`] made.
    ///
    /// # Errors
    /// [`PodNetError::Missing`] says what it is.
    pub async fn check(&self, ns: &NetNs, allocation: &Allocation) -> Result<(), PodNetError> {
        let owner = &allocation.owner;
        let missing = |what: String| Err(PodNetError::Missing { what });
        let Some(host) = self.find(owner).await? else {
            return missing(format!("the veth with the alias of {owner}"));
        };
        let inside = Rtnl::open_in(ns)??;
        let Some(inner) = inside.link_by_name(&owner.ifname).await? else {
            return missing(format!("interface {} in {}", owner.ifname, ns.path().display()));
        };
        let found = inside.addresses().await?;
        let routes = self.routes.list(&self.rtnl).await?;
        for address in addresses(allocation.ipv4, allocation.ipv6) {
            if !found.contains(&(inner.index, host_net(address))) {
                return missing(format!("address {address} on {} of the pod", owner.ifname));
            }
            if !routes.iter().any(|(dst, p)| *dst == host_net(address) && p.ifindex == Some(host.index)) {
                return missing(format!("the route to {address} in table {}", self.routes.table));
            }
        }
        let pod = PodLink { host, mac: inner.mac, ipv4: allocation.ipv4, ipv6: allocation.ipv6 };
        let present = self.inside_routes().list(&inside).await?;
        // Destinations of an Egress change while the pod runs; these do not.
        for dst in pod_routes(self.gateways(&pod), inner.index, self.mtu, []).into_keys() {
            if !present.iter().any(|(found, _)| *found == dst) {
                return missing(format!("the route to {dst} in the pod"));
            }
        }
        Ok(())
    }
}

fn link_local_net(address: Ipv6Addr) -> IpNet {
    ipnet::Ipv6Net::new_assert(address, 64).into()
}

/// Before the link is up: what the kernel would do on its own at that moment.
fn host_settings(link: &str, ipv6: bool) -> Result<(), RtnlError> {
    sysctl::set(&format!("ipv4/conf/{link}/forwarding"), "1")?;
    if sysctl::has_ipv6() {
        let key = |name: &str| format!("ipv6/conf/{link}/{name}");
        // The link-local address is given, not made with a wait for duplicates.
        sysctl::set_if_there(&key("addr_gen_mode"), "1")?;
        sysctl::set(&key("accept_ra"), "0")?;
        sysctl::set(&key("forwarding"), "1")?;
        if ipv6 {
            sysctl::set(&key("disable_ipv6"), "0")?;
        }
    }
    Ok(())
}

/// See [`host_settings`].
fn pod_settings(link: &str, ipv6: bool) -> Result<(), RtnlError> {
    if sysctl::has_ipv6() {
        let key = |name: &str| format!("ipv6/conf/{link}/{name}");
        sysctl::set_if_there(&key("addr_gen_mode"), "1")?;
        sysctl::set(&key("accept_ra"), "0")?;
        if ipv6 {
            sysctl::set(&key("disable_ipv6"), "0")?;
        }
    }
    Ok(())
}
