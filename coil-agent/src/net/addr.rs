//! Addresses and neighbours of links.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::RouteType,
};

use super::{
    link::Mac,
    route::family_of,
    rtnl::{Mode, Rtnl, RtnlError},
    wire::Request,
};

/// Adds an address that can be used at once: nobody else can have it, so nobody is asked
/// (duplicate address detection takes over a second).
pub(super) fn add_address(index: u32, address: IpNet) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family_of(address.addr());
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    if address.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    let doing = format!("add address {address} to link {index}");
    Request::change(RouteNetlinkMessage::NewAddress(message), Mode::Create, doing)
}

/// States a neighbour's hardware address for good.
pub(super) fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    let doing = format!("add neighbour {address} to link {index}");
    Request::change(RouteNetlinkMessage::NewNeighbour(message), Mode::Replace, doing)
}

impl Rtnl {
    /// All addresses of the namespace, with their links' indices.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, RtnlError> {
        let filter = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut found = Vec::new();
        for message in self.dump(filter, "the addresses").await? {
            let RouteNetlinkMessage::NewAddress(message) = message else { continue };
            // On a point-to-point link Address is the other end; Local is ours wherever it is given.
            let mut own = None;
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(a) => own = Some(*a),
                    AddressAttribute::Address(a) => own = own.or(Some(*a)),
                    _ => {}
                }
            }
            let net = own.and_then(|a| IpNet::new(a, message.header.prefix_len).ok());
            found.extend(net.map(|net| (message.header.index, net)));
        }
        Ok(found)
    }
}
