//! Tables that the programs write: connections between pools, and what was decided about them.

use super::plain;
use crate::hash;

/// Key of `coil_flows4`, `coil_flows6` (TCP), `coil_datagrams4` and `coil_datagrams6` (the rest): a
/// connection between two pool addresses, the same key for both directions. Made by [`crate::flow::key`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey<A> {
    /// The end that sorts lower by (address, port).
    pub low: A,
    /// The other end.
    pub high: A,
    /// Port of `low`; for ICMP echo the identifier at the requester's end, 0 at the other.
    pub low_port: u16,
    /// Port of `high`.
    pub high_port: u16,
    /// IP protocol.
    pub protocol: u32,
}

/// Value of the flow tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FlowValue {
    /// Last packet, in seconds of the monotonic clock.
    pub seen: u32,
    /// Whose flow it is: [`crate::flow::FAST`] or [`crate::flow::KERNEL`].
    pub state: u8,
    /// A number of [`crate::flow::Phase`].
    pub phase: u8,
    /// 1 when the kernel translated another connection to this fast flow's addresses and ports: a request to
    /// the agent to tell connection tracking of the flow.
    pub clash: u8,
    /// Zero.
    pub pad: u8,
    /// What was decided for packets from the lower end to the higher.
    pub upward: Way,
    /// The same from the higher end to the lower.
    pub downward: Way,
}
const _: () = assert!(size_of::<FlowValue>() == 88);

/// A decision that was made for one direction of a fast flow. Only as good as its epoch, its second and its
/// check.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Way {
    /// [`super::Config::epoch`] in which it was made. 0: never.
    pub epoch: u32,
    /// The second of the monotonic clock in which it was made.
    pub made: u32,
    /// The pod's link on which its packets come in, 0 for the network.
    pub ingress: u32,
    /// The link to deliver to or to send on.
    pub egress: u32,
    /// How to deliver: [`way_kind`].
    pub kind: u16,
    /// Length of the longest L3 packet that is known to fit.
    pub fits: u16,
    /// MAC addresses of the receiver and of the sender, or the next hop.
    pub next: [u8; 16],
    /// Of all other fields, see [`Way::sum`].
    pub check: u32,
}
const _: () = assert!(size_of::<Way>() == 40);

/// Numbers of [`Way::kind`].
pub mod way_kind {
    /// A pod of this node.
    pub const POD: u16 = 1;
    /// A link, for a neighbour whose MAC address the kernel has said.
    pub const LINK: u16 = 2;
    /// A pod of this node by its link, on which something waits for what goes to the pod: a queue, say.
    pub const POD_BY_LINK: u16 = 3;
    /// An IPv4 neighbour.
    pub const NEIGHBOUR4: u16 = 4;
    /// An IPv6 neighbour.
    pub const NEIGHBOUR6: u16 = 6;
}

impl Way {
    /// A check of the fields. CPUs write and read this without a lock: a mixture of two decisions does not
    /// pass for one. Each field counts by an odd factor of its own, so that the multiplications, which are most of
    /// the work, do not wait for each other.
    #[inline(always)]
    #[must_use]
    pub fn sum(&self) -> u32 {
        const FACTORS: [u64; 9] = [
            0x9e37_79b9_7f4a_7c15,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
            0xd6e8_feb8_6659_fd93,
            0xa076_1d64_78bd_642f,
            0xe703_7ed1_a0b4_28db,
            0x8ebc_6af0_9c88_c6e3,
            0x5899_65cc_7537_4cc3,
            0x1d8e_4e27_c47d_124f,
        ];
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.next;
        let word = |a, b, c, d| u32::from_ne_bytes([a, b, c, d]);
        let fields = [
            self.epoch,
            self.made,
            self.ingress,
            self.egress,
            u32::from(self.kind) << 16 | u32::from(self.fits),
            word(a, b, c, d),
            word(e, f, g, h),
            word(i, j, k, l),
            word(m, n, o, p),
        ];
        let mut sum = 0u64;
        let mut n = 0;
        while n < FACTORS.len() {
            sum = sum.wrapping_add(u64::from(fields[n]).wrapping_mul(FACTORS[n]));
            n += 1;
        }
        // The upper half, on which every bit of every field has a say.
        hash::high(sum)
    }
}

/// Value of `coil_lost`, one for the node: what keeps UDP from being fast.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Lost {
    /// Marks of the kernel's flows that found no room since the agent last read connection tracking.
    pub marks: u32,
}

plain! {
    FlowKey { A, A, u16, u16, u32 }
}
