//! What a decision needs of a socket buffer.

/// A helper refused to change the packet. What was changed so far cannot be undone: drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// What new room behind the Ethernet header is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// An outer IPv4 and UDP header: the packet becomes a tunnel packet, segmented as one.
    FouV4,
    /// An outer IPv6 and UDP header.
    FouV6,
    /// Plain headers of so many bytes.
    Plain(u32),
}

impl Room {
    /// Bytes to add.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::FouV4 => 28,
            Self::FouV6 => 48,
            Self::Plain(bytes) => bytes,
        }
    }
}

/// A packet that starts with its Ethernet header. The kernel's side wraps BPF helpers, the
/// host's a byte vector. Offsets are bytes from the start of the Ethernet header.
pub trait Skb {
    /// Length of the frame in bytes.
    fn frame_len(&self) -> u32;

    /// Payload bytes of each segment of a GSO packet, else 0.
    fn gso_size(&self) -> u32;

    /// The `N` bytes at `at`, or `None` when the packet ends before.
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]>;

    /// The same for a place that is known when this is compiled, near the beginning: a program needs no help of the
    /// kernel there.
    #[inline(always)]
    fn peek<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.load(at)
    }

    /// Overwrites bytes whose change some checksum of the packet makes up for.
    fn store<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Result<(), Fault>;

    /// The same for a place that is known when this is compiled, near the beginning: as with [`Self::peek`].
    #[inline(always)]
    fn put<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Result<(), Fault> {
        self.store(at, bytes)
    }

    /// Overwrites bytes and tells the kernel that the packet's sum changed with them.
    fn store_summed<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Result<(), Fault>;

    /// Adds `diff` (ones' complement, machine byte order) to the IPv4 header checksum at `at`, a place as of
    /// [`Self::put`].
    fn fix_l3_sum(&mut self, at: u32, diff: u32) -> Result<(), Fault>;

    /// Adds `diff` to the transport checksum at `at`. `pseudo`: the change is in the pseudo header.
    /// `optional`: a checksum of zero means none and stays so, and one that comes out as zero is written as 0xffff (UDP:
    /// over IPv4 zero would say that there is none, over IPv6 receivers discard it, RFC 8200, section 8.1).
    fn fix_l4_sum(&mut self, at: u32, diff: u32, pseudo: bool, optional: bool) -> Result<(), Fault>;

    /// Makes room between the Ethernet header and what follows it.
    fn grow(&mut self, room: Room) -> Result<(), Fault>;

    /// Removes `bytes` behind the Ethernet header.
    fn shrink(&mut self, bytes: u32) -> Result<(), Fault>;

    /// Cuts the frame to `len` bytes and makes it a plain packet.
    fn truncate(&mut self, len: u32) -> Result<(), Fault>;
}
