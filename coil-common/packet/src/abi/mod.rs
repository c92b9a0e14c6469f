//! What the programs and the agent share: keys and values of the maps.
//!
//! Fixed-width integers, network byte order only inside addresses, explicit padding that is
//! always zero, sizes asserted. Ports are in the machine's byte order, so that a map dump
//! shows them as people write them. A layout that changes gets a new map name.

mod event;
mod flow;
mod nat;
mod node;
#[cfg(feature = "user")]
mod user;

pub use event::{Event, PACE, Pace};
pub use flow::{FlowKey, FlowValue, Lost, Way, way_kind};
pub use nat::{
    AffinityKey, AffinityValue, FragKey, FragValue, HOPS, Known, NatKey, NatRevKey, NatRevValue, NatValue,
    PORT_ROWS, PORT_WORDS_OF_ROW, PathKey, PathValue, PinKey, PinValue, PortRow, Tally,
};
pub use node::{
    ClientKey, ClientValue, Config, Counter, GatewayKey, GatewayValue, Maglev, NONE, PodValue, PolicyKey,
    PoolValue, UplinkValue, cluster_range, config_flag, egress_flag, gateway_flag, pod_flag,
};

/// The number of slots of a Maglev table, as a power of two.
pub const MAGLEV_BITS: u32 = 8;

/// Slots of a Maglev table: well above the gateways of one Egress. A power of two, for the verifier; an odd
/// step visits all slots then, as any step does where their number is prime.
pub const MAGLEV_SLOTS: usize = 1 << MAGLEV_BITS;

/// States `what` as plain old data in both families, after checking that no byte of it is padding.
macro_rules! plain {
    ($($what:ident { $($field:ty),+ $(,)? })+) => {$(
        const _: () = assert!(size_of::<$what<[u8; 4]>>() == plain!(@sum [u8; 4], $($field),+));
        const _: () = assert!(size_of::<$what<[u8; 16]>>() == plain!(@sum [u8; 16], $($field),+));
        // SAFETY: repr(C), every field is plain old data, and the assertions above show that
        // the fields fill the whole type.
        unsafe impl<A: $crate::Addr> bytemuck::Zeroable for $what<A> {}
        // SAFETY: as above.
        unsafe impl<A: $crate::Addr> bytemuck::Pod for $what<A> {}
    )+};
    (@sum $addr:ty, $($field:ty),+) => {{
        type A = $addr;
        0 $(+ size_of::<$field>())+
    }};
}
pub(crate) use plain;
