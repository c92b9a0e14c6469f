//! Making and removing a pod's link: all that waits for the kernel, on a thread that may.
//!
//! ```text
//!  node                                   pod
//!  1 pair (peer in the pod) ─────────────▶ eth0
//!  2 alias, names, up, gateway addresses
//!                                         3 up, neighbour of the gateway, addresses, routes
//!  4 routes to the pod
//! ```
//!
//! Each number is one system call with several requests.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use coil_netns::NetNs;
use ipnet::IpNet;

use super::{
    addr::{add_address, add_neighbour},
    host::HostAddresses,
    link::{self, Alias, Link, Mac, Veth, found},
    name::{self, PodIdentity},
    plan::{host_net, pod_routes},
    pod::{PodLink, PodNetError, PodNetwork, RoutePolicy},
    ready,
    route::Path,
    rtnl::RtnlError,
    sysctl,
    wire::Wire,
};
use crate::ipam::{Allocation, AttachmentId};

/// How often making the pair is tried: again, after what was in its way is removed.
const ATTEMPTS: usize = 3;
/// A link with less has no IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;
/// How often a link that is being removed is looked at.
const LOOK: Duration = Duration::from_micros(300);

/// A pod's network that is to be made.
pub(super) struct Connection {
    network: PodNetwork,
    allocation: Allocation,
    pod: PodIdentity,
    policy: RoutePolicy,
    host: HostAddresses,
    mtu: u32,
}

impl Connection {
    pub(super) fn new(
        network: &PodNetwork,
        allocation: Allocation,
        pod: PodIdentity,
        policy: RoutePolicy,
    ) -> Result<Self, PodNetError> {
        let side = network.side();
        // The IPv6 gateway is the veth's own link-local address.
        if let (Some(address), None) = (allocation.ipv4, side.addresses.ipv4) {
            return Err(PodNetError::NoGateway { address: address.into(), family: "IPv4" });
        }
        let network = network.clone();
        Ok(Self { network, allocation, pod, policy, host: side.addresses, mtu: side.mtu })
    }

    /// Makes it, in the namespace of the calling thread and in the pod's.
    pub(super) fn make(&self, ns: &NetNs) -> Result<PodLink, PodNetError> {
        let mut wire = Wire::open()?;
        let mac = Mac::random()?;
        let host = self.pair(&mut wire, ns, mac)?;
        let index = host.index;
        let made = self.furnish(&mut wire, ns, host, mac);
        if made.is_err() {
            // Addresses and routes go with the link, and the pod's side goes with the host's.
            let _ = wire.one(link::delete_link(index));
        }
        made
    }

    fn ifname(&self) -> &str {
        &self.allocation.owner.ifname
    }

    /// Whether the kernel gives such a link IPv6 at all.
    fn has_ipv6(&self) -> bool {
        self.mtu >= IPV6_MIN_MTU && sysctl::has_ipv6()
    }

    /// Makes the pair. What earlier attempts left in its way is removed.
    fn pair(&self, wire: &mut Wire, ns: &NetNs, peer_mac: Mac) -> Result<Link, PodNetError> {
        let owner = &self.allocation.owner;
        let altname = name::of_attachment(owner);
        let calico = self.network.calico_names;
        let mut name = if calico { self.pod.calico_name() } else { name::of_link(owner) };
        let mut attempt = 1;
        loop {
            let veth =
                Veth { name: &name, mac: Mac::random()?, peer: self.ifname(), peer_mac, mtu: self.mtu };
            let [stale, made, named] = wire.three([
                link::get_by_name(&altname),
                link::add_veth(&veth, ns),
                link::get_by_name(&name),
            ])?;
            let (stale, named) = (found(stale)?, found(named)?);
            if let Some(stale) = &stale {
                remove(wire, stale.index)?;
            }
            match made {
                Ok(_) => {
                    let what = || PodNetError::Missing { what: format!("the veth {name} that was made") };
                    return named.ok_or_else(what);
                }
                Err(e) if !e.is_existing() || attempt == ATTEMPTS => return Err(e.into()),
                Err(_) => match named {
                    // An earlier pod of this name, whose DEL has not come yet; or what an agent left that
                    // was killed before it could give the link its alias.
                    Some(other) if other.is_of(owner) => remove(wire, other.index)?,
                    Some(other) if calico => match &other.alias {
                        // Another interface of the same pod, which is in use.
                        Some(alias) if alias.owner.ifname != owner.ifname => name = name::of_link(owner),
                        _ => remove(wire, other.index)?,
                    },
                    Some(_) => name = name::random_name()?,
                    None if stale.is_some() => {}
                    None => {
                        let (path, ifname) = (ns.path().display().to_string(), self.ifname().to_owned());
                        return Err(PodNetError::InterfaceExists { path, ifname });
                    }
                },
            }
            attempt += 1;
        }
    }

    fn furnish(&self, wire: &mut Wire, ns: &NetNs, host: Link, mac: Mac) -> Result<PodLink, PodNetError> {
        let (index, ipv6) = (host.index, self.allocation.ipv6.is_some());
        let pod = PodLink { host, mac, ipv4: self.allocation.ipv4, ipv6: self.allocation.ipv6 };
        host_settings(&pod.host.name, self.has_ipv6(), ipv6)?;
        let alias = Alias { pool: self.allocation.pool.clone(), owner: self.allocation.owner.clone() };
        let names = self.pod.altnames(&alias.owner);
        let mut requests = vec![
            link::describe(index, Some(&alias), self.has_ipv6()),
            link::add_altnames(index, &names),
            link::set_up(index),
        ];
        requests.extend(self.host_addresses(&pod).into_iter().map(|net| add_address(index, net)));
        // Nobody has to ask for the pod, either.
        requests.extend(pod.addresses().into_iter().map(|a| add_neighbour(index, a, mac)));
        wire.change(requests)?;
        ns.run(|| self.furnish_inside(&pod))??;
        ready::wait(wire, index, &[])?;
        // Last: what is sent to the pod finds all of it.
        let path = Path { ifindex: Some(index), ..Path::default() };
        let routes = pod.addresses().into_iter();
        wire.change(routes.map(|a| self.network.routes.add_request(host_net(a), &path)).collect())?;
        Ok(pod)
    }

