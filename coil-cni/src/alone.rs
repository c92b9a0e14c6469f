//! DEL while coild is down.
//!
//! coild keeps nothing on disk: when it starts, it finds the pods in the aliases of the host's links, and an
//! address without such a link is free. So the plugin removes the link with this attachment's alias. Its other
//! end goes with it, and so do the pod's addresses and the routes to them; only after that can an address be
//! given to another pod. Nothing is looked for by the interface's name: the namespace may be gone, or be used
//! by another plugin too. Behind another plugin there is no such link, and nothing that must be removed.

use coil_api::{
    cni::{ErrorDocument, code},
    names::parse_link_alias,
};
use futures::TryStreamExt as _;
use rtnetlink::{Handle, packet_route::link::LinkAttribute};

use crate::{error, input::Request};

/// How often the links are looked through: a list that changed while it was read may have missed one.
const LOOKS: u32 = 8;

/// Removes what the kernel has of an attachment.
pub(crate) async fn del(request: &Request) -> Result<(), ErrorDocument> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|e| error(code::IO_FAILURE, format!("cannot open a netlink socket: {e}")))?;
    tokio::spawn(connection);
    let of_link = |link: u32, e: &rtnetlink::Error| {
        let msg = format!("coild is down, and link {link} of the pod cannot be removed: {e}");
        error(code::TRY_AGAIN_LATER, msg)
    };
    for _ in 0..LOOKS {
        let links =
            links_of(&handle, &request.args.container_id, &request.args.ifname).await.map_err(|e| {
                let msg = format!("coild is down, and the node's links cannot be listed: {e}");
                error(code::TRY_AGAIN_LATER, msg)
            })?;
        if links.is_empty() {
            return Ok(());
        }
        for link in links {
            if let Err(e) = handle.link().del(link).execute().await {
                // The namespace went in this moment, and its link with it: the next look finds nothing.
                let gone = links_of(&handle, &request.args.container_id, &request.args.ifname).await;
                if gone.is_ok_and(|left| left.contains(&link)) {
                    return Err(of_link(link, &e));
                }
            }
        }
    }
    Ok(())
}

async fn links_of(handle: &Handle, container_id: &str, ifname: &str) -> Result<Vec<u32>, rtnetlink::Error> {
    let mut found = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let ours = link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => {
                parse_link_alias(alias).is_some_and(|(_, id, name)| (id, name) == (container_id, ifname))
            }
            _ => false,
        });
        if ours {
            found.push(link.header.index);
        }
    }
    Ok(found)
}
