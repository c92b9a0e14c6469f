//! DEL while coild is down.
//!
//! coild keeps nothing on disk: when it starts, it finds the pods in the aliases of the host's links, and an
//! address without such a link is free. So the plugin removes the link with this attachment's alias. Its other
//! end goes with it, and so do the pod's addresses and the routes to them; only after that can an address be
//! given to another pod. Nothing is looked for by the interface's name: the namespace may be gone, or be used
//! by another plugin too. Behind another plugin there is no such link, and nothing that must be removed.

use std::{io, time::Duration};

use coil_api::{
    cni::{ErrorDocument, code},
    names::parse_link_alias,
};
use futures::{Stream, StreamExt as _};
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
    },
};

use crate::{error, input::Request};

/// How often the links are looked through: a list that changed while it was read may have missed one.
const LOOKS: u32 = 8;
/// Pause after the first such list; it doubles.
const PAUSE: Duration = Duration::from_millis(1);

/// Links of an attachment.
#[derive(Debug, Default, PartialEq, Eq)]
struct Look {
    found: Vec<u32>,
    /// The list changed while it was read: there may be more.
    interrupted: bool,
}

/// Removes what the kernel has of an attachment.
pub(crate) async fn del(request: &Request) -> Result<(), ErrorDocument> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|e| error(code::IO_FAILURE, format!("cannot open a netlink socket: {e}")))?;
    tokio::spawn(connection);
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        error(code::TRY_AGAIN_LATER, format!("coild is down, and {what}: {e}"))
    };
    for attempt in 0..LOOKS {
        let look =
            look(&handle, request).await.map_err(|e| failed("the node's links cannot be listed", &e))?;
        if look == Look::default() {
            return Ok(());
        }
        for link in look.found {
            match handle.link().del(link).execute().await {
                // The namespace went in this moment, and its link with it.
                Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -nix::libc::ENODEV => {}
                Err(e) => return Err(failed(&format!("link {link} of the pod cannot be removed"), &e)),
                Ok(()) => {}
            }
        }
        if look.interrupted {
            tokio::time::sleep(PAUSE * (1 << attempt)).await;
        }
    }
    Err(failed("the node's links cannot be listed", &"they change all the time"))
}

async fn look(handle: &Handle, request: &Request) -> io::Result<Look> {
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let answers = handle.clone().request(message).map_err(closed)?;
    read(answers, &request.args.container_id, &request.args.ifname).await
}

/// Reads the kernel's list.
async fn read(
    answers: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
    container_id: &str,
    ifname: &str,
) -> io::Result<Look> {
    let mut look = Look::default();
    let mut answers = std::pin::pin!(answers);
    while let Some(answer) = answers.next().await {
        look.interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                let ours = link.attributes.iter().any(|attribute| match attribute {
                    LinkAttribute::IfAlias(alias) => parse_link_alias(alias)
                        .is_some_and(|(_, id, name)| (id, name) == (container_id, ifname)),
                    _ => false,
                });
                look.found.extend(Some(link.header.index).filter(|_| ours));
            }
            NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
            _ => {}
        }
    }
    Ok(look)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, alias: &str, flags: u16) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfAlias(alias.into()));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
        message.header.flags = flags;
        message
    }

    #[tokio::test]
    async fn a_list_that_changed_meanwhile_says_nothing_of_what_it_lacks() {
        let looked = async |messages: Vec<NetlinkMessage<RouteNetlinkMessage>>| {
            read(futures::stream::iter(messages), "c", "eth0").await.unwrap()
        };
        let others = [link(3, "COIL:default:c:net1", 0), link(4, "COIL:default:d:eth0", 0), link(5, "x", 0)];
        assert_eq!(looked(others.to_vec()).await, Look::default());
        let of_pod = [link(6, "COIL:default:c:eth0", 0), link(7, "COIL:other:c:eth0", NLM_F_DUMP_INTR)];
        assert_eq!(looked(of_pod.to_vec()).await, Look { found: vec![6, 7], interrupted: true });
        let interrupted = looked(vec![link(4, "COIL:default:d:eth0", NLM_F_DUMP_INTR)]).await;
        assert_eq!(interrupted, Look { found: Vec::new(), interrupted: true });
    }
}