    /// The addresses of the host's side: what the pod has as its gateway.
    fn host_addresses(&self, pod: &PodLink) -> Vec<IpNet> {
        let mut nets = Vec::new();
        nets.extend(pod.ipv4.and(self.host.ipv4).map(|a| host_net(a.into())));
        if pod.ipv6.is_some() {
            nets.push(link_local_net(pod.host.mac.link_local()));
            nets.extend(self.host.ipv6.map(|a| host_net(a.into())));
        }
        nets
    }

    /// The pod's side, on a thread inside its namespace.
    fn furnish_inside(&self, pod: &PodLink) -> Result<(), PodNetError> {
        let mut wire = Wire::open()?;
        let missing = || PodNetError::Missing { what: format!("the veth {} that was made", self.ifname()) };
        let index = found(wire.one(link::get_by_name(self.ifname())))?.ok_or_else(missing)?.index;
        pod_settings(self.ifname(), self.has_ipv6(), pod.ipv6.is_some())?;
        let mut requests = vec![link::describe(index, None, self.has_ipv6()), link::set_up(index)];
        let gateways = self.network.gateways(pod);
        if let Some(gateway) = gateways.ipv4 {
            requests.push(add_neighbour(index, gateway.into(), pod.host.mac));
        }
        if let Some(gateway) = gateways.ipv6 {
            requests.push(add_address(index, link_local_net(pod.mac.link_local())));
            requests.push(add_neighbour(index, IpAddr::from(gateway), pod.host.mac));
        }
        requests.extend(pod.addresses().into_iter().map(|a| add_address(index, host_net(a))));
        let routes = pod_routes(gateways, index, self.mtu, self.policy.iter().copied());
        // What is on the link comes before what needs it as a gateway.
        let (via, direct): (Vec<_>, Vec<_>) = routes.iter().partition(|(_, path)| path.gateway.is_some());
        let table = self.network.inside_routes();
        requests.extend(direct.into_iter().chain(via).map(|(dst, path)| table.add_request(*dst, path)));
        wire.change(requests)?;
        Ok(ready::wait(&mut wire, index, &pod.addresses())?)
    }
}

/// Removes the link of an attachment; one that is not there is as good as removed.
///
/// The kernel answers only when it has freed the last of a link, tens of milliseconds after the link
/// has gone from every table: this returns as soon as it has gone.
pub(super) fn disconnect(owner: &AttachmentId) -> Result<(), PodNetError> {
    let mut wire = Wire::open()?;
    let names = [name::of_attachment(owner), name::of_link(owner)].map(|name| link::get_by_name(&name));
    let mut links = wire.ask(names.into())?.into_iter().map(found).collect::<Result<Vec<_>, _>>()?;
    let Some(link) = links.iter_mut().find_map(|link| link.take_if(|link| link.is_of(owner))) else {
        return Ok(());
    };
    let (done, removed) = mpsc::channel();
    let mut remover = Wire::open()?;
    // No thread of the runtime's: those may all be here, waiting.
    std::thread::spawn(move || {
        // Nobody listens any more when the link has gone already.
        let _ = done.send(remove(&mut remover, link.index));
    });
    loop {
        match removed.recv_timeout(LOOK) {
            Ok(result) => return Ok(result?),
            Err(RecvTimeoutError::Disconnected) => return Ok(remove(&mut wire, link.index)?),
            Err(RecvTimeoutError::Timeout) => {
                if found(wire.one(link::get_by_index(link.index)))?.is_none() {
                    return Ok(());
                }
            }
        }
    }
}

/// Removes a link; one that is not there is as good as removed.
fn remove(wire: &mut Wire, index: u32) -> Result<(), RtnlError> {
    match wire.one(link::delete_link(index)) {
        Err(e) if !e.is_absent() => Err(e),
        _ => Ok(()),
    }
}

fn link_local_net(address: Ipv6Addr) -> IpNet {
    ipnet::Ipv6Net::new_assert(address, 64).into()
}

/// Before the link is up: what the kernel would do on its own at that moment.
fn host_settings(link: &str, has_ipv6: bool, ipv6: bool) -> Result<(), RtnlError> {
    sysctl::set(&format!("ipv4/conf/{link}/forwarding"), "1")?;
    if has_ipv6 {
        let key = |name: &str| format!("ipv6/conf/{link}/{name}");
        sysctl::set(&key("accept_ra"), "0")?;
        sysctl::set(&key("forwarding"), "1")?;
        if ipv6 {
            sysctl::set(&key("disable_ipv6"), "0")?;
        }
    }
    Ok(())
}

/// See [`host_settings`].
fn pod_settings(link: &str, has_ipv6: bool, ipv6: bool) -> Result<(), RtnlError> {
    if has_ipv6 {
        let key = |name: &str| format!("ipv6/conf/{link}/{name}");
        sysctl::set(&key("accept_ra"), "0")?;
        if ipv6 {
            sysctl::set(&key("disable_ipv6"), "0")?;
        }
    }
    Ok(())
}
