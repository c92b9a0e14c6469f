//! Routes: their messages, and making a table hold exactly the wanted ones.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType},
};

use super::{
    rtnl::{Mode, Rtnl, RtnlError},
    wire::Request,
};

/// Both address families, as the kernel numbers them.
pub(super) const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// The kernel's main routing table.
pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// The family of an address.
pub(super) fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// A table's routes of one protocol: who made them, and where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// The routing table.
    pub table: u32,
    /// The route protocol that marks our own routes.
    pub protocol: u8,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path {
    /// Outgoing link.
    pub ifindex: Option<u32>,
    /// Next hop; without one the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// MTU of the path, 0 for the link's.
    pub mtu: u32,
    /// TCP MSS to advertise, 0 for the kernel's choice.
    pub advmss: u32,
}

impl Path {
    /// Whether a route of the kernel is this one. Without a link, it is whichever the kernel found
    /// for the gateway.
    fn is_met_by(&self, found: &Self) -> bool {
        self.gateway == found.gateway
            && (self.ifindex.is_none() || self.ifindex == found.ifindex)
            && self.mtu == found.mtu
            && self.advmss == found.advmss
    }
}

/// Destinations and where they lead.
pub type Routes = BTreeMap<IpNet, Path>;

/// What a sync did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// Routes added or replaced.
    pub set: usize,
    /// Routes removed.
    pub removed: usize,
}

