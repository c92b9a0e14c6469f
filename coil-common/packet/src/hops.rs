//! Where the decisions lead that egress flows remember: `coil_hops`.
//!
//! A million flows leave a node by a few next hops. So a flow's entry holds eight bytes ([`Known`]): when the decision
//! was made, and the number of its hop. The hop's slot holds the link, the MAC addresses and the MTU; that number and a
//! check keep a flow from what another hop has written there. Like any decision both hold for one second and one epoch:
//! the first packet of a second asks everybody again, which also keeps the kernel's knowledge of the neighbour fresh.

use crate::{
    Addr, Tables,
    abi::{Config, HOPS, Known, Way},
};

/// [`Known::hop`] of a flow whose gateway is on this node: no way to it is needed.
pub const HERE: u32 = 1;

/// When a decision begins: what it looks up is not older. An epoch that begins meanwhile is not its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The configuration's epoch.
    pub epoch: u32,
    /// The second of the monotonic clock.
    pub second: u32,
}

impl Moment {
    /// Now. To be asked before anything is looked up.
    #[inline(always)]
    pub fn now<A: Addr, T: Tables<A>>(tables: &T) -> Self {
        Self { epoch: tables.config().epoch, second: tables.now() }
    }
}

/// The slot of a hop.
#[inline(always)]
#[must_use]
pub const fn slot(hop: u32) -> u32 {
    hop & (HOPS - 1)
}

/// The number of a hop: of where it leads and what fits, never 0 and never [`HERE`].
#[inline(always)]
#[must_use]
pub fn number(way: &Way) -> u32 {
    let timeless = Way { epoch: 0, made: 0, ingress: 0, check: 0, ..*way };
    match timeless.sum() {
        small @ 0..=HERE => small + 2,
        number => number,
    }
}

impl Known {
    /// A decision that began at a moment.
    #[inline(always)]
    #[must_use]
    pub const fn since(moment: &Moment, hop: u32) -> Self {
        Self { stamp: stamp(moment.epoch, moment.second), hop }
    }

    /// True for a decision of this second and this epoch.
    #[inline(always)]
    #[must_use]
    pub const fn holds(&self, config: &Config, now: u32) -> bool {
        self.hop != 0 && self.stamp == stamp(config.epoch, now)
    }

    /// The same decision for packets of one type of service alone, which the routing may look at.
    #[inline(always)]
    #[must_use]
    pub const fn of_service(self, tos: u8) -> Self {
        // Without the bits of ECN, which it does not look at.
        Self { stamp: self.stamp ^ ((tos >> 2) as u32) << 26, ..self }
    }
}

/// Epoch and second as one number. Two pairs share one only when their seconds are months apart: epochs that follow one
/// another are multiplied far from each other.
#[inline(always)]
const fn stamp(epoch: u32, now: u32) -> u32 {
    epoch.wrapping_mul(0x9e37_79b1) ^ now
}

/// Notes a way for flows that take it; the answer is its number, 0 when it leads to a neighbour whose MAC address the
/// kernel, which has just been asked, does not know yet.
#[inline(never)]
pub fn note<A: Addr, T: Tables<A>>(way: &mut Way, moment: &Moment, tables: &mut T) -> u32 {
    if !way.is_to_pod() {
        let Some(macs) = tables.macs() else { return 0 };
        way.to_link(macs);
    }
    let hop = number(way);
    // What the number stands for is in the check, in the place of the link on which packets come in.
    way.seal(moment, hop);
    tables.put_hop(slot(hop), way);
    hop
}

/// Finds the way of a hop, for a packet of `len` bytes. False when it is not known any more.
#[inline(always)]
pub fn find<A: Addr, T: Tables<A>>(hop: u32, len: u32, config: &Config, way: &mut Way, tables: &T) -> bool {
    tables.hop(slot(hop), way) && way.holds(config, tables.now(), hop, len)
}
