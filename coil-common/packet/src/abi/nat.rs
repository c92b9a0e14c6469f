//! Tables that the programs write: translations.

use super::{Counter, plain};

/// Key of `coil_nat4` and `coil_nat6`: a flow as the client sees it, per gateway.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NatKey<A> {
    /// The gateway pod that lends its address.
    pub gateway: A,
    /// The client pod.
    pub client: A,
    /// The destination outside.
    pub remote: A,
    /// The client's port, or the identifier of an ICMP echo.
    pub client_port: u16,
    /// The destination's port, 0 for ICMP echo.
    pub remote_port: u16,
    /// IP protocol.
    pub protocol: u32,
}

/// Value of `coil_nat4` and `coil_nat6`. Valid only while the reverse entry points back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct NatValue {
    /// The gateway's port (or echo identifier) that stands for the client's.
    pub port: u16,
    /// Zero.
    pub pad: u16,
    /// What was decided for the flow's packets.
    pub known: Known,
}
const _: () = assert!(size_of::<NatValue>() == 12);

/// A decision that an entry of a flow remembers, and when it was made: see [`crate::hops`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Known {
    /// Of the epoch and the second in which it was made.
    pub stamp: u32,
    /// Where it leads, 0 for nowhere that is known.
    pub hop: u32,
}

/// Slots of `coil_hops`; a power of two.
pub const HOPS: u32 = 4096;

/// Key of `coil_nat_rev4` and `coil_nat_rev6`: a flow as the remote sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NatRevKey<A> {
    /// The gateway pod.
    pub gateway: A,
    /// The address outside.
    pub remote: A,
    /// The gateway's port (or echo identifier).
    pub port: u16,
    /// The remote's port, 0 for ICMP echo.
    pub remote_port: u16,
    /// IP protocol.
    pub protocol: u32,
}

/// Value of `coil_nat_rev4` and `coil_nat_rev6`: to whom the port is lent, and since when it is idle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatRevValue<A> {
    /// The client pod.
    pub client: A,
    /// Last packet in either direction, in seconds of the monotonic clock.
    pub seen: u32,
    /// The client's port.
    pub client_port: u16,
    /// See [`crate::nat::State`].
    pub state: u8,
    /// Zero.
    pub pad: u8,
    /// What was decided for packets of the remote.
    pub known: Known,
}

/// Value of `coil_tally4` and `coil_tally6`: what a gateway did for new flows. One counter for each of
/// [`crate::nat::Tallied`], in that order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Tally {
    /// Packets that began a translation.
    pub lent: Counter,
    /// Packets of no flow that is known.
    pub invalid: Counter,
    /// New flows towards a remote that has all ports that were tried.
    pub no_port: Counter,
    /// New flows that the tables had no room for.
    pub no_room: Counter,
    /// New flows of a client that has as many as it may.
    pub no_quota: Counter,
}

/// Rows of `coil_ports`, for both families; a power of two.
pub const PORT_ROWS: u32 = 4096;
/// Words of a row; a power of two. With a million leases one bit in sixteen is set.
pub const PORT_WORDS_OF_ROW: u32 = 64;

/// Value of `coil_ports`: see [`crate::ports`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PortRow {
    /// A bit for each port that is probably lent.
    pub words: [u64; PORT_WORDS_OF_ROW as usize],
}

/// Key of `coil_pin4` and `coil_pin6`: a client's flow, of whatever Egress.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PinKey<A> {
    /// The client.
    pub client: A,
    /// The destination outside.
    pub remote: A,
    /// Zero.
    pub pad: u32,
    /// The client's port, or the identifier of an ICMP echo.
    pub client_port: u16,
    /// The destination's port, 0 for ICMP echo.
    pub remote_port: u16,
    /// IP protocol.
    pub protocol: u32,
}

/// Value of `coil_pin4` and `coil_pin6`: the gateway that was chosen. It holds while the Egress has that gateway.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinValue<A> {
    /// The gateway pod.
    pub gateway: A,
    /// Last packet, in seconds of the monotonic clock.
    pub seen: u32,
    /// The Egress.
    pub egress: u32,
    /// The pod's link on which the flow's packets come in.
    pub ingress: u32,
    /// What was decided for the flow's packets.
    pub known: Known,
    /// UDP source port of the encapsulation.
    pub sport: u16,
    /// Zero.
    pub pad: u16,
}

/// Key of `coil_affinity4` and `coil_affinity6`: a client of an Egress whose clients keep their gateway. A table of its own:
/// however many flows there are, they take no client's place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey<A> {
    /// The client.
    pub client: A,
    /// The Egress.
    pub egress: u32,
}

/// Value of `coil_affinity4` and `coil_affinity6`: the gateway that was chosen. It holds while the Egress has that gateway
/// and it takes new flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityValue<A> {
    /// The gateway pod.
    pub gateway: A,
    /// When a flow began last, in seconds of the monotonic clock.
    pub seen: u32,
}

/// Key of `coil_frags4` and `coil_frags6`: a packet that comes in fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragKey<A> {
    /// Source.
    pub src: A,
    /// Destination.
    pub dst: A,
    /// Identification.
    pub id: u32,
    /// IP protocol.
    pub protocol: u32,
}

/// Value of `coil_frags4` and `coil_frags6`: what the first fragment says of the others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FragValue {
    /// When it came, in seconds of the monotonic clock.
    pub seen: u32,
    /// Source port, or the identifier of an echo request.
    pub sport: u16,
    /// Destination port, or the identifier of an echo reply.
    pub dport: u16,
}

/// Key of `coil_paths4` and `coil_paths6`: between a pod of this node that sends FOU and one of another. Of its own for each pair:
/// what somebody made a router say about one, no other has to bear.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathKey<A> {
    /// The client or the gateway that sends.
    pub from: A,
    /// The gateway or the client to whom.
    pub to: A,
}

/// Value of `coil_paths4` and `coil_paths6`: what routers have said of the path, which is narrower than the link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PathValue {
    /// When they said it, in seconds of the monotonic clock.
    pub seen: u32,
    /// The MTU, in bytes.
    pub mtu: u32,
}

plain! {
    PinKey { A, A, u32, u16, u16, u32 }
    AffinityKey { A, u32 }
    AffinityValue { A, u32 }
    PathKey { A, A }
    PinValue { A, u32, u32, u32, u32, u32, u16, u16 }
    FragKey { A, A, u32, u32 }
    NatKey { A, A, A, u16, u16, u32 }
    NatRevKey { A, A, u16, u16, u32 }
    NatRevValue { A, u32, u16, u8, u8, u32, u32 }
}
