//! What is on the node's own links: where a next hop can be.

use std::{
    cmp::Reverse,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType},
};

use super::{
    route::{FAMILIES, MAIN_TABLE},
    rtnl::{Rtnl, RtnlError},
};

/// The main table, as far as next hops go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    routes: Vec<Known>,
}

/// A route, as far as next hops go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    dst: IpNet,
    /// Of several routes to one destination the kernel takes the one with the lowest.
    metric: u32,
    /// The link of a destination that is on one.
    link: Option<u32>,
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
        let covering = self.routes.iter().filter(|route| route.dst.contains(&address));
        // Of equal ones the first, as the kernel does.
        let best = covering.min_by_key(|route| (Reverse(route.dst.prefix_len()), route.metric));
        best.and_then(|route| route.link)
    }
}

fn parse(route: &RouteMessage) -> Option<Known> {
    // Its link is down: the kernel takes the next one.
    if route.header.flags.contains(RouteFlags::Dead) {
        return None;
    }
    let mut dst = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let (mut link, mut direct, mut metric) = (None, route.header.kind == RouteType::Unicast, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(table) if *table != MAIN_TABLE => return None,
            RouteAttribute::Destination(RouteAddress::Inet(a)) => dst = (*a).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => dst = (*a).into(),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                direct = false;
            }
            _ => {}
        }
    }
    let dst = IpNet::new(dst, route.header.destination_prefix_length).ok()?;
    Some(Known { dst, metric, link: link.filter(|_| direct) })
}

#[cfg(test)]
impl Reach {
    /// Of routes in words: `172.18.0.0/24 2` is on link 2, `0.0.0.0/0 - 50` is behind a router, with metric 50.
    pub(crate) fn of(lines: &[&str]) -> Self {
        let parse = |line: &&str| {
            let mut words = line.split(' ');
            let dst = words.next().unwrap().parse().unwrap();
            let link = words.next().unwrap().parse().ok();
            Known { dst, metric: words.next().map_or(0, |metric| metric.parse().unwrap()), link }
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

    #[test]
    fn of_equal_prefixes_the_lowest_metric_decides() {
        let routes =
            ["172.18.0.0/24 2 600", "172.18.0.0/24 - 100", "172.18.0.0/24 4 100", "fd00:18::/64 - 2048"];
        let reach = Reach::of(&[&routes[..], &["fd00:18::/64 3 1024"]].concat());
        let link = |address: &str| reach.link_of(address.parse().unwrap());
        assert_eq!(link("172.18.0.9"), None, "the first of those with the lowest");
        assert_eq!(link("fd00:18::9"), Some(3));
        assert_eq!(Reach::of(&routes[..1]).link_of("172.18.0.9".parse().unwrap()), Some(2));
    }
}
