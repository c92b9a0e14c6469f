//! Source NAT in the name of a gateway pod.
//!
//! The mapping is endpoint-dependent: a port of the gateway is lent per remote address and port, so
//! that it serves many clients at once. The reverse entry is the lease, and the only one who may
//! insert it is who finds none (`BPF_NOEXIST`); a forward entry counts only while the reverse entry
//! points back. So a lost or stolen entry costs a new port, and never mixes two flows.

use crate::{
    Addr, End, Reason, Tables,
    abi::{Known, NatKey, NatRevKey, NatRevValue, NatValue, Way},
    hops::{self, Moment},
    ports,
    wire::{Kind, Packet, tcp, udp},
};

mod lend;

use lend::lend;

/// First port that is lent.
pub const FIRST_PORT: u16 = 1024;
/// Last port that is lent. The pod's own sockets have what is above.
pub const LAST_PORT: u16 = 60999;
/// Ports in between that every gateway pod has by default: FOU, metrics and health. The agent names others in
/// `coil_own_ports`.
pub const RESERVED_PORTS: [u16; 3] = [5555, 8080, 8081];
/// Ports that can be lent towards one remote: all but the three reserved ones, and the few that the agent names.
pub const PORTS: u32 = (LAST_PORT - FIRST_PORT + 1 - 3) as u32;
/// Ports tried for a new flow: its own, then one of the free ones of 64 that its hash names, and so on. With 95 % of
/// them lent towards one remote all 64 are lent with a probability of 0.95^64 = 4 %: each port tried but the first is
/// as good as free.
pub const PROBES: u32 = 12;

/// Progress of a translated flow, [`NatRevValue::state`]: for TCP the states of RFC 6146, section 3.5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nothing came back yet.
    New = 0,
    /// Both sides have spoken.
    Established = 1,
    /// The client has sent its FIN.
    ClientFin = 2,
    /// The remote has sent its FIN.
    RemoteFin = 3,
    /// Both have.
    Closed = 4,
    /// A RST was seen. It may have been forged: what else comes makes it established again.
    Reset = 5,
}

impl State {
    /// Every state, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::New, Self::Established, Self::ClientFin, Self::RemoteFin, Self::Closed, Self::Reset];

    /// Name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::ClientFin => "client-fin",
            Self::RemoteFin => "remote-fin",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }
}

/// Idle seconds after which a port is taken back.
///
/// | protocol | state | seconds | source |
/// | --- | --- | --- | --- |
/// | TCP | established, half closed | 7440 | RFC 5382, REQ-5: 2 h 4 min |
/// | TCP | new, closed, reset | 240 | RFC 5382, REQ-5: 4 min |
/// | UDP | nothing came back | 120 | RFC 4787, REQ-5: at least 2 min |
/// | UDP | answered | 300 | RFC 4787, REQ-5: 5 min recommended |
/// | ICMP echo | any | 60 | RFC 5508, REQ-2 |
#[inline(always)]
#[must_use]
pub const fn idle_limit(protocol: u8, state: u8) -> u32 {
    match (protocol, state) {
        (tcp::PROTOCOL, 1..=3) => 7440,
        (tcp::PROTOCOL, _) => 240,
        (udp::PROTOCOL, 0) => 120,
        (udp::PROTOCOL, _) => 300,
        _ => 60,
    }
}

/// True when the lease has run out.
#[inline(always)]
pub fn expired<A: Addr>(protocol: u8, value: &NatRevValue<A>, now: u32) -> bool {
    now.saturating_sub(value.seen) > idle_limit(protocol, value.state)
}

/// True for a port (or echo identifier) that may be lent, as far as that is the same for all gateways.
#[inline(always)]
#[must_use]
pub const fn lendable(port: u16) -> bool {
    let [fou, metrics, health] = RESERVED_PORTS;
    port >= FIRST_PORT && port <= LAST_PORT && port != fou && port != metrics && port != health
}

