//! Lending a port of a gateway to a new flow.

use super::{
    NO_PORT, NO_QUOTA, NO_ROOM, PROBES, State, expired, key_of, may_lend, points_back, refresh, reverse_key,
};
use crate::{
    Addr, Insert, Tables,
    abi::{Known, NatKey, NatRevValue, NatValue},
    hash, ports,
    wire::Packet,
};

/// What [`lend`] finds at a port: nothing, another flow's lease, or the flow's own.
const FREE: u32 = 0;
const OTHERS: u32 = 1;
const OWN: u32 = 2;

/// Lends a port: the client's own when it may be lent and is free, else one that is free among those that the flow's
/// hash names.
#[inline(never)]
pub(super) fn lend<A: Addr, T: Tables<A>>(tables: &mut T, gateway: &A, packet: &Packet<A>) -> u32 {
    let key = key_of(gateway, packet);
    let now = tables.now();
    let mut reverse = reverse_key(&key, key.client_port);
    let remote = ports::remote(&reverse);
    let mut hash = hash::flow(packet);
    let mut probe = 0;
    let mut found = FREE;
    // The test at the end keeps the way back a jump, as verifiers before Linux 6.3 want it.
    while probe < PROBES {
        if probe > 0 {
            reverse.port = candidate(tables, remote, hash);
        }
        let (word, bit) = ports::place(remote, reverse.port);
        // Of a port that is not to be lent it says the same.
        tables.note_ports(word, bit);
        if may_lend(tables, reverse.port) {
            // Another flow's stays until it is swept, also when it has run out: two that took it at once would both have it.
            found = tables.with_nat_rev(&reverse, |lease| take(lease, &key, packet, now)).unwrap_or(FREE);
            if found != OTHERS {
                break;
            }
        }
        hash = hash::mix(hash, u64::from(probe));
        probe += 1;
    }
    if probe == PROBES {
        return NO_PORT;
    }
    let value = NatValue { port: reverse.port, pad: 0, known: Known { stamp: 0, hop: 0 } };
    if found == OWN {
        return if tables.put_nat(&key, &value).is_ok() { u32::from(reverse.port) } else { NO_ROOM };
    }
    if !tables.borrow_port(&packet.src, tables.config().quota) {
        return NO_QUOTA;
    }
    // Nothing is removed first, which another CPU may have inserted since. Of two that take a port at once one inserts; unless
    // that was for the same flow, the other's packet is lost, and looks for another port when it is sent again.
    let lease = NatRevValue {
        client: packet.src,
        seen: now,
        client_port: packet.sport,
        state: State::New as u8,
        pad: 0,
        known: Known { stamp: 0, hop: 0 },
    };
    match tables.add_nat_rev(&reverse, &lease) {
        Ok(()) => {}
        Err(Insert::Full) => return NO_ROOM,
        Err(Insert::Exists) => {
            if tables.with_nat_rev(&reverse, |lease| take(lease, &key, packet, now)) != Some(OWN) {
                return NO_PORT;
            }
            return if tables.put_nat(&key, &value).is_ok() { u32::from(reverse.port) } else { NO_ROOM };
        }
    }
    if tables.put_nat(&key, &value).is_ok() {
        return u32::from(reverse.port);
    }
    tables.remove_nat_rev(&reverse);
    NO_ROOM
}

/// Takes a lease that is the flow's own: one that has run out, that has lost its forward entry, or that another CPU has just
/// made.
#[inline(always)]
fn take<A: Addr>(lease: &mut NatRevValue<A>, key: &NatKey<A>, packet: &Packet<A>, now: u32) -> u32 {
    if !points_back(lease, key) {
        return OTHERS;
    }
    if expired(packet.protocol, lease, now) {
        lease.state = State::New as u8;
        lease.known = Known { stamp: 0, hop: 0 };
    }
    let _ = refresh(lease, now, packet, false);
    OWN
}

/// A port that is probably free, of the 64 that a hash names; 0 when there is none.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "which of 64, and any bits")]
fn candidate<A: Addr, T: Tables<A>>(tables: &T, remote: u64, hash: u64) -> u16 {
    let first = ports::some(hash::high(hash));
    let zero = ports::zero_of(tables.ports(ports::place(remote, first).0), hash as u32);
    if zero < u64::BITS { first + zero as u16 } else { 0 }
}
