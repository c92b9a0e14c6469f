//! The maps. Their names are the names of their pins.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::bpf_fib_lookup,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::btf_map,
};
use coil_packet::{
    Addr, COUNTERS, Decision, Family, Path, Reason,
    abi::{
        AffinityKey, AffinityValue, ClientKey, ClientValue, Config, Counter, Event, FlowKey, FlowValue,
        FragKey, FragValue, GatewayKey, GatewayValue, HOPS, Lost, Maglev, NatKey, NatRevKey, NatRevValue,
        NatValue, PACE, PORT_ROWS, PORT_WORDS_OF_ROW, Pace, PathKey, PathValue, PinKey, PinValue, PodValue,
        PolicyKey, PoolValue, PortRow, Tally, UplinkValue, Way,
    },
    counter_index,
    mtu::Search,
    ports::OWN_WORDS,
};

// Most entries. The agent may ask for more when it creates a map.
const PODS: usize = 4096;
const POOLS: usize = 1024;
const POLICIES: usize = 65536;
const GATEWAYS: usize = 16384;
const EGRESSES: usize = 512;
const UPLINKS: usize = 64;
const FLOWS: usize = 65536;
const DATAGRAMS: usize = 65536;
/// Bytes of the ring of events: a few hundred of them.
const EVENTS: usize = 32768;
const NATS: usize = 1_000_000;
const PINS: usize = 65536;
/// Clients of this node, and the Egresses of each.
const AFFINITIES: usize = 65536;
const FRAGMENTS: usize = 4096;
/// Pairs of pods between which the path is narrower than the link.
const PATHS: usize = 16384;
const CLIENTS: usize = 65536;
/// Clients of all gateways of one node, of any node.
const SENDERS: usize = 262_144;
/// Gateways of one node, past ones included until the agent forgets them.
const TALLIES: usize = 1024;

/// `BPF_F_NO_PREALLOC`: memory is taken with the entries.
const GROWS: usize = 1;

/// The maps of one family.
pub(crate) trait Maps: Sized + 'static {
    fn pods() -> &'static HashMap<Self, PodValue, PODS>;
    fn pools() -> &'static LpmTrie<Self, PoolValue, POOLS>;
    fn policy() -> &'static LpmTrie<PolicyKey<Self>, u32, POLICIES>;
    fn gateways() -> &'static HashMap<GatewayKey<Self>, GatewayValue, GATEWAYS>;
    fn clients() -> &'static HashMap<ClientKey<Self>, ClientValue, SENDERS, GROWS>;
    fn maglev() -> &'static HashMap<u32, Maglev<Self>, EGRESSES>;
    fn flows() -> &'static HashMap<FlowKey<Self>, FlowValue, FLOWS>;
    fn datagrams() -> &'static HashMap<FlowKey<Self>, FlowValue, DATAGRAMS>;
    fn nat() -> &'static HashMap<NatKey<Self>, NatValue, NATS, GROWS>;
    fn nat_rev() -> &'static HashMap<NatRevKey<Self>, NatRevValue<Self>, NATS, GROWS>;
    fn pin() -> &'static LruHashMap<PinKey<Self>, PinValue<Self>, PINS>;
    fn affinity() -> &'static LruHashMap<AffinityKey<Self>, AffinityValue<Self>, AFFINITIES>;
    fn frags() -> &'static LruHashMap<FragKey<Self>, FragValue, FRAGMENTS>;
    fn paths() -> &'static LruHashMap<PathKey<Self>, PathValue, PATHS>;
    fn lent() -> &'static HashMap<Self, u32, CLIENTS, GROWS>;
    fn returned() -> &'static HashMap<Self, u32, CLIENTS, GROWS>;
    fn tally() -> &'static HashMap<Self, Tally, TALLIES, GROWS>;
}

