//! What the programs tell the agent of single packets.

use bytemuck::{Pod, Zeroable};

/// A record of `coil_events`: a packet that was dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// Source, as [`crate::Addr::words`].
    pub src: [u64; 2],
    /// Destination.
    pub dst: [u64; 2],
    /// The link that the program ran on.
    pub ifindex: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// Source port, or the identifier of an echo request.
    pub sport: u16,
    /// Destination port, or the identifier of an echo reply.
    pub dport: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Place of the program in [`crate::Path::ALL`].
    pub path: u8,
    /// 0 for IPv4, 1 for IPv6.
    pub family: u8,
    /// Place of the reason in [`crate::Reason::ALL`].
    pub reason: u8,
}
const _: () = assert!(size_of::<Event>() == 48);

/// Value of `coil_pace`, one for the node: events are a sample, so that a flood of drops costs no more than itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Pace {
    /// When the next event may be told, in nanoseconds of the monotonic clock.
    pub next: u64,
}

/// Least time between two events, in nanoseconds.
pub const PACE: u64 = 200_000_000;
