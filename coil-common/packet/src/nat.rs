//! Source NAT in the name of a gateway pod.
//!
//! The mapping is endpoint-dependent: a port of the gateway is lent per remote address and port, so
//! that it serves many clients at once. The reverse entry is the lease, and the only one who may
//! insert it is who finds none (`BPF_NOEXIST`); a forward entry counts only while the reverse entry
//! points back. So a lost or stolen entry costs a new port, and never mixes two flows.

use crate::{
    Addr, Insert, Reason, Tables,
    abi::{NatKey, NatRevKey, NatRevValue, NatValue},
    hash,
    wire::{Kind, Packet, tcp, udp},
};

/// First port that is lent.
pub const FIRST_PORT: u16 = 1024;
/// Last port that is lent. The pod's own sockets have what is above.
pub const LAST_PORT: u16 = 60999;
/// Ports in between that belong to the gateway pod: FOU, metrics and health.
pub const RESERVED_PORTS: [u16; 3] = [5555, 8080, 8081];
/// Ports tried for a new flow.
pub const PROBES: u32 = 16;

/// Progress of a translated flow, [`NatRevValue::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nothing came back yet.
    New = 0,
    /// Both sides have spoken.
    Established = 1,
    /// FIN or RST was seen.
    Closing = 2,
}

/// Idle seconds after which a port is taken back: RFC 5382 (TCP), RFC 4787 (UDP), RFC 5508 (ICMP).
#[inline(always)]
#[must_use]
pub const fn idle_limit(protocol: u8, state: u8) -> u32 {
    match (protocol, state) {
        (tcp::PROTOCOL, 1) => 7440,
        (tcp::PROTOCOL, _) => 240,
        (udp::PROTOCOL, _) => 300,
        _ => 60,
    }
}

/// True when the lease has run out.
#[inline(always)]
pub fn expired<A: Addr>(protocol: u8, value: &NatRevValue<A>, now: u32) -> bool {
    now.saturating_sub(value.seen) > idle_limit(protocol, value.state)
}

/// True for a port (or echo identifier) that may be lent.
#[inline(always)]
#[must_use]
pub const fn lendable(port: u16) -> bool {
    let [fou, metrics, health] = RESERVED_PORTS;
    port >= FIRST_PORT && port <= LAST_PORT && port != fou && port != metrics && port != health
}

/// Finds or makes the translation of a client's packet; the answer is the gateway's port.
#[inline(always)]
pub fn outbound<A: Addr, T: Tables<A>>(
    tables: &mut T,
    gateway: &A,
    packet: &Packet<A>,
) -> Result<u16, Reason> {
    let key = NatKey {
        gateway: *gateway,
        client: packet.src,
        remote: packet.dst,
        client_port: packet.sport,
        remote_port: packet.dport,
        protocol: u32::from(packet.protocol),
    };
    let now = tables.now();
    if let Some(NatValue { port, .. }) = tables.nat(&key) {
        let reverse = reverse_key(&key, port);
        if let Some(lease) = tables.nat_rev(&reverse)
            && points_back(&lease, packet)
            && !expired(packet.protocol, &lease, now)
        {
            refresh(tables, &reverse, &lease, packet, false);
            return Ok(port);
        }
    }
    let port = lend(tables, &key, packet, now)?;
    if tables.put_nat(&key, &NatValue { port, pad: 0 }).is_err() {
        tables.remove_nat_rev(&reverse_key(&key, port));
        return Err(Reason::NatFull);
    }
    Ok(port)
}

/// To whom a packet that came for the gateway belongs; the answer is the client and its port.
#[inline(never)]
pub fn inbound<A: Addr, T: Tables<A>>(tables: &mut T, packet: &Packet<A>) -> Option<(A, u16)> {
    let key = NatRevKey {
        gateway: packet.dst,
        remote: packet.src,
        port: packet.dport,
        remote_port: packet.sport,
        protocol: u32::from(packet.protocol),
    };
    let lease = tables.nat_rev(&key)?;
    if expired(packet.protocol, &lease, tables.now()) {
        return None;
    }
    refresh(tables, &key, &lease, packet, true);
    Some((lease.client, lease.client_port))
}

#[inline(always)]
const fn reverse_key<A: Addr>(key: &NatKey<A>, port: u16) -> NatRevKey<A> {
    NatRevKey {
        gateway: key.gateway,
        remote: key.remote,
        port,
        remote_port: key.remote_port,
        protocol: key.protocol,
    }
}

#[inline(always)]
fn points_back<A: Addr>(lease: &NatRevValue<A>, packet: &Packet<A>) -> bool {
    lease.client.same(packet.src) && lease.client_port == packet.sport
}

/// Lends a port: the client's own when it may be lent and is free, else one of a few that the flow's
/// hash names.
#[inline(always)]
fn lend<A: Addr, T: Tables<A>>(
    tables: &mut T,
    key: &NatKey<A>,
    packet: &Packet<A>,
    now: u32,
) -> Result<u16, Reason> {
    let value = NatRevValue {
        client: packet.src,
        seen: now,
        client_port: packet.sport,
        state: State::New as u8,
        pad: 0,
    };
    let mut hash = hash::flow(packet);
    let mut port = packet.sport;
    let mut probe = 0;
    while probe < PROBES {
        if lendable(port) {
            let reverse = reverse_key(key, port);
            match tables.add_nat_rev(&reverse, &value) {
                Ok(()) => return Ok(port),
                Err(Insert::Full) => return Err(Reason::NatFull),
                Err(Insert::Exists) => {}
            }
            if let Some(lease) = tables.nat_rev(&reverse) {
                if points_back(&lease, packet) {
                    tables.touch_nat_rev(&reverse, &value);
                    return Ok(port);
                }
                if expired(packet.protocol, &lease, now) {
                    // Of two that steal at once one inserts; the other goes on to the next port.
                    tables.remove_nat_rev(&reverse);
                    if tables.add_nat_rev(&reverse, &value).is_ok() {
                        return Ok(port);
                    }
                }
            }
        }
        hash = hash::mix(hash, u64::from(probe));
        port = in_range(hash::high(hash));
        probe += 1;
    }
    Err(Reason::NatPorts)
}

/// A port of the range for any number.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the remainder is below 2^16")]
const fn in_range(number: u32) -> u16 {
    FIRST_PORT + (number % (LAST_PORT - FIRST_PORT + 1) as u32) as u16
}

/// Notes the time, at most once a second, and the flow's progress.
#[inline(always)]
fn refresh<A: Addr, T: Tables<A>>(
    tables: &mut T,
    key: &NatRevKey<A>,
    lease: &NatRevValue<A>,
    packet: &Packet<A>,
    reply: bool,
) {
    let state = if packet.kind != Kind::Tcp {
        if reply { State::Established as u8 } else { lease.state }
    } else if packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        State::Closing as u8
    } else if packet.tcp_flags & tcp::SYN != 0 && !reply {
        State::New as u8
    } else if reply && lease.state == State::New as u8 {
        State::Established as u8
    } else {
        lease.state
    };
    let now = tables.now();
    if state != lease.state || now != lease.seen {
        tables.touch_nat_rev(key, &NatRevValue { seen: now, state, ..*lease });
    }
}
