//! Frames without what may differ.

use super::ETHERNET;

/// Who gets a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Through the gateway: it sees the gateway's ports.
    World,
    /// It sees its own.
    Client,
}

/// IP protocols.
const ICMP: [u8; 2] = [1, 58];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The fragment header of IPv6.
const FRAGMENT: u8 = 44;

/// Where the transport header is, its protocol, and whether it is there at all.
fn transport(packet: &[u8], v4: bool) -> Option<(usize, u8, bool)> {
    if v4 {
        let later = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff != 0;
        return Some((20, *packet.get(9)?, !later));
    }
    match *packet.get(6)? {
        FRAGMENT => {
            let later = u16::from_be_bytes([*packet.get(42)?, *packet.get(43)?]) & 0xfff8 != 0;
            Some((48, *packet.get(40)?, !later))
        }
        protocol => Some((40, protocol, true)),
    }
}

/// The packet of a frame, with zeroes for what may differ, and without the hop that a gateway pod by the kernel is.
pub(super) fn bare(frame: &[u8], v4: bool, side: Side, by_kernel: bool) -> Vec<u8> {
    let mut packet = frame.get(ETHERNET..).unwrap_or_default().to_vec();
    let Some((at, protocol, begins)) = transport(&packet, v4) else { return packet };
    let translated = ICMP.contains(&protocol) || protocol == TCP || protocol == UDP;
    // What the programs do not translate, a gateway's kernel does in any case.
    packet[if v4 { 8 } else { 7 }] += u8::from(by_kernel || !translated);
    if v4 {
        clear(&mut packet, 10, 2);
        if side == Side::World {
            clear(&mut packet, 4, 2);
        }
    } else if packet[6] == FRAGMENT {
        clear(&mut packet, 44, 4);
    }
    if side == Side::World && begins {
        if ICMP.contains(&protocol) && is_error(packet.get(at).copied().unwrap_or_default(), v4) {
            clear(&mut packet, at + 2, 2);
            quoted(&mut packet, at + 8, v4);
        } else {
            ports(&mut packet, at, protocol, 0);
        }
    }
    packet
}

/// True for the types of ICMP errors.
const fn is_error(kind: u8, v4: bool) -> bool {
    if v4 { matches!(kind, 3 | 11 | 12) } else { kind < 128 }
}

/// What a client's error quotes went to the gateway's port.
fn quoted(packet: &mut [u8], at: usize, v4: bool) {
    let Some((header, protocol, _)) = packet.get(at..).and_then(|quoted| transport(quoted, v4)) else {
        return;
    };
    if v4 {
        clear(packet, at + 10, 2);
    }
    ports(packet, at + header, protocol, 2);
}

/// A port, or the identifier of an echo, and the checksum.
fn ports(packet: &mut [u8], at: usize, protocol: u8, port: usize) {
    match protocol {
        TCP => {
            clear(packet, at + port, 2);
            clear(packet, at + 16, 2);
        }
        UDP => {
            clear(packet, at + port, 2);
            clear(packet, at + 6, 2);
        }
        1 | 58 => clear(packet, at + 2, 4),
        _ => {}
    }
}

fn clear(packet: &mut [u8], at: usize, len: usize) {
    if let Some(bytes) = packet.get_mut(at..at + len) {
        bytes.fill(0);
    }
}
