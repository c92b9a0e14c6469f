//! Waiting for what the kernel finishes after it has acknowledged a change. Without this the first packets
//! of a pod are lost now and then, and a connection takes a second more.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
};

use super::{
    route::family_of,
    rtnl::{Rtnl, RtnlError},
};

/// The kernel defers the work on links for a second at most.
const LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// Waits until one side of a new pair carries packets. The side that was up first has no queue, and drops
/// what is sent through it, until the kernel's link watch has run. Asking for one link makes it run at
/// once (kernel commit facd15dfd691, 6.9); before, it may take its second.
pub(super) async fn running(rtnl: &Rtnl, index: u32) -> Result<(), RtnlError> {
    let patience = Patience::new();
    while !rtnl.link_by_index(index).await?.is_some_and(|link| link.running) {
        patience.wait(|| format!("wait for the carrier of link {index}")).await?;
    }
    Ok(())
}

/// Waits until an address that was added is answered for. IPv6 starts an address in a deferred work also
/// when there is no duplicate to wait for (`addrconf_dad_work`): before that it has no local route.
pub(super) async fn answers(rtnl: &Rtnl, address: IpAddr) -> Result<(), RtnlError> {
    let patience = Patience::new();
    while !rtnl.is_local(address).await? {
        patience.wait(|| format!("wait for address {address} to be in use")).await?;
    }
    Ok(())
}

/// Asks again soon, but not for ever.
struct Patience {
    end: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { end: Instant::now() + LIMIT }
    }

    async fn wait(&self, what: impl FnOnce() -> String) -> Result<(), RtnlError> {
        if Instant::now() > self.end {
            return Err(RtnlError::new(what(), std::io::ErrorKind::TimedOut.into()));
        }
        tokio::time::sleep(POLL).await;
        Ok(())
    }
}

impl Rtnl {
    /// Whether the namespace takes packets to an address for itself.
    async fn is_local(&self, address: IpAddr) -> Result<bool, RtnlError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(address.into()));
        match self.get(RouteNetlinkMessage::GetRoute(message)).await {
            Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(route.header.kind == RouteType::Local),
            Ok(_) => Ok(false),
            Err(e) if e.kind() == std::io::ErrorKind::NetworkUnreachable => Ok(false),
            Err(e) => Err(RtnlError::new(format!("look up the route to {address}"), e)),
        }
    }
}
