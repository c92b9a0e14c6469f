//! Waiting for what the kernel finishes after it has acknowledged a change. Without this the first packets
//! of a pod are lost now and then, and a connection takes a second more.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
};

use super::{
    link::{self, found},
    route::family_of,
    rtnl::RtnlError,
    wire::{Answer, Request, Wire},
};

/// The kernel defers the work on links for a second at most, and then needs a CPU that has time for it.
const LIMIT: Duration = Duration::from_secs(20);
/// Its deferred work runs as soon as a CPU has time.
const POLL: Duration = Duration::from_micros(200);

/// Waits until one side of a new pair carries packets, and addresses on it are answered for.
///
/// The side that was up first has no queue, and drops what is sent through it, until the kernel's link
/// watch has run. Asking for one link makes it run at once (kernel commit facd15dfd691, 6.9);
/// before, it may take its second. IPv6 starts an address in a deferred work also when there is no
/// duplicate to wait for (`addrconf_dad_work`): before that it has no local route.
pub(super) fn wait(wire: &mut Wire, index: u32, addresses: &[IpAddr]) -> Result<(), RtnlError> {
    let end = Instant::now() + LIMIT;
    let mut waiting = addresses.to_vec();
    loop {
        let mut requests = vec![link::get_by_index(index)];
        requests.extend(waiting.iter().copied().map(route_to));
        let mut answers = wire.ask(requests)?.into_iter();
        let link = answers.next().map_or(Ok(None), found)?;
        let running = link.is_some_and(|link| link.running);
        let mut left = Vec::new();
        for (address, answer) in waiting.into_iter().zip(answers) {
            if !is_local(answer)? {
                left.push(address);
            }
        }
        waiting = left;
        if running && waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            let doing =
                format!("wait until link {index} carries packets and answers for its addresses {waiting:?}");
            return Err(RtnlError::new(doing, io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(POLL);
    }
}

fn route_to(address: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(address);
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    message.attributes.push(RouteAttribute::Destination(address.into()));
    Request::get(RouteNetlinkMessage::GetRoute(message), format!("look up the route to {address}"))
}

/// Whether the namespace takes packets for itself.
fn is_local(answer: Answer) -> Result<bool, RtnlError> {
    match answer {
        Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(route.header.kind == RouteType::Local),
        Ok(_) => Ok(false),
        Err(e) if e.is_unreachable() => Ok(false),
        Err(e) => Err(e),
    }
}
