//! What a pod sees of the network namespace that it is in: with the host's network, of the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, RouteMessageBuilder, new_connection,
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags},
        link::LinkAttribute,
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
};
use tokio::signal::unix::{SignalKind, signal};

fn open() -> Result<Handle> {
    let (connection, handle, _) = new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The destinations of a routing table, one a line.
pub(super) async fn routes(table: u32) -> Result<String> {
    let mut handle = open()?;
    let mut lines = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut asked = RouteMessage::default();
        asked.header.address_family = family;
        asked.attributes.push(RouteAttribute::Table(table));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(asked));
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = handle.request(request).context("cannot ask for routes")?;
        while let Some(answer) = answers.next().await {
            let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = answer.payload else {
                continue; // the end of the list, or a table that nobody has written to
            };
            // Old kernels answer with all tables.
            if route.attributes.contains(&RouteAttribute::Table(table)) {
                lines.push(shown(&route));
            }
        }
    }
    Ok(lines.join("\n"))
}

fn shown(route: &RouteMessage) -> String {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(ip.to_string()),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(ip.to_string()),
        _ => None,
    });
    match to {
        Some(ip) => format!("{ip}/{}", route.header.destination_prefix_length),
        None => "default".to_owned(),
    }
}

/// The names of all links, one a line.
pub(super) async fn links() -> Result<String> {
    // The connection ends with its last handle.
    let handle = open()?;
    let mut links = handle.link().get().execute();
    let mut names = Vec::new();
    while let Some(link) = links.try_next().await.context("cannot list links")? {
        names.extend(link.attributes.into_iter().filter_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        }));
    }
    Ok(names.join("\n"))
}

/// Has routes to addresses until SIGTERM.
pub(super) async fn with_routes(addresses: &[IpAddr], via: &[IpAddr]) -> Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let handle = open()?;
    let mut routes = Vec::new();
    for address in addresses {
        let hop = via.iter().find(|hop| hop.is_ipv4() == address.is_ipv4());
        let route = match (address, hop) {
            (IpAddr::V4(to), Some(IpAddr::V4(hop))) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(*to, 32).gateway(*hop).build()
            }
            (IpAddr::V6(to), Some(IpAddr::V6(hop))) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(*to, 128).gateway(*hop).build()
            }
            _ => bail!("{address} has no next hop of its family among {via:?}"),
        };
        let added = handle.route().add(route.clone()).replace().execute().await;
        added.with_context(|| format!("cannot have a route to {address}: is NET_ADMIN given?"))?;
        routes.push(route);
    }
    terminated.recv().await;
    for route in routes {
        handle.route().del(route).execute().await.context("cannot take a route away")?;
    }
    Ok(())
}

/// Has addresses on the loopback link for as long as `work` runs, at most until SIGTERM.
pub(super) async fn with_addresses(
    addresses: &[IpAddr],
    work: impl Future<Output = Result<()>>,
) -> Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let handle = open()?;
    let mut links = handle.link().get().match_name("lo".to_owned()).execute();
    let lo = links.try_next().await.context("cannot find lo")?.context("there is no lo")?.header.index;
    for address in addresses {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let mut adding = handle.address().add(lo, *address, length).replace();
        // Otherwise it may be used only later.
        adding.message_mut().header.flags = AddressHeaderFlags::Nodad;
        let added = adding.execute().await;
        added.with_context(|| format!("cannot have {address}: is NET_ADMIN given?"))?;
    }
    let ended = tokio::select! {
        ended = work => ended,
        _ = terminated.recv() => Ok(()),
    };
    let mut there = handle.address().get().set_link_index_filter(lo).execute();
    while let Some(message) = there.try_next().await.context("cannot list the addresses of lo")? {
        let ours = message
            .attributes
            .iter()
            .any(|a| matches!(a, AddressAttribute::Address(ip) if addresses.contains(ip)));
        if ours {
            handle.address().del(message).execute().await.context("cannot take the addresses away")?;
        }
    }
    ended
}