macro_rules! family_maps {
    ($addr:ty, $module:ident: $pods:literal $pools:literal $policy:literal $gateways:literal $clients:literal
     $maglev:literal $flows:literal $datagrams:literal $nat:literal $nat_rev:literal $pin:literal $affinity:literal $frags:literal
     $paths:literal $lent:literal $returned:literal $tally:literal) => {
        mod $module {
            use super::*;

            #[btf_map(name = $pods)]
            static PODS: HashMap<$addr, PodValue, { super::PODS }> = HashMap::new();
            #[btf_map(name = $pools)]
            static POOLS: LpmTrie<$addr, PoolValue, { super::POOLS }> = LpmTrie::new();
            #[btf_map(name = $policy)]
            static POLICY: LpmTrie<PolicyKey<$addr>, u32, POLICIES> = LpmTrie::new();
            #[btf_map(name = $gateways)]
            static GATEWAYS: HashMap<GatewayKey<$addr>, GatewayValue, { super::GATEWAYS }> = HashMap::new();
            #[btf_map(name = $clients)]
            static CLIENTS: HashMap<ClientKey<$addr>, ClientValue, SENDERS, GROWS> = HashMap::new();
            #[btf_map(name = $maglev)]
            static MAGLEV: HashMap<u32, Maglev<$addr>, EGRESSES> = HashMap::new();
            #[btf_map(name = $flows)]
            static FLOWS: HashMap<FlowKey<$addr>, FlowValue, { super::FLOWS }> = HashMap::new();
            #[btf_map(name = $datagrams)]
            static DATAGRAMS: HashMap<FlowKey<$addr>, FlowValue, { super::DATAGRAMS }> = HashMap::new();
            #[btf_map(name = $nat)]
            static NAT: HashMap<NatKey<$addr>, NatValue, NATS, GROWS> = HashMap::new();
            #[btf_map(name = $nat_rev)]
            static NAT_REV: HashMap<NatRevKey<$addr>, NatRevValue<$addr>, NATS, GROWS> = HashMap::new();
            #[btf_map(name = $pin)]
            static PIN: LruHashMap<PinKey<$addr>, PinValue<$addr>, PINS> = LruHashMap::new();
            #[btf_map(name = $affinity)]
            static AFFINITY: LruHashMap<AffinityKey<$addr>, AffinityValue<$addr>, AFFINITIES> = LruHashMap::new();
            #[btf_map(name = $frags)]
            static FRAGS: LruHashMap<FragKey<$addr>, FragValue, { super::FRAGMENTS }> = LruHashMap::new();
            #[btf_map(name = $paths)]
            static PATHS: LruHashMap<PathKey<$addr>, PathValue, { super::PATHS }> = LruHashMap::new();
            #[btf_map(name = $lent)]
            static LENT: HashMap<$addr, u32, { super::CLIENTS }, GROWS> = HashMap::new();
            #[btf_map(name = $returned)]
            static RETURNED: HashMap<$addr, u32, { super::CLIENTS }, GROWS> = HashMap::new();
            #[btf_map(name = $tally)]
            static TALLY: HashMap<$addr, Tally, TALLIES, GROWS> = HashMap::new();

            #[rustfmt::skip]
            impl Maps for $addr {
                #[inline(always)]
                fn pods() -> &'static HashMap<Self, PodValue, { super::PODS }> { &PODS }
                #[inline(always)]
                fn pools() -> &'static LpmTrie<Self, PoolValue, { super::POOLS }> { &POOLS }
                #[inline(always)]
                fn policy() -> &'static LpmTrie<PolicyKey<Self>, u32, POLICIES> { &POLICY }
                #[inline(always)]
                fn gateways() -> &'static HashMap<GatewayKey<Self>, GatewayValue, { super::GATEWAYS }> { &GATEWAYS }
                #[inline(always)]
                fn clients() -> &'static HashMap<ClientKey<Self>, ClientValue, SENDERS, GROWS> { &CLIENTS }
                #[inline(always)]
                fn maglev() -> &'static HashMap<u32, Maglev<Self>, EGRESSES> { &MAGLEV }
                #[inline(always)]
                fn flows() -> &'static HashMap<FlowKey<Self>, FlowValue, { super::FLOWS }> { &FLOWS }
                #[inline(always)]
                fn datagrams() -> &'static HashMap<FlowKey<Self>, FlowValue, { super::DATAGRAMS }> { &DATAGRAMS }
                #[inline(always)]
                fn nat() -> &'static HashMap<NatKey<Self>, NatValue, NATS, GROWS> { &NAT }
                #[inline(always)]
                fn nat_rev() -> &'static HashMap<NatRevKey<Self>, NatRevValue<Self>, NATS, GROWS> { &NAT_REV }
                #[inline(always)]
                fn pin() -> &'static LruHashMap<PinKey<Self>, PinValue<Self>, PINS> { &PIN }
                #[inline(always)]
                fn affinity() -> &'static LruHashMap<AffinityKey<Self>, AffinityValue<Self>, AFFINITIES> { &AFFINITY }
                #[inline(always)]
                fn frags() -> &'static LruHashMap<FragKey<Self>, FragValue, { super::FRAGMENTS }> { &FRAGS }
                #[inline(always)]
                fn paths() -> &'static LruHashMap<PathKey<Self>, PathValue, { super::PATHS }> { &PATHS }
                #[inline(always)]
                fn lent() -> &'static HashMap<Self, u32, { super::CLIENTS }, GROWS> { &LENT }
                #[inline(always)]
                fn returned() -> &'static HashMap<Self, u32, { super::CLIENTS }, GROWS> { &RETURNED }
                #[inline(always)]
                fn tally() -> &'static HashMap<Self, Tally, TALLIES, GROWS> { &TALLY }
            }
        }
    };
}