impl Owned {
    fn message(self, dst: IpNet, path: &Path) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(dst.addr());
        message.header.destination_prefix_length = dst.prefix_len();
        message.header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.header.protocol = self.protocol.into();
        message.header.kind = RouteType::Unicast;
        message.header.scope = if path.gateway.is_some() || dst.addr().is_ipv6() {
            RouteScope::Universe
        } else {
            RouteScope::Link
        };
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.table));
        attributes.push(RouteAttribute::Destination(dst.network().into()));
        attributes.extend(path.ifindex.map(RouteAttribute::Oif));
        attributes.extend(path.gateway.map(|g| RouteAttribute::Gateway(g.into())));
        let metrics =
            [(path.mtu, RouteMetric::Mtu as fn(u32) -> RouteMetric), (path.advmss, RouteMetric::Advmss)];
        let metrics: Vec<_> = metrics.into_iter().filter(|(v, _)| *v != 0).map(|(v, make)| make(v)).collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }

    /// The request that adds a route, which must not exist.
    pub(super) fn add_request(self, dst: IpNet, path: &Path) -> Request {
        let message = RouteNetlinkMessage::NewRoute(self.message(dst, path));
        Request::change(message, Mode::Create, format!("set the route to {dst} in table {}", self.table))
    }

    async fn set(self, rtnl: &Rtnl, dst: IpNet, path: &Path, mode: Mode) -> Result<(), RtnlError> {
        let message = RouteNetlinkMessage::NewRoute(self.message(dst, path));
        rtnl.change(message, mode, || format!("set the route to {dst} in table {}", self.table)).await
    }

    /// Adds a route. It must not exist.
    ///
    /// # Errors
    /// When the kernel refuses, also because somebody else has a route to the same destination.
    pub async fn add(self, rtnl: &Rtnl, dst: IpNet, path: &Path) -> Result<(), RtnlError> {
        self.set(rtnl, dst, path, Mode::Create).await
    }

    /// Sets a route, in place of whatever leads there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn put(self, rtnl: &Rtnl, dst: IpNet, path: &Path) -> Result<(), RtnlError> {
        self.set(rtnl, dst, path, Mode::Replace).await
    }

    /// Removes a route; one that is not there is as good as removed.
    ///
    /// # Errors
    /// When the kernel refuses; the message names the route.
    pub async fn remove(self, rtnl: &Rtnl, dst: IpNet, path: &Path) -> Result<(), RtnlError> {
        let message = RouteNetlinkMessage::DelRoute(self.message(dst, path));
        let doing = || format!("remove the route to {dst} from table {}", self.table);
        match rtnl.change(message, Mode::Change, doing).await {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }

    /// Our routes in the table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn list(self, rtnl: &Rtnl) -> Result<Vec<(IpNet, Path)>, RtnlError> {
        self.list_where(rtnl, None).await
    }

    /// Those that leave by one link: of a thousand routes, the kernel answers with these alone.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn list_on(self, rtnl: &Rtnl, ifindex: u32) -> Result<Vec<(IpNet, Path)>, RtnlError> {
        self.list_where(rtnl, Some(ifindex)).await
    }

    async fn list_where(self, rtnl: &Rtnl, ifindex: Option<u32>) -> Result<Vec<(IpNet, Path)>, RtnlError> {
        let mut routes = Vec::new();
        for family in FAMILIES {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.attributes.push(RouteAttribute::Table(self.table));
            filter.attributes.extend(ifindex.map(RouteAttribute::Oif));
            let what = format!("the routes in table {}", self.table);
            let found = match rtnl.dump(RouteNetlinkMessage::GetRoute(filter), &what).await {
                // A table without routes does not exist.
                Err(e) if e.is_absent() => continue,
                other => other?,
            };
            routes.extend(found.into_iter().filter_map(|message| match message {
                // Without IPv6 in it the kernel answers with the routes of all other families.
                RouteNetlinkMessage::NewRoute(route) if route.header.address_family == family => {
                    self.parse(&route)
                }
                _ => None,
            }));
        }
        Ok(routes)
    }

    fn parse(self, route: &RouteMessage) -> Option<(IpNet, Path)> {
        let mut table = u32::from(route.header.table);
        let mut dst = match route.header.address_family {
            AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            _ => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let mut path = Path::default();
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(t) => table = *t,
                RouteAttribute::Destination(a) => dst = address(a)?,
                RouteAttribute::Oif(index) => path.ifindex = Some(*index),
                RouteAttribute::Gateway(a) => path.gateway = address(a),
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(mtu) => path.mtu = *mtu,
                            RouteMetric::Advmss(mss) => path.advmss = *mss,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        let ours = table == self.table
            && u8::from(route.header.protocol) == self.protocol
            // What refuses packets leads nowhere, and is somebody else's matter.
            && route.header.kind == RouteType::Unicast;
        let dst = IpNet::new(dst, route.header.destination_prefix_length).ok()?;
        ours.then_some((dst, path))
    }

    /// Makes our routes in the table exactly the wanted ones. Others' routes are left alone.
    ///
    /// # Errors
    /// The first route that could not be set or removed; the others were tried.
    pub async fn sync(self, rtnl: &Rtnl, wanted: &Routes) -> Result<Changes, RtnlError> {
        let mut found: BTreeMap<IpNet, Vec<Path>> = BTreeMap::new();
        for (dst, path) in self.list(rtnl).await? {
            found.entry(dst).or_default().push(path);
        }
        let mut changes = Changes::default();
        let mut first = Ok(());
        // What is new comes first: a destination is never without a route in between. And what
        // is on the link comes before what needs it as a gateway.
        let (via, direct): (Vec<_>, Vec<_>) = wanted.iter().partition(|(_, path)| path.gateway.is_some());
        for (dst, path) in direct.into_iter().chain(via) {
            let ours = found.entry(*dst).or_default();
            let mode = match ours.iter().position(|p| path.is_met_by(p)) {
                Some(same) => {
                    ours.swap_remove(same);
                    continue;
                }
                None if ours.is_empty() => Mode::Create,
                None => Mode::Replace,
            };
            match self.set(rtnl, *dst, path, mode).await {
                Ok(()) => changes.set += 1,
                Err(e) => first = first.and(Err(e)),
            }
            if mode == Mode::Replace {
                // The kernel replaces the first one.
                ours.remove(0);
            }
        }
        let rest = found.iter().flat_map(|(dst, paths)| paths.iter().map(move |path| (dst, path)));
        let (via, direct): (Vec<_>, Vec<_>) = rest.partition(|(_, path)| path.gateway.is_some());
        for (dst, path) in via.into_iter().chain(direct) {
            match self.remove(rtnl, *dst, path).await {
                Ok(()) => changes.removed += 1,
                Err(e) => first = first.and(Err(e)),
            }
        }
        first.map(|()| changes)
    }
}

/// An address as routes have it; none for what is no IP address.
pub(crate) fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}
