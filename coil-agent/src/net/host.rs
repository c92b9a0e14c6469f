//! The node's own network: forwarding, the rule to the pods' routes, what the node's links tell.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{
    route::{FAMILIES, address},
    rtnl::{Mode, Rtnl, RtnlError},
    sysctl,
};

/// MTU when no link tells one.
const DEFAULT_MTU: u32 = 1500;

/// The node's addresses that pods see as their gateway, one per family: its InternalIPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostAddresses {
    /// The IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

impl HostAddresses {
    /// The first address of each family.
    #[must_use]
    pub fn of(addresses: &[IpAddr]) -> Self {
        let mut host = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(a) => host.ipv4 = host.ipv4.or(Some(*a)),
                IpAddr::V6(a) => host.ipv6 = host.ipv6.or(Some(*a)),
            }
        }
        host
    }
}

/// Lets the node forward, and looks up `table` for every packet, with `priority`. Returns how many rules were missing.
///
/// # Errors
/// When a setting or a rule cannot be written.
pub async fn prepare(rtnl: &Rtnl, table: u32, priority: u32) -> Result<usize, RtnlError> {
    forward()?;
    let mut added = 0;
    for family in FAMILIES {
        if family == AddressFamily::Inet6 && !sysctl::has_ipv6() {
            continue;
        }
        added += usize::from(add_rule(rtnl, family, table, priority).await?);
    }
    Ok(added)
}

/// Lets the node forward.
///
/// # Errors
/// When a setting cannot be written.
pub fn forward() -> Result<(), RtnlError> {
    sysctl::set("ipv4/ip_forward", "1")?;
    if sysctl::has_ipv6() {
        sysctl::set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

async fn add_rule(rtnl: &Rtnl, family: AddressFamily, table: u32, priority: u32) -> Result<bool, RtnlError> {
    let mut filter = RuleMessage::default();
    filter.header.family = family;
    let found = rtnl.dump(RouteNetlinkMessage::GetRule(filter.clone()), "the routing rules").await?;
    let there = found.iter().any(|message| match message {
        RouteNetlinkMessage::NewRule(rule) => {
            let mut its = (u32::from(rule.header.table), 0);
            for attribute in &rule.attributes {
                match attribute {
                    RuleAttribute::Table(t) => its.0 = *t,
                    RuleAttribute::Priority(p) => its.1 = *p,
                    _ => {}
                }
            }
            its == (table, priority) && rule.header.src_len == 0 && rule.header.dst_len == 0
        }
        _ => false,
    });
    if there {
        return Ok(false);
    }
    let mut rule = filter;
    rule.header.action = RuleAction::ToTable;
    rule.header.table = u8::try_from(table).unwrap_or_default();
    rule.attributes = vec![RuleAttribute::Table(table), RuleAttribute::Priority(priority)];
    let doing = || format!("add the routing rule {priority} to table {table}");
    rtnl.change(RouteNetlinkMessage::NewRule(rule), Mode::Create, doing).await.map(|()| true)
}

/// Links with a default route in the main table, of either family.
async fn default_links(rtnl: &Rtnl) -> Result<BTreeSet<u32>, RtnlError> {
    links_towards(rtnl, &|route| route.header.destination_prefix_length == 0).await
}

/// The links of those routes of the main table that are wanted.
async fn links_towards(
    rtnl: &Rtnl,
    wanted: &(dyn Fn(&RouteMessage) -> bool + Sync),
) -> Result<BTreeSet<u32>, RtnlError> {
    let mut links = BTreeSet::new();
    for family in FAMILIES {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.attributes.push(RouteAttribute::Table(super::route::MAIN_TABLE));
        for message in rtnl.dump(RouteNetlinkMessage::GetRoute(filter), "the routes").await? {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
            if route.header.kind != RouteType::Unicast || !wanted(&route) {
                continue;
            }
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => drop(links.insert(*index)),
                    RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|h| h.interface_index)),
                    _ => {}
                }
            }
        }
    }
    Ok(links)
}

/// The MTU for pods: that of the links towards the default route, else the smallest of the
/// physical links.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn mtu(rtnl: &Rtnl) -> Result<u32, RtnlError> {
    let towards_default = default_links(rtnl).await?;
    let links = rtnl.links().await?;
    let lowest = |wanted: &dyn Fn(&super::link::Link) -> bool| {
        links.iter().filter(|link| link.name != "lo" && wanted(link)).map(|link| link.mtu).min()
    };
    Ok(lowest(&|link| towards_default.contains(&link.index))
        .or_else(|| lowest(&|link| link.physical))
        .unwrap_or(DEFAULT_MTU))
}

/// Where a route leads; none for a default route.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(to) => address(to),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

/// The links to other nodes and the world: those with one of the node's addresses, with a default route, or with a route
/// to other nodes' pods, whose addresses are of `pools`. Never a pod's link.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn uplinks(rtnl: &Rtnl, node: &[IpAddr], pools: &[IpNet]) -> Result<BTreeSet<u32>, RtnlError> {
    let towards = |route: &RouteMessage| match destination(route) {
        None => true,
        Some(net) => pools.iter().any(|pool| pool.contains(&net) || net.contains(pool)),
    };
    let mut uplinks = links_towards(rtnl, &towards).await?;
    uplinks.extend(rtnl.addresses().await?.iter().filter(|(_, a)| node.contains(&a.addr())).map(|(i, _)| *i));
    for link in rtnl.links().await? {
        // The node's addresses stand on the pods' links too, as their gateway.
        if link.alias.is_some() || link.name == "lo" {
            uplinks.remove(&link.index);
        }
    }
    Ok(uplinks)
}

/// All addresses of this node that others can know: not those of loopback and link-local ranges.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn own_addresses(rtnl: &Rtnl) -> Result<Vec<IpAddr>, RtnlError> {
    let mut own: Vec<IpAddr> = rtnl.addresses().await?.into_iter().map(|(_, net)| net.addr()).collect();
    own.retain(|address| match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    });
    own.sort_unstable();
    own.dedup();
    Ok(own)
}
