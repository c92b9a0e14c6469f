//! The header that encapsulation puts in front, byte for byte what Linux sends for `ipip` and
//! `ip6tnl` links with `encap fou`, `encaplimit none` and no UDP checksum.

use super::{TTL, UDP, fold, udp};
use crate::{Addr, Outer};

/// Outer IPv4 and UDP header. DF is set, so the identification is 0 (RFC 6864).
#[inline(always)]
#[must_use]
pub fn fou_header_v4(outer: &Outer<[u8; 4]>) -> [u8; 28] {
    let udp_len = outer.inner_len.wrapping_add(8);
    let total = outer.inner_len.wrapping_add(28).to_be_bytes();
    let (s, d) = (outer.src, outer.dst);
    let first = [0x45, outer.tos];
    let df = [0x40, 0];
    let ttl = [TTL, udp::PROTOCOL];
    let word = |bytes: [u8; 2]| u32::from(u16::from_ne_bytes(bytes));
    let sum = word(first) + word(total) + word(df) + word(ttl) + s.sum() + d.sum();
    let check = (!fold(sum)).to_ne_bytes();
    let ports = (outer.sport.to_be_bytes(), outer.dport.to_be_bytes());
    let len = udp_len.to_be_bytes();
    [
        first[0], first[1], total[0], total[1], 0, 0, df[0], df[1], ttl[0], ttl[1], check[0],
        check[1], //
        s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3], //
        ports.0[0], ports.0[1], ports.1[0], ports.1[1], len[0], len[1], 0, 0,
    ]
}

/// Outer IPv6 and UDP header, in two parts for the small stack of a BPF program: everything but
/// the addresses, which stand between the two.
#[inline(always)]
#[must_use]
pub fn fou_header_v6(outer: &Outer<[u8; 16]>) -> ([u8; 8], [u8; 8]) {
    #[expect(clippy::cast_possible_truncation, reason = "the length of a header")]
    let len = outer.inner_len.wrapping_add(UDP as u16).to_be_bytes();
    let (sport, dport) = (outer.sport.to_be_bytes(), outer.dport.to_be_bytes());
    (
        [0x60 | outer.tos >> 4, outer.tos << 4, 0, 0, len[0], len[1], udp::PROTOCOL, TTL],
        [sport[0], sport[1], dport[0], dport[1], len[0], len[1], 0, 0],
    )
}