family_maps!([u8; 4], v4: "coil_pods4" "coil_pools4" "coil_policy4" "coil_gateways4"
    "coil_clients4" "coil_maglev4" "coil_flows4" "coil_datagrams4" "coil_nat4" "coil_nat_rev4" "coil_pin4" "coil_affinity4" "coil_frags4"
    "coil_paths4" "coil_lent4" "coil_returned4" "coil_tally4");
family_maps!([u8; 16], v6: "coil_pods6" "coil_pools6" "coil_policy6" "coil_gateways6"
    "coil_clients6" "coil_maglev6" "coil_flows6" "coil_datagrams6" "coil_nat6" "coil_nat_rev6" "coil_pin6" "coil_affinity6" "coil_frags6"
    "coil_paths6" "coil_lent6" "coil_returned6" "coil_tally6");

#[btf_map(name = "coil_config")]
static CONFIG: Array<Config, 1> = Array::new();
#[btf_map(name = "coil_uplinks")]
static UPLINK_LINKS: HashMap<u32, UplinkValue, UPLINKS> = HashMap::new();
#[btf_map(name = "coil_lost")]
static LOST: Array<Lost, 1> = Array::new();
#[btf_map(name = "coil_ports")]
static PORTS: Array<PortRow, { PORT_ROWS as usize }> = Array::new();
#[btf_map(name = "coil_own_ports")]
static OWN_PORTS: Array<u64, { OWN_WORDS as usize }> = Array::new();
#[btf_map(name = "coil_hops")]
static NEXT_HOPS: Array<Way, { HOPS as usize }> = Array::new();
#[btf_map(name = "coil_counters")]
static COUNTS: PerCpuArray<Counter, COUNTERS> = PerCpuArray::new();

#[btf_map(name = "coil_events")]
static DROPPED: RingBuf<Event, EVENTS> = RingBuf::new();
#[btf_map(name = "coil_pace")]
static PACES: Array<Pace, 1> = Array::new();

#[btf_map(name = "coil_scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[btf_map(name = "coil_clock")]
static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();

/// The second that a CPU knows.
#[repr(C)]
struct Clock {
    /// The tick in which it was read.
    tick: u64,
    /// The second of the monotonic clock.
    second: u64,
}

/// Seconds of the monotonic clock, read once a tick: a counter that the kernel advances is cheaper to ask than a clock.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "136 years of uptime")]
pub(crate) fn second() -> u32 {
    // SAFETY: both helpers take nothing.
    let (tick, now) = (unsafe { bpf_jiffies64() }, || unsafe { bpf_ktime_get_ns() } / 1_000_000_000);
    let Some(clock) = CLOCK.get_ptr_mut(0) else { return now() as u32 };
    // SAFETY: a pointer into this CPU's value. Programs do not preempt each other.
    unsafe {
        if (*clock).tick != tick {
            (*clock).second = now();
            (*clock).tick = tick;
        }
        (*clock).second as u32
    }
}

#[btf_map(name = "coil_fib")]
static FIB: PerCpuArray<FibWords, 1> = PerCpuArray::new();

/// `struct bpf_fib_lookup` in words, one that is 1 when the answer has MAC addresses, and one for a search.
type FibWords = [u64; 10];

/// A question to the routing, and its answer.
#[repr(C)]
pub(crate) struct Fib {
    pub(crate) params: bpf_fib_lookup,
    pub(crate) has_macs: u64,
    /// Goes on over several questions.
    pub(crate) search: Search,
}

/// This CPU's room for a question to the routing: the stack of a deep call has none.
#[inline(always)]
pub(crate) fn fib_room() -> Option<&'static mut Fib> {
    const {
        assert!(size_of::<Fib>() == size_of::<FibWords>());
        assert!(align_of::<Fib>() <= align_of::<FibWords>());
    }
    // SAFETY: large enough, aligned, integers and unions of integers; of this CPU alone while the program runs.
    FIB.get_ptr_mut(0).map(|slot| unsafe { &mut *slot.cast() })
}