/// True for a port that may be lent: no gateway pod of this node has it for itself.
#[inline(always)]
pub fn may_lend<A: Addr, T: Tables<A>>(tables: &T, port: u16) -> bool {
    let (word, bit) = ports::own(port);
    lendable(port) && tables.own_ports(word) & bit == 0
}

/// Finds or makes the translation of a client's packet; the answer is the gateway's port, or a number above 16 bits
/// for [`refusal`]: one number fits a register, and every bit of it is written.
#[inline(always)]
pub fn outbound<A: Addr, T: Tables<A>>(tables: &mut T, gateway: &A, packet: &Packet<A>) -> u32 {
    let mut answer = known(tables, gateway, packet);
    let is_known = answer <= MOST;
    if answer == UNKNOWN {
        answer = lend(tables, gateway, packet);
    }
    if !is_known {
        tally(tables, gateway, answer, packet.len);
    }
    answer
}

/// What is counted of a gateway's new flows: the order of [`crate::abi::Tally`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tallied {
    /// A port was lent.
    Lent = 0,
    /// The packet ends, or goes on with, what is not known.
    Invalid = 1,
    /// No port was free.
    NoPort = 2,
    /// A table is full.
    NoRoom = 3,
    /// The client has too many.
    NoQuota = 4,
}

#[inline(never)]
fn tally<A: Addr, T: Tables<A>>(tables: &mut T, gateway: &A, answer: u32, len: u32) -> u32 {
    let what = match answer {
        0..=MOST => Tallied::Lent,
        NO_PORT => Tallied::NoPort,
        NO_ROOM => Tallied::NoRoom,
        NO_QUOTA => Tallied::NoQuota,
        _ => Tallied::Invalid,
    };
    tables.tally(gateway, what, len);
    answer
}

#[inline(always)]
const fn key_of<A: Addr>(gateway: &A, packet: &Packet<A>) -> NatKey<A> {
    NatKey {
        gateway: *gateway,
        client: packet.src,
        remote: packet.dst,
        client_port: packet.sport,
        remote_port: packet.dport,
        protocol: packet.protocol as u32,
    }
}

/// The port of a packet's translation, if there is one; why none may be made; or [`UNKNOWN`].
#[inline(never)]
fn known<A: Addr, T: Tables<A>>(tables: &mut T, gateway: &A, packet: &Packet<A>) -> u32 {
    let key = key_of(gateway, packet);
    if let Some(NatValue { port, .. }) = tables.nat(&key) {
        let now = tables.now();
        let live = tables.with_nat_rev(&reverse_key(&key, port), |lease| {
            let live = points_back(lease, &key) && !expired(packet.protocol, lease, now);
            if live {
                let _ = refresh(lease, now, packet, false);
            }
            live
        });
        if live == Some(true) {
            return u32::from(port);
        }
    }
    match packet.under {
        // What follows a first fragment follows its translation.
        Kind::Fragment => NO_FIRST,
        // The end of what was never begun here.
        Kind::Tcp if packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 => NO_FLOW,
        _ => UNKNOWN,
    }
}

/// Why [`outbound`] or [`outbound_error`] gave no port.
#[inline(always)]
#[must_use]
pub const fn refusal(answer: u32) -> Reason {
    match answer {
        NO_PORT => Reason::NatPorts,
        NO_ROOM => Reason::NatFull,
        NO_QUOTA => Reason::NatQuota,
        NO_FIRST => Reason::EgressFragment,
        NO_FLOW => Reason::NatInvalid,
        _ => Reason::NatUnknown,
    }
}

/// The port of a packet's translation, and the hop, when both were decided in this second and this epoch: then the
/// lease was seen in this second, and nobody can have taken it. For packets that neither begin nor end anything.
#[inline(always)]
pub fn remembered<A: Addr, T: Tables<A>>(
    tables: &mut T,
    gateway: &A,
    packet: &Packet<A>,
) -> Option<(u16, u32)> {
    let (config, now) = (tables.config(), tables.now());
    let found = tables.with_nat(&key_of(gateway, packet), |entry| {
        let holds = entry.known.of_service(packet.tos).holds(&config, now);
        (entry.port, if holds { entry.known.hop } else { 0 })
    });
    found.filter(|(_, hop)| *hop != 0)
}

