//! Being told when the kernel's network configuration changes, instead of asking all the time.

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteAttribute, RouteMessage},
    },
    sys::{AsyncSocket as _, SocketAddr},
};

use super::{
    route::{MAIN_TABLE, Owned},
    rtnl::RtnlError,
};

/// Changes in one network namespace. What comes while nobody looks is kept; what does not fit into the
/// socket is lost, so whoever listens looks by itself from time to time, too.
pub struct Monitor {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

/// What is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Links, addresses, and routes of the main table: what the node's place in the network is.
    Node,
    /// Routes that go.
    LostRoutes,
}

impl Monitor {
    /// Listens in the thread's own namespace. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When there are no more sockets to have.
    pub fn open(topics: &[Topic]) -> Result<Self, RtnlError> {
        let mut groups = vec![MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
        if topics.contains(&Topic::Node) {
            groups.extend([MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr]);
        }
        let failed = |e| RtnlError::new("listen to changes of the network", e);
        let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&groups).map_err(failed)?;
        // A lost message is no error: see above.
        connection.socket_mut().socket_mut().set_no_enobufs(true).map_err(failed)?;
        tokio::spawn(connection);
        Ok(Self { messages })
    }

    /// Waits for a message that matters.
    pub async fn changed(&mut self, matters: impl Fn(&RouteNetlinkMessage) -> bool) {
        while let Some((message, _)) = self.messages.next().await {
            if let NetlinkPayload::InnerMessage(message) = &message.payload
                && matters(message)
            {
                // What is queued behind it is seen by the same look.
                while self.messages.try_recv().is_ok() {}
                return;
            }
        }
        // The socket is broken: what is left is to look from time to time.
        std::future::pending::<()>().await;
    }
}

/// A route of ours is gone.
#[must_use]
pub fn is_lost_route(message: &RouteNetlinkMessage, owned: Owned) -> bool {
    matches!(message, RouteNetlinkMessage::DelRoute(_)) && is_route_of(message, owned)
}

/// A route of ours was made, changed or removed.
#[must_use]
pub fn is_route_of(message: &RouteNetlinkMessage, owned: Owned) -> bool {
    match message {
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            table(route) == owned.table && u8::from(route.header.protocol) == owned.protocol
        }
        _ => false,
    }
}

/// The node's links, addresses or routes to elsewhere are others now.
#[must_use]
pub fn is_about_node(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewLink(_)
        | RouteNetlinkMessage::DelLink(_)
        | RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_) => true,
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            table(route) == MAIN_TABLE
        }
        _ => false,
    }
}

fn table(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(route.header.table.into())
}
