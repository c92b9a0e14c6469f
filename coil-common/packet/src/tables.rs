//! What a decision looks up. BPF maps and the kernel's FIB in a program, hash maps in a test.

use crate::{
    Addr, Family,
    abi::{
        AffinityKey, AffinityValue, ClientKey, Config, FlowKey, FlowValue, FragKey, FragValue, NatKey,
        NatRevKey, NatRevValue, NatValue, PathKey, PathValue, PinKey, PinValue, PodValue, Way,
    },
    nat::Tallied,
};

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// There is one already.
    Exists,
    /// The table is full.
    Full,
}

/// The table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A question to the kernel's routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FibQuery<A> {
    /// The link on which the packet counts as received (policy rules look at it).
    pub ifindex: u32,
    /// Source.
    pub src: A,
    /// Destination.
    pub dst: A,
    /// IP protocol.
    pub protocol: u8,
    /// Source port, 0 when there is none.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Length of the largest L3 packet to be sent, in bytes.
    pub len: u32,
    /// Type of service, or traffic class: rules and routes may look at it.
    pub tos: u8,
}

/// A next hop: an IPv4 route may go through an IPv6 neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Family of `addr`.
    pub family: Family,
    /// The neighbour, network byte order; IPv4 in the first four bytes.
    pub addr: [u8; 16],
}

/// The kernel's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fib {
    /// Forward to this neighbour.
    Forward {
        /// The link to send on.
        ifindex: u32,
        /// The neighbour.
        via: NextHop,
        /// A length that fits the route, at least that of the question: the route's MTU since Linux 5.12
        /// (commit e1850ea9bd9e), when the neighbour is known.
        fits: u32,
    },
    /// The route's MTU is smaller than the packet.
    TooBig {
        /// The MTU, 0 when no length fits.
        mtu: u32,
    },
    /// Not for forwarding: local, blackhole, no route, forwarding off.
    Refused,
}

/// Lookups and insertions of one family.
pub trait Tables<A: Addr> {
    /// The node's configuration.
    fn config(&self) -> Config;
    /// Seconds of the monotonic clock.
    fn now(&self) -> u32;
    /// The pod of this node with the address.
    fn pod(&self, addr: &A) -> Option<PodValue>;
    /// True when the address belongs to an AddressPool.
    fn in_pools(&self, addr: &A) -> bool;
    /// True when the link is an uplink.
    fn is_uplink(&self, ifindex: u32) -> bool;
    /// The Egress that takes packets of the policy to `dst`.
    fn policy(&self, policy: u32, dst: &A) -> Option<u32>;
    /// Settings of an Egress: bits of [`crate::abi::egress_flag`].
    fn egress_flags(&self, egress: u32) -> Option<u32>;
    /// The gateway of an Egress for a hash; none when no gateway takes new flows.
    fn gateway(&self, egress: u32, hash: u32) -> Option<A>;
    /// Bits of [`crate::abi::gateway_flag`] when the address is a gateway of an Egress that the policy uses.
    fn gateway_of(&self, policy: u32, addr: &A) -> Option<u32>;
    /// True for a known client of a gateway of this node.
    fn is_client(&self, key: &ClientKey<A>) -> bool;
    /// Looks at the gateway of a flow, and changes it in place; none without a pin.
    fn with_pin<R>(&mut self, key: &PinKey<A>, work: impl FnOnce(&mut PinValue<A>) -> R) -> Option<R>;
    /// Remembers it. A table without room forgets the oldest.
    fn put_pin(&mut self, key: &PinKey<A>, value: &PinValue<A>);
    /// Looks at the gateway of a client, and changes it in place; none without one.
    fn with_affinity<R>(
        &mut self,
        key: &AffinityKey<A>,
        work: impl FnOnce(&mut AffinityValue<A>) -> R,
    ) -> Option<R>;
    /// Remembers it. A table without room forgets the oldest.
    fn put_affinity(&mut self, key: &AffinityKey<A>, value: &AffinityValue<A>);
    /// What the first fragment of a packet said.
    fn frag(&self, key: &FragKey<A>) -> Option<FragValue>;
    /// Remembers it. A table without room forgets the oldest.
    fn put_frag(&mut self, key: &FragKey<A>, value: &FragValue);
    /// What routers have said of a path.
    fn path(&self, key: &PathKey<A>) -> Option<PathValue>;
    /// Remembers it. A table without room forgets the oldest.
    fn put_path(&mut self, key: &PathKey<A>, value: &PathValue);
    /// Counts a port that a client is lent; false when it has as many as it may.
    fn borrow_port(&mut self, client: &A, quota: u32) -> bool;
    /// Looks at a flow's entry, and changes it in place; none without an entry.
    fn with_flow<R>(&mut self, key: &FlowKey<A>, work: impl FnOnce(&mut FlowValue) -> R) -> Option<R>;
    /// Adds a flow's entry unless there is one.
    fn add_flow(&mut self, key: &FlowKey<A>, value: &FlowValue) -> Result<(), Insert>;
    /// Notes that the kernel has a flow which found no room.
    fn lose_mark(&mut self);
    /// True when the kernel has such flows.
    fn lost_marks(&self) -> bool;
    /// The translation of a client's flow.
    fn nat(&self, key: &NatKey<A>) -> Option<NatValue>;
    /// Looks at it, and changes it in place; none without one.
    fn with_nat<R>(&mut self, key: &NatKey<A>, work: impl FnOnce(&mut NatValue) -> R) -> Option<R>;
    /// Creates or replaces the translation of a client's flow.
    fn put_nat(&mut self, key: &NatKey<A>, value: &NatValue) -> Result<(), Full>;
    /// To whom a port is lent.
    fn nat_rev(&self, key: &NatRevKey<A>) -> Option<NatRevValue<A>>;
    /// Lends a port unless it is lent.
    fn add_nat_rev(&mut self, key: &NatRevKey<A>, value: &NatRevValue<A>) -> Result<(), Insert>;
    /// Takes a port back.
    fn remove_nat_rev(&mut self, key: &NatRevKey<A>);
    /// Looks at a lease, and changes it in place; none without one.
    fn with_nat_rev<R>(
        &mut self,
        key: &NatRevKey<A>,
        work: impl FnOnce(&mut NatRevValue<A>) -> R,
    ) -> Option<R>;
    /// Copies what a slot of [`crate::hops`] holds; false when there is no such slot.
    fn hop(&self, slot: u32, way: &mut Way) -> bool;
    /// Writes it.
    fn put_hop(&mut self, slot: u32, way: &Way);
    /// A word of [`crate::ports`]; a number of no word has all its ports lent.
    fn ports(&self, word: u32) -> u64;
    /// Sets bits of such a word.
    fn note_ports(&mut self, word: u32, bits: u64);
    /// A word of [`crate::ports::own`]: ports that the gateway pods of this node have for themselves.
    fn own_ports(&self, word: u32) -> u64;
    /// Counts what a gateway did for a packet of `len` bytes.
    fn tally(&mut self, gateway: &A, what: Tallied, len: u32);
    /// Asks the kernel's routing.
    fn fib(&self, query: &FibQuery<A>) -> Fib;
    /// MAC addresses of the neighbour that [`Self::fib`] has just named, and of the link; none when the kernel does not
    /// know the neighbour yet.
    fn macs(&self) -> Option<[u8; 12]>;
}
