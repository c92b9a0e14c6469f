//! Connections that came in to a client whose Egress is originating only: they are answered the way they came.

use crate::{
    Addr, Skb, Tables,
    abi::{PinKey, egress_flag},
    flow, hash, nat,
    wire::{Header, Kind, Packet, quoted_or_first},
};

/// Reads whose flow an ICMP error of a client is about, when it is one that the client has got a packet of.
#[inline(always)]
pub(super) fn is_about_own<A: Header, S: Skb>(skb: &S, error: &Packet<A>, told: &mut Packet<A>) -> bool {
    quoted_or_first(skb, error, told) && told.dst.same(error.src)
}

/// True for a packet of a connection that came in to the client, as `to_pod` has noted, or for the client's error about one.
#[inline(never)]
pub(super) fn came_in<A: Addr, T: Tables<A>>(packet: &Packet<A>, tables: &mut T) -> bool {
    let (mut key, _) = flow::key(packet);
    key.protocol = u32::from(hash::protocol(packet));
    let now = tables.now();
    let state = tables.with_flow(&key, |entry| {
        // An error keeps no flow alive.
        if packet.kind != Kind::Error {
            flow::note(entry, packet, now);
        }
        entry.state
    });
    state == Some(flow::KERNEL)
}

/// True for a packet to a client of a flow that the client itself has begun through a gateway: whoever sends it, that flow goes on
/// as it began.
#[inline(never)]
pub(super) fn has_begun<A: Addr, T: Tables<A>>(packet: &Packet<A>, tables: &mut T) -> bool {
    let key = PinKey {
        client: packet.dst,
        remote: packet.src,
        pad: 0,
        client_port: packet.dport,
        remote_port: packet.sport,
        protocol: u32::from(packet.protocol),
    };
    let idle = nat::idle_limit(packet.protocol, nat::State::Established as u8);
    let now = tables.now();
    // An echo request has no ports, and is no answer to one.
    packet.under != Kind::EchoRequest
        && tables.with_pin(&key, |pin| now.saturating_sub(pin.seen) <= idle) == Some(true)
}

/// True for a packet of a connection that came in to the client past the host's stack, from an address of a pool to which an
/// Egress that is originating only leads: it is answered as what pods send each other. Likewise for an error about one, whose
/// packet is read to `told`.
#[inline(never)]
pub(super) fn came_in_fast<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    packet: &Packet<A>,
    told: &mut Packet<A>,
    egress: u32,
    tables: &mut T,
) -> bool {
    let flags = tables.egress_flags(egress).unwrap_or_default();
    if flags & egress_flag::ORIGINATING_ONLY == 0 {
        return false;
    }
    let about = packet.kind == Kind::Error;
    if about && !is_about_own(skb, packet, told) {
        return false;
    }
    let (key, _) = flow::key(if about { told } else { packet });
    tables.with_flow(&key, |entry| entry.state) == Some(flow::FAST)
}
