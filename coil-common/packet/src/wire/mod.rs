//! Bytes of packets: the facts of one that came in, the header of one that goes out.

mod outer;
mod parse;

pub use outer::{fou_header_v4, fou_header_v6};
pub(crate) use parse::{EXTENSION, FRAGMENT};
pub use parse::{
    Header, Packet, from_client, parse, parse_here, parse_inner, parse_inside, quoted, quoted_inside,
    quoted_or_first,
};

/// Length of an Ethernet header.
pub const ETHERNET: u32 = 14;
/// Length of a UDP header.
pub const UDP: u32 = 8;
/// Length of the destination options header that a default `ip6tnl` puts before UDP.
pub const FOU_OPTIONS: u32 = 8;
/// TTL and hop limit of encapsulated packets.
pub const TTL: u8 = 225;

/// What the decisions tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// UDP behind 8 bytes of destination options: what a default `ip6tnl` with FOU sends.
    UdpBehindOptions,
    /// ICMP echo request; its identifier is the source port.
    EchoRequest,
    /// ICMP echo reply; its identifier is the destination port.
    EchoReply,
    /// An ICMP error about an earlier packet.
    Error,
    /// A fragment, the first included.
    Fragment,
    /// Any other protocol, ICMP message or extension header, and everything with IPv4 options.
    Other,
    /// The transport header is cut short.
    Short,
}

/// Numbers of TCP.
pub mod tcp {
    /// IP protocol.
    pub const PROTOCOL: u8 = 6;
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Begin.
    pub const SYN: u8 = 0x02;
    /// Abort.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// Numbers of UDP.
pub mod udp {
    /// IP protocol.
    pub const PROTOCOL: u8 = 17;
}

/// Folds a sum of 16-bit words to 16 bits.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "two folds leave 16 bits")]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A checksum after a difference, bit for bit as the kernel makes it (`csum_replace_by_diff`).
#[inline(always)]
#[must_use]
pub const fn replace_in_sum(sum: u16, diff: u32) -> u16 {
    let (total, carry) = diff.overflowing_add(!(sum as u32));
    !fold(total.wrapping_add(carry as u32))
}

/// Ones' complement sum of an even number of bytes, in the machine's byte order, not folded.
#[inline(always)]
#[must_use]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut total = 0;
    let mut i = 0;
    while i + 1 < N {
        total += u32::from(u16::from_ne_bytes([bytes[i], bytes[i + 1]]));
        i += 2;
    }
    total
}

/// The difference that replacing words makes to a sum: add the new ones, and the complement of
/// the old ones.
#[inline(always)]
#[must_use]
pub const fn difference(old: u32, new: u32) -> u32 {
    (!fold(old)) as u32 + fold(new) as u32
}
