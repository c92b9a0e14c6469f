//! Destinations of a client that lead nowhere while no tunnel leads there: a route that refuses packets stands behind each
//! tunnel's own. And destinations that a table passes on to the next rule.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use super::plan::TABLES;
use crate::net::{Rtnl, RtnlError, rtnl::Mode};

/// Behind every route that leads somewhere, which have metric 0, or 1024 in IPv6.
const METRIC: u32 = 1 << 30;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is refused.
    Closed,
    /// The next rule decides.
    Passed,
}

impl Fate {
    const fn kind(self) -> RouteType {
        match self {
            Self::Closed => RouteType::Unreachable,
            Self::Passed => RouteType::Throw,
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::Closed => "close the way to",
            Self::Passed => "pass on what is for",
        }
    }
}

/// Adds those that are missing.
///
/// # Errors
/// When the kernel refuses; the message names the destination.
pub(super) async fn close(
    rtnl: &Rtnl,
    protocol: u8,
    fate: Fate,
    wanted: &BTreeSet<(u32, IpNet)>,
) -> Result<(), RtnlError> {
    let found = list(rtnl, protocol, fate).await?;
    for (table, net) in wanted.difference(&found) {
        let doing = || format!("{} {net} in table {table}", fate.verb());
        let message = RouteNetlinkMessage::NewRoute(message(*table, *net, protocol, fate));
        // In the place of what has another fate, which no second route of this metric could stand beside.
        rtnl.change(message, Mode::Replace, doing).await?;
    }
    Ok(())
}

/// Removes all others.
///
/// # Errors
/// When the kernel refuses; the message names the destination.
pub(super) async fn open_others(
    rtnl: &Rtnl,
    protocol: u8,
    fate: Fate,
    wanted: &BTreeSet<(u32, IpNet)>,
) -> Result<(), RtnlError> {
    for (table, net) in list(rtnl, protocol, fate).await?.difference(wanted) {
        let doing = || format!("no longer {} {net} in table {table}", fate.verb());
        let message = RouteNetlinkMessage::DelRoute(message(*table, *net, protocol, fate));
        match rtnl.change(message, Mode::Change, doing).await {
            Err(e) if !e.is_absent() => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Those that are there.
///
/// # Errors
/// When the kernel cannot be asked.
pub(super) async fn list(rtnl: &Rtnl, protocol: u8, fate: Fate) -> Result<BTreeSet<(u32, IpNet)>, RtnlError> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for table in TABLES {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.attributes.push(RouteAttribute::Table(table));
            let what = format!("the closed ways of table {table}");
            let messages = match rtnl.dump(RouteNetlinkMessage::GetRoute(filter), &what).await {
                // A table without routes does not exist.
                Err(e) if e.is_absent() => continue,
                other => other?,
            };
            found.extend(messages.iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) if route.header.address_family == family => {
                    parse(route, protocol, fate).filter(|(of, _)| *of == table)
                }
                _ => None,
            }));
        }
    }
    Ok(found)
}

fn parse(route: &RouteMessage, protocol: u8, fate: Fate) -> Option<(u32, IpNet)> {
    let mut table = u32::from(route.header.table);
    let mut dst = if route.header.address_family == AddressFamily::Inet {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0u16; 8])
    };
    let mut metric = 0;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(of) => table = *of,
            RouteAttribute::Destination(to) => dst = crate::net::route::address(to)?,
            RouteAttribute::Priority(of) => metric = *of,
            _ => {}
        }
    }
    let ours =
        u8::from(route.header.protocol) == protocol && route.header.kind == fate.kind() && metric == METRIC;
    ours.then(|| IpNet::new(dst, route.header.destination_prefix_length).ok())
        .flatten()
        .map(|net| (table, net))
}

fn message(table: u32, net: IpNet, protocol: u8, fate: Fate) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family =
        if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = net.prefix_len();
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = protocol.into();
    message.header.kind = fate.kind();
    message.attributes = vec![
        RouteAttribute::Table(table),
        RouteAttribute::Destination(net.network().into()),
        RouteAttribute::Priority(METRIC),
    ];
    message
}
