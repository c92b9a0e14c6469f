//! One pod's network: made in one go or not at all, checked, removed. How it is made is in `connect`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use coil_netns::{NetNs, NetNsError};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    connect::{Connection, disconnect},
    host::HostAddresses,
    link::{Link, Mac},
    name::{self, PodIdentity},
    plan::{PodGateways, host_net, pod_routes},
    route::{Changes, MAIN_TABLE, Owned, Path},
    rtnl::{Rtnl, RtnlError},
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

/// How pods are connected on this node. Clones share what follows the node.
#[derive(Debug, Clone)]
pub struct PodNetwork {
    pub(super) rtnl: Rtnl,
    pub(super) routes: Owned,
    pub(super) calico_names: bool,
    side: Arc<Mutex<HostSide>>,
}

/// The node's side of new pods' links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSide {
    /// The pods' gateway.
    pub addresses: HostAddresses,
    /// The MTU of the pods' links.
    pub mtu: u32,
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

pub(super) fn addresses(ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Vec<IpAddr> {
    ipv4.map(IpAddr::from).into_iter().chain(ipv6.map(IpAddr::from)).collect()
}

/// What of the pod's destinations is egress; see [`pod_routes`].
pub type RoutePolicy = Vec<(IpNet, bool)>;

impl PodNetwork {
    /// `routes` is where the routes to pods are; `host` the pods' gateway; `mtu` that of the pods' links.
    #[must_use]
    pub fn new(rtnl: Rtnl, routes: Owned, host: HostAddresses, mtu: u32) -> Self {
        let side = Arc::new(Mutex::new(HostSide { addresses: host, mtu }));
        Self { rtnl, routes, calico_names: false, side }
    }

    /// Names the links of new pods as Calico does, when `on`.
    #[must_use]
    pub fn with_calico_names(self, on: bool) -> Self {
        Self { calico_names: on, ..self }
    }

    /// The node's side of new pods' links.
    #[must_use]
    pub fn side(&self) -> HostSide {
        *self.side.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a changed node for the pods to come. True when it differs.
    pub fn follow(&self, side: HostSide) -> bool {
        let before = std::mem::replace(&mut *self.side.lock().unwrap_or_else(PoisonError::into_inner), side);
        before != side
    }

    /// The MTU of new pods' links.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.side().mtu
    }

    /// The gateways of a pod with these addresses and this host side.
    #[must_use]
    pub fn gateways(&self, pod: &PodLink) -> PodGateways {
        let ipv4 = pod.ipv4.and(self.side().addresses.ipv4);
        PodGateways { ipv4, ipv6: pod.ipv6.map(|_| pod.host.mac.link_local()) }
    }

    /// Connects a pod. When anything fails, nothing is left behind.
    ///
    /// # Errors
    /// When the namespace is no new one, or the kernel refuses a step.
    pub async fn setup(
        &self,
        ns: &NetNs,
        allocation: &Allocation,
        pod: &PodIdentity,
        policy: RoutePolicy,
    ) -> Result<PodLink, PodNetError> {
        let connection = Connection::new(self, allocation.clone(), pod.clone(), policy)?;
        let ns = ns.try_clone()?;
        blocking(move || connection.make(&ns)).await
    }

    pub(super) fn inside_routes(&self) -> Owned {
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
        let routes = pod_routes(self.gateways(pod), inner.index, inner.mtu, policy);
        Ok(self.inside_routes().sync(&inside, &routes).await?)
    }

    /// The table of the routes to pods.
    #[must_use]
    pub const fn pod_table(&self) -> u32 {
        self.routes.table
    }

    /// Sets the routes to these pods that are missing or lead elsewhere; returns how many. Pods whose links are
    /// gone are left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or refuses.
    pub async fn restore_routes(&self, pods: &[PodLink]) -> Result<usize, RtnlError> {
        let found = self.routes.list(&self.rtnl).await?;
        let mut restored = 0;
        for pod in pods {
            let path = Path { ifindex: Some(pod.host.index), ..Path::default() };
            for address in pod.addresses() {
                let dst = host_net(address);
                if !found.contains(&(dst, path.clone())) {
                    match self.routes.put(&self.rtnl, dst, &path).await {
                        Err(e) if e.is_absent() => {}
                        done => {
                            done?;
                            restored += 1;
                        }
                    }
                }
            }
        }
        Ok(restored)
    }

    /// Disconnects a pod; also when its namespace, or everything, is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(&self, owner: &AttachmentId) -> Result<(), PodNetError> {
        let owner = owner.clone();
        blocking(move || disconnect(&owner)).await
    }

    async fn find(&self, owner: &AttachmentId) -> Result<Option<Link>, RtnlError> {
        self.rtnl.link_by_name(&name::of_attachment(owner)).await
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
        let routes = self.routes.list_on(&self.rtnl, host.index).await?;
        for address in addresses(allocation.ipv4, allocation.ipv6) {
            if !found.contains(&(inner.index, host_net(address))) {
                return missing(format!("address {address} on {} of the pod", owner.ifname));
            }
            if !routes.iter().any(|(dst, p)| *dst == host_net(address) && p.ifindex == Some(host.index)) {
                return missing(format!("the route to {address} in table {}", self.routes.table));
            }
        }
        let present = self.inside_routes().list_on(&inside, inner.index).await?;
        let via = |any: IpNet| present.iter().find(|(dst, _)| *dst == any).and_then(|(_, path)| path.gateway);
        // The node's address may have changed since: the pod keeps the gateway that it was made with.
        let (default_v4, default_v6) = (IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default()));
        let mut wanted = Vec::new();
        if allocation.ipv4.is_some() {
            wanted.extend([Some(default_v4), via(default_v4).map(host_net)]);
        }
        wanted.push(allocation.ipv6.map(|_| default_v6));
        // Destinations of an Egress change while the pod runs; these do not.
        for dst in wanted.into_iter().flatten() {
            if !present.iter().any(|(found, _)| *found == dst) {
                return missing(format!("the route to {dst} in the pod"));
            }
        }
        Ok(())
    }
}

/// Runs something that waits for the kernel on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodNetError> + Send + 'static,
) -> Result<T, PodNetError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}