/// Remembers the way out of a packet's flow, which has just been translated.
#[inline(never)]
pub fn remember<A: Addr, T: Tables<A>>(
    tables: &mut T,
    gateway: &A,
    packet: &Packet<A>,
    way: &mut Way,
    moment: &Moment,
) -> u32 {
    let hop = hops::note(way, moment, tables);
    let known = Known::since(moment, hop).of_service(packet.tos);
    let _ = tables.with_nat(&key_of(gateway, packet), |entry| entry.known = known);
    hop
}

/// Remembers the way back of a flow, of which this is a packet of the remote.
#[inline(never)]
pub fn remember_reply<A: Addr, T: Tables<A>>(
    tables: &mut T,
    packet: &Packet<A>,
    way: &mut Way,
    moment: &Moment,
) -> u32 {
    let hop = hops::note(way, moment, tables);
    let known = Known::since(moment, hop);
    let _ = tables.with_nat_rev(&reply_key(packet), |lease| lease.known = known);
    hop
}

/// Answers of [`inbound`] and [`inbound_error`] but for hops: it belongs to nobody, or to somebody to whom the way is
/// to be decided.
pub const NOBODY: u32 = 0;
/// See [`NOBODY`].
pub const FOUND: u32 = hops::HERE;

/// To whom a packet that came for the gateway belongs: fills in `client`, and answers with the hop to it, or
/// [`FOUND`], or [`NOBODY`].
#[inline(never)]
pub fn inbound<A: Addr, T: Tables<A>>(tables: &mut T, packet: &Packet<A>, client: &mut End<A>) -> u32 {
    let (config, now) = (tables.config(), tables.now());
    let mut reset = false;
    let answer = tables.with_nat_rev(&reply_key(packet), |lease| {
        if expired(packet.protocol, lease, now) {
            return NOBODY;
        }
        client.addr = lease.client;
        client.port = lease.client_port;
        reset = refresh(lease, now, packet, true);
        if lease.known.holds(&config, now) { lease.known.hop } else { FOUND }
    });
    if reset {
        see_next(tables, packet, client);
    }
    answer.unwrap_or(NOBODY)
}

/// Lets the next packet of a client have a look at its lease, which the remote has reset.
#[inline(never)]
fn see_next<A: Addr, T: Tables<A>>(tables: &mut T, reply: &Packet<A>, client: &End<A>) -> bool {
    let key = NatKey {
        gateway: reply.dst,
        client: client.addr,
        remote: reply.src,
        client_port: client.port,
        remote_port: reply.sport,
        protocol: u32::from(reply.protocol),
    };
    tables.with_nat(&key, |entry| entry.known.hop = 0).is_some()
}

#[inline(always)]
const fn reply_key<A: Addr>(packet: &Packet<A>) -> NatRevKey<A> {
    NatRevKey {
        gateway: packet.dst,
        remote: packet.src,
        port: packet.dport,
        remote_port: packet.sport,
        protocol: packet.protocol as u32,
    }
}

/// Whose packet an ICMP error for the gateway quotes, as of [`inbound`]. An error keeps no flow alive.
#[inline(never)]
pub fn inbound_error<A: Addr, T: Tables<A>>(tables: &T, quoted: &Packet<A>, client: &mut End<A>) -> u32 {
    let key = NatRevKey {
        gateway: quoted.src,
        remote: quoted.dst,
        port: quoted.sport,
        remote_port: quoted.dport,
        protocol: u32::from(quoted.protocol),
    };
    match tables.nat_rev(&key) {
        Some(lease) if !expired(quoted.protocol, &lease, tables.now()) => {
            client.addr = lease.client;
            client.port = lease.client_port;
            FOUND
        }
        _ => NOBODY,
    }
}

