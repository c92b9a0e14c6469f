//! The two address families as types.

use core::fmt::Debug;

use bytemuck::Pod;

/// An address family, as an index of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

/// An address in network byte order: `[u8; 4]` or `[u8; 16]`.
pub trait Addr: Copy + Eq + Debug + Pod {
    /// The family of this type.
    const FAMILY: Family;
    /// Bits of an address, and so the longest prefix.
    const BITS: u32;
    /// Length of the IP header without options, in bytes.
    const HEADER: u32;
    /// Protocol number of the family's ICMP.
    const ICMP: u8;
    /// Type and code of its error "fragmentation needed and DF set" (RFC 1191), or "packet too big" (RFC 4443).
    const TOO_BIG: [u8; 2];
    /// True when the L3 header carries its own checksum.
    const L3_SUM: bool;

    /// The address as one number, big end first: to compare and to hash without `memcmp`,
    /// which a BPF program does not have.
    fn words(self) -> (u64, u64);

    /// Ones' complement sum of the address, in the machine's byte order, not folded.
    fn sum(self) -> u32;

    /// Equality without `memcmp`.
    #[inline(always)]
    fn same(self, other: Self) -> bool {
        self.words() == other.words()
    }
}

impl Addr for [u8; 4] {
    const FAMILY: Family = Family::V4;
    const BITS: u32 = 32;
    const HEADER: u32 = 20;
    const ICMP: u8 = 1;
    const TOO_BIG: [u8; 2] = [3, 4];
    const L3_SUM: bool = true;

    #[inline(always)]
    fn words(self) -> (u64, u64) {
        (0, u64::from(u32::from_be_bytes(self)))
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        let [a, b, c, d] = self;
        u32::from(u16::from_ne_bytes([a, b])) + u32::from(u16::from_ne_bytes([c, d]))
    }
}

impl Addr for [u8; 16] {
    const FAMILY: Family = Family::V6;
    const BITS: u32 = 128;
    const HEADER: u32 = 40;
    const ICMP: u8 = 58;
    const TOO_BIG: [u8; 2] = [2, 0];
    const L3_SUM: bool = false;

    #[inline(always)]
    fn words(self) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self;
        (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes([i, j, k, l, m, n, o, p]))
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self;
        [a, b, c, d].sum() + [e, f, g, h].sum() + [i, j, k, l].sum() + [m, n, o, p].sum()
    }
}
