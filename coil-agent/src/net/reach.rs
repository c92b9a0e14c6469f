//! What is on the node's own links: where a next hop can be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};

use super::{
    route::{FAMILIES, MAIN_TABLE},
    rtnl::{Rtnl, RtnlError},
};

/// The main table, as far as next hops go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Destinations; with the link of those that are on one.
    routes: Vec<(IpNet, Option<u32>)>,
}

impl Reach {
    /// Reads the main table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn read(rtnl: &Rtnl) -> Result<Self, RtnlError> {
        let mut routes = Vec::new();
        for family in FAMILIES {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.attributes.push(RouteAttribute::Table(MAIN_TABLE));
            let found = match rtnl.dump(RouteNetlinkMessage::GetRoute(filter), "the routes").await {
                Err(e) if e.is_absent() => continue,
                other => other?,
            };
            routes.extend(found.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) if route.header.address_family == family => {
                    parse(&route)
                }
                _ => None,
            }));
        }
        Ok(Self { routes })
    }

    /// The link that an address is on; none when it is behind a router, or nowhere.
    #[must_use]
    pub fn link_of(&self, address: IpAddr) -> Option<u32> {
        let covering = self.routes.iter().filter(|(dst, _)| dst.contains(&address));
        covering.max_by_key(|(dst, _)| dst.prefix_len()).and_then(|(_, link)| *link)
    }
}

fn parse(route: &RouteMessage) -> Option<(IpNet, Option<u32>)> {
    let mut dst = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let (mut link, mut direct) = (None, route.header.kind == RouteType::Unicast);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(table) if *table != MAIN_TABLE => return None,
            RouteAttribute::Destination(RouteAddress::Inet(a)) => dst = (*a).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => dst = (*a).into(),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                direct = false;
            }
            _ => {}
        }
    }
    let dst = IpNet::new(dst, route.header.destination_prefix_length).ok()?;
    Some((dst, link.filter(|_| direct)))
}

#[cfg(test)]
impl Reach {
    /// Of routes in words: `172.18.0.0/24 2` is on link 2, `0.0.0.0/0 -` is behind a router.
    pub(crate) fn of(lines: &[&str]) -> Self {
        let parse = |line: &&str| {
            let (dst, link) = line.split_once(' ').unwrap();
            (dst.parse().unwrap(), link.parse().ok())
        };
        Self { routes: lines.iter().map(parse).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let reach = Reach::of(&["0.0.0.0/0 -", "172.18.0.0/24 2", "172.18.0.128/25 -", "fd00:18::/64 3"]);
        let link = |address: &str| reach.link_of(address.parse().unwrap());
        assert_eq!(link("172.18.0.9"), Some(2));
        assert_eq!(link("172.18.0.200"), None, "that part is behind a router");
        assert_eq!(link("192.0.2.1"), None, "only the default route leads there");
        assert_eq!((link("fd00:18::9"), link("fd00:19::9")), (Some(3), None));
    }
}