/// The gateway's port in the packet that a client's ICMP error quotes, or a number as of [`outbound`].
#[inline(never)]
pub fn outbound_error<A: Addr, T: Tables<A>>(tables: &T, gateway: &A, quoted: &Packet<A>) -> u32 {
    let key = NatKey {
        gateway: *gateway,
        client: quoted.dst,
        remote: quoted.src,
        client_port: quoted.dport,
        remote_port: quoted.sport,
        protocol: u32::from(quoted.protocol),
    };
    let Some(NatValue { port, .. }) = tables.nat(&key) else { return UNKNOWN };
    let Some(lease) = tables.nat_rev(&reverse_key(&key, port)) else { return UNKNOWN };
    let known = points_back(&lease, &key) && !expired(quoted.protocol, &lease, tables.now());
    if known { u32::from(port) } else { UNKNOWN }
}

/// The key of a translation's lease.
#[inline(always)]
pub const fn reverse_key<A: Addr>(key: &NatKey<A>, port: u16) -> NatRevKey<A> {
    NatRevKey {
        gateway: key.gateway,
        remote: key.remote,
        port,
        remote_port: key.remote_port,
        protocol: key.protocol,
    }
}

/// True for the lease of a translation, which counts for nothing with another's.
#[inline(always)]
pub fn points_back<A: Addr>(lease: &NatRevValue<A>, key: &NatKey<A>) -> bool {
    lease.client.same(key.client) && lease.client_port == key.client_port
}

/// The largest answer with a port.
const MOST: u32 = u16::MAX as u32;
/// Answers without a port.
const NO_PORT: u32 = 0x1_0000;
const NO_ROOM: u32 = 0x2_0000;
const NO_QUOTA: u32 = 0x3_0000;
const NO_FIRST: u32 = 0x4_0000;
const NO_FLOW: u32 = 0x5_0000;
const UNKNOWN: u32 = 0x6_0000;

/// Notes the time, at most once a second, and the flow's progress. True when it was reset now.
#[inline(always)]
fn refresh<A: Addr>(lease: &mut NatRevValue<A>, now: u32, packet: &Packet<A>, reply: bool) -> bool {
    let state = if packet.under == Kind::Tcp {
        next_state(lease.state, packet.tcp_flags, reply)
    } else if reply {
        State::Established as u8
    } else {
        lease.state
    };
    if now != lease.seen {
        lease.seen = now;
    }
    if state == lease.state {
        return false;
    }
    lease.state = state;
    state == State::Reset as u8
}

/// The state of a TCP flow after a packet. `reply`: the remote sent it.
#[inline(always)]
const fn next_state(state: u8, flags: u8, reply: bool) -> u8 {
    const NEW: u8 = State::New as u8;
    const ESTABLISHED: u8 = State::Established as u8;
    const CLIENT_FIN: u8 = State::ClientFin as u8;
    const REMOTE_FIN: u8 = State::RemoteFin as u8;
    const CLOSED: u8 = State::Closed as u8;
    const RESET: u8 = State::Reset as u8;
    if flags & tcp::RST != 0 {
        return if state == CLOSED { CLOSED } else { RESET };
    }
    if flags & tcp::FIN != 0 {
        return match (state, reply) {
            (REMOTE_FIN, false) | (CLIENT_FIN, true) | (CLOSED, _) => CLOSED,
            (_, false) => CLIENT_FIN,
            (_, true) => REMOTE_FIN,
        };
    }
    if flags & tcp::SYN != 0 && !reply {
        // A connection that is in use stays so; one that has ended begins anew.
        return if state == ESTABLISHED { ESTABLISHED } else { NEW };
    }
    match (state, reply) {
        (NEW, true) | (RESET, _) => ESTABLISHED,
        _ => state,
    }
}

#[cfg(test)]
mod tests;