/// The same, all zero but the search.
#[inline(always)]
pub(crate) fn fib_question() -> Option<&'static mut Fib> {
    let room = fib_room()?;
    // SAFETY: it has as many words.
    unsafe { zero::<u64, { offset_of!(Fib, search) / 8 }>((&raw mut *room).cast()) };
    Some(room)
}

/// Zeroes `N` words by volatile stores: anything else could become a call of memset, which has a stack of its own, and
/// there is none left.
///
/// # Safety
/// `at` is aligned, and has `N` words to write.
#[inline(always)]
pub(crate) unsafe fn zero<W: Default, const N: usize>(at: *mut W) {
    let mut n = 0;
    while n < N {
        // SAFETY: the caller's promise.
        unsafe { at.add(n).write_volatile(W::default()) };
        n += 1;
    }
}

/// Copies `N` words, likewise: the places may be one for all that the compiler knows, and a call of memmove costs more
/// than what it moves.
///
/// # Safety
/// Both places are aligned, and have `N` words.
#[inline(always)]
pub(crate) unsafe fn copy<W: Copy, const N: usize>(to: *mut W, from: *const W) {
    let mut n = 0;
    while n < N {
        // SAFETY: the caller's promise.
        unsafe { to.add(n).write_volatile(from.add(n).read_volatile()) };
        n += 1;
    }
}

/// Adds to a number that other CPUs add to. The compiler offers no such addition for this target, which every kernel has.
///
/// # Safety
/// `number` is a map's, aligned and valid.
#[inline(always)]
pub(crate) unsafe fn add(number: *mut u64, more: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({number} + 0) += {more}", number = in(reg) number, more = in(reg) more);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above; for lints alone.
    unsafe {
        number.write(number.read().wrapping_add(more));
    }
}

/// Memory for one decision of either family.
#[repr(C)]
struct Scratch {
    words: [u64; 96],
}

/// This CPU's room for a decision.
#[inline(always)]
pub(crate) fn scratch<A: Addr>() -> Option<&'static mut Decision<A>> {
    const {
        assert!(size_of::<Decision<A>>() <= size_of::<Scratch>());
        assert!(align_of::<Decision<A>>() <= align_of::<Scratch>());
    }
    let slot = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: large enough, aligned, of this CPU alone while the program runs. What an earlier packet of
    // the other family left there is overwritten before it is read: `run` decides first.
    Some(unsafe { &mut *slot.cast() })
}

/// The node's configuration; all zero until the agent has written it.
#[inline(always)]
pub(crate) fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// Marks that found no room.
#[inline(always)]
pub(crate) fn lost() -> Option<*mut Lost> {
    LOST.get_ptr_mut(0)
}

/// A word of the ports that are probably lent.
#[inline(always)]
pub(crate) fn ports(word: u32) -> Option<*mut u64> {
    let row = PORTS.get_ptr_mut(word / PORT_WORDS_OF_ROW)?;
    let column = (word % PORT_WORDS_OF_ROW) as usize;
    // SAFETY: a pointer into the map's value, which has more words than the column's number.
    Some(unsafe { (&raw mut (*row).words).cast::<u64>().add(column) })
}

/// A word of the ports that gateway pods have for themselves.
#[inline(always)]
pub(crate) fn own_ports(word: u32) -> Option<*const u64> {
    OWN_PORTS.get_ptr(word)
}

/// A slot of the hops.
#[inline(always)]
pub(crate) fn hop(slot: u32) -> Option<*mut Way> {
    NEXT_HOPS.get_ptr_mut(slot)
}

/// True when `from_net` is attached to the link.
#[inline(always)]
pub(crate) fn is_uplink(ifindex: u32) -> bool {
    UPLINK_LINKS.get_ptr(ifindex).is_some()
}

/// Tells the agent of a packet, unless it has just been told of another.
#[inline(always)]
pub(crate) fn tell(event: &Event) {
    let Some(pace) = PACES.get_ptr_mut(0) else { return };
    // SAFETY: the helper takes nothing and reads a clock.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a pointer into the map's value; CPUs that meet here tell of one packet more.
    unsafe {
        if (*pace).next > now {
            return;
        }
        (*pace).next = now + PACE;
    }
    // A full ring loses it: it is a sample.
    let _ = DROPPED.output_untyped::<Event>(event, 0);
}

/// Adds a packet to its counter.
#[inline(always)]
pub(crate) fn count(path: Path, family: Family, reason: Reason, bytes: u32) {
    if let Some(counter) = COUNTS.get_ptr_mut(counter_index(path, family, reason)) {
        // SAFETY: this CPU's own slot; TC programs do not preempt each other on one CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}
