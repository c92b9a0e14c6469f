//! Maps and the kernel's FIB, as the decisions see them.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::{
    bindings::{BPF_NOEXIST, bpf_fib_lookup},
    btf_maps::lpm_trie::Key,
    helpers::bpf_fib_lookup as fib_lookup,
};
use coil_packet::{
    Addr, Family, Fib, FibQuery, Full, IcmpError, Insert, NextHop, Rewrite, Tables,
    abi::{
        AffinityKey, AffinityValue, ClientKey, Config, Counter, FlowKey, FlowValue, FragKey, FragValue,
        GatewayKey, NONE, NatKey, NatRevKey, NatRevValue, NatValue, PathKey, PathValue, PinKey, PinValue,
        PodValue, PolicyKey, Tally, Way,
    },
    hash,
    mtu::Search,
    nat::Tallied,
    wire::tcp,
};

use crate::{
    maps::{self, Maps},
    skb::{AF_INET, AF_INET6, Buffer},
};

const EEXIST: i32 = -17;
/// `BPF_FIB_LKUP_RET_*`.
const FIB_SUCCESS: i64 = 0;
const FIB_NO_NEIGH: i64 = 7;
const FIB_FRAG_NEEDED: i64 = 8;
/// No answer of the kernel.
const FIB_NOT_ASKED: i64 = -1;

#[cfg(feature = "log")]
use crate::log::Shown;

/// Nothing is shown.
#[cfg(not(feature = "log"))]
pub(crate) trait Shown {}
#[cfg(not(feature = "log"))]
impl<A> Shown for A {}

/// A family with its maps and its part of `struct bpf_fib_lookup`.
pub(crate) trait Side: Addr + Rewrite + IcmpError + Maps + Shown {
    fn write_fib(params: &mut bpf_fib_lookup, src: Self, dst: Self, tos: u8);
}

impl Side for [u8; 4] {
    #[inline(always)]
    fn write_fib(params: &mut bpf_fib_lookup, src: Self, dst: Self, tos: u8) {
        params.family = AF_INET;
        // A byte of a word that the kernel's answer may have left something in.
        params.__bindgen_anon_2.flowinfo = 0;
        params.__bindgen_anon_2.tos = tos;
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
    }
}

impl Side for [u8; 16] {
    #[inline(always)]
    fn write_fib(params: &mut bpf_fib_lookup, src: Self, dst: Self, tos: u8) {
        params.family = AF_INET6;
        params.__bindgen_anon_2.flowinfo = (u32::from(tos) << 20).to_be();
        params.__bindgen_anon_3.ipv6_src = words(src);
        params.__bindgen_anon_4.ipv6_dst = words(dst);
    }
}

#[inline(always)]
fn words(addr: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = addr;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// The address of `struct bpf_redir_neigh` and `struct bpf_fib_lookup` as bytes.
#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// The kernel's tables, for one packet.
pub(crate) struct Kernel {
    skb: Buffer,
}

impl Kernel {
    #[inline(always)]
    pub(crate) fn new(skb: &Buffer) -> Self {
        Self { skb: skb.writer() }
    }
}

impl<A: Side> Tables<A> for Kernel {
    #[inline(always)]
    fn config(&self) -> Config {
        maps::config()
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        maps::second()
    }

    #[inline(always)]
    fn pod(&self, addr: &A) -> Option<PodValue> {
        // SAFETY: the agent alone writes this map; a value replaced while we copy it gives a mix of
        // two states of one pod for one packet.
        unsafe { A::pods().get(addr).copied() }
    }

    #[inline(always)]
    fn in_pools(&self, addr: &A) -> bool {
        A::pools().get(&Key::new(A::BITS, *addr)).is_some()
    }

    #[inline(always)]
    fn is_uplink(&self, ifindex: u32) -> bool {
        maps::is_uplink(ifindex)
    }

    #[inline(always)]
    fn policy(&self, policy: u32, dst: &A) -> Option<u32> {
        let key = Key::new(32 + A::BITS, PolicyKey { policy, destination: *dst });
        A::policy().get(&key).copied().filter(|egress| *egress != NONE)
    }

    #[inline(always)]
    fn egress_flags(&self, egress: u32) -> Option<u32> {
        let table = A::maglev().get_ptr(egress)?;
        // SAFETY: a pointer into the map's value, valid until the program ends.
        Some(unsafe { (*table).flags })
    }

    #[inline(always)]
    fn gateway(&self, egress: u32, hash: u32) -> Option<A> {
        let table = A::maglev().get_ptr(egress)?;
        // SAFETY: as above.
        if unsafe { (*table).gateways } == 0 {
            return None;
        }
        // SAFETY: as above; the slot is inside the array.
        Some(unsafe { *(&raw const (*table).slots).cast::<A>().add(hash::slot(hash)) })
    }

    #[inline(always)]
    fn gateway_of(&self, policy: u32, addr: &A) -> Option<u32> {
        let gateway = A::gateways().get_ptr(GatewayKey { policy, gateway: *addr })?;
        // SAFETY: as above.
        Some(unsafe { (*gateway).flags })
    }

    #[inline(always)]
    fn is_client(&self, key: &ClientKey<A>) -> bool {
        A::clients().get_ptr(key).is_some()
    }

    #[inline(always)]
    fn with_pin<R>(&mut self, key: &PinKey<A>, work: impl FnOnce(&mut PinValue<A>) -> R) -> Option<R> {
        let pin = A::pin().get_ptr_mut(key);
        // SAFETY: a pointer into the map's value, valid until the program ends. A mix of what two CPUs write of one flow
        // leads to a gateway of the Egress, or to none.
        Some(work(unsafe { &mut *pin? }))
    }

    #[inline(always)]
    fn put_pin(&mut self, key: &PinKey<A>, value: &PinValue<A>) {
        // Without room the flow has the gateway that its hash names.
        let _ = A::pin().insert(key, value, 0);
    }

    #[inline(always)]
    fn with_affinity<R>(
        &mut self,
        key: &AffinityKey<A>,
        work: impl FnOnce(&mut AffinityValue<A>) -> R,
    ) -> Option<R> {
        let kept = A::affinity().get_ptr_mut(key);
        // SAFETY: as above.
        Some(work(unsafe { &mut *kept? }))
    }

    #[inline(always)]
    fn put_affinity(&mut self, key: &AffinityKey<A>, value: &AffinityValue<A>) {
        // Without room the client has the gateway that its hash names.
        let _ = A::affinity().insert(key, value, 0);
    }

    #[inline(always)]
    fn frag(&self, key: &FragKey<A>) -> Option<FragValue> {
        // SAFETY: eight bytes, copied at once.
        unsafe { A::frags().get(key).copied() }
    }

    #[inline(always)]
    fn put_frag(&mut self, key: &FragKey<A>, value: &FragValue) {
        // Without room the packet's other fragments are lost, and counted then.
        let _ = A::frags().insert(key, value, 0);
    }

    #[inline(always)]
    fn path(&self, key: &PathKey<A>) -> Option<PathValue> {
        // SAFETY: eight bytes; of two that are written at once either will do.
        unsafe { A::paths().get(key).copied() }
    }

    #[inline(always)]
    fn put_path(&mut self, key: &PathKey<A>, value: &PathValue) {
        // Without room the next error says it again.
        let _ = A::paths().insert(key, value, 0);
    }

    #[inline(always)]
    fn borrow_port(&mut self, client: &A, quota: u32) -> bool {
        let returned = A::returned().get_ptr(client);
        // SAFETY: as above; the agent alone writes it.
        let returned = returned.map_or(0, |count| unsafe { *count });
        if let Some(lent) = A::lent().get_ptr_mut(client) {
            // SAFETY: a pointer into the map's value. A lost increment of two CPUs is made good by the agent, which
            // counts what is there.
            return unsafe {
                *lent = (*lent).wrapping_add(1);
                quota == 0 || (*lent).wrapping_sub(returned) <= quota
            };
        }
        // Without room the client has no limit.
        let _ = A::lent().insert(client, returned.wrapping_add(1), 0);
        true
    }

    #[inline(always)]
    fn with_flow<R>(&mut self, key: &FlowKey<A>, work: impl FnOnce(&mut FlowValue) -> R) -> Option<R> {
        let entry = if key.protocol == u32::from(tcp::PROTOCOL) {
            A::flows().get_ptr_mut(key)
        } else {
            A::datagrams().get_ptr_mut(key)
        };
        // SAFETY: a pointer into the map's value, valid until the program ends. Other CPUs write there too:
        // time and state are single stores, and a decision carries a check.
        Some(work(unsafe { &mut *entry? }))
    }

    #[inline(always)]
    fn add_flow(&mut self, key: &FlowKey<A>, value: &FlowValue) -> Result<(), Insert> {
        let flags = u64::from(BPF_NOEXIST);
        let added = if key.protocol == u32::from(tcp::PROTOCOL) {
            A::flows().insert(key, value, flags)
        } else {
            A::datagrams().insert(key, value, flags)
        };
        added.map_err(|error| if error == EEXIST { Insert::Exists } else { Insert::Full })
    }

    #[inline(always)]
    fn lose_mark(&mut self) {
        if let Some(lost) = maps::lost() {
            // SAFETY: a pointer into the map's value; that it is not zero is what counts.
            unsafe { (*lost).marks = (*lost).marks.wrapping_add(1).max(1) };
        }
    }

    #[inline(always)]
    fn lost_marks(&self) -> bool {
        // SAFETY: as above.
        maps::lost().is_none_or(|lost| unsafe { (*lost).marks } != 0)
    }

    #[inline(always)]
    fn nat(&self, key: &NatKey<A>) -> Option<NatValue> {
        // SAFETY: the port never changes while the entry is there.
        unsafe { A::nat().get(key).copied() }
    }

    #[inline(always)]
    fn with_nat<R>(&mut self, key: &NatKey<A>, work: impl FnOnce(&mut NatValue) -> R) -> Option<R> {
        let entry = A::nat().get_ptr_mut(key);
        // SAFETY: a pointer into the map's value, valid until the program ends. What is written there are single stores.
        Some(work(unsafe { &mut *entry? }))
    }

    #[inline(always)]
    fn put_nat(&mut self, key: &NatKey<A>, value: &NatValue) -> Result<(), Full> {
        A::nat().insert(key, value, 0).map_err(|_| Full)
    }

    #[inline(always)]
    fn nat_rev(&self, key: &NatRevKey<A>) -> Option<NatRevValue<A>> {
        // SAFETY: who the port is lent to never changes while the entry is there.
        unsafe { A::nat_rev().get(key).copied() }
    }

    #[inline(always)]
    fn add_nat_rev(&mut self, key: &NatRevKey<A>, value: &NatRevValue<A>) -> Result<(), Insert> {
        let inserted = A::nat_rev().insert(key, value, u64::from(BPF_NOEXIST));
        inserted.map_err(|error| if error == EEXIST { Insert::Exists } else { Insert::Full })
    }

    #[inline(always)]
    fn remove_nat_rev(&mut self, key: &NatRevKey<A>) {
        // It may be gone already, which is what is wanted.
        let _ = A::nat_rev().remove(key);
    }

    #[inline(always)]
    fn with_nat_rev<R>(
        &mut self,
        key: &NatRevKey<A>,
        work: impl FnOnce(&mut NatRevValue<A>) -> R,
    ) -> Option<R> {
        let lease = A::nat_rev().get_ptr_mut(key);
        // SAFETY: as above.
        Some(work(unsafe { &mut *lease? }))
    }

    #[inline(always)]
    fn hop(&self, slot: u32, way: &mut Way) -> bool {
        let Some(hop) = maps::hop(slot) else { return false };
        // SAFETY: a pointer into the map's value; a mix of two hops fails the check that is in it.
        unsafe { maps::copy::<u32, { size_of::<Way>() / 4 }>((&raw mut *way).cast(), hop.cast()) };
        true
    }

    #[inline(always)]
    fn put_hop(&mut self, slot: u32, way: &Way) {
        if let Some(hop) = maps::hop(slot) {
            // SAFETY: as above.
            unsafe { *hop = *way };
        }
    }

    #[inline(always)]
    fn ports(&self, word: u32) -> u64 {
        // SAFETY: a pointer into the map's value; other CPUs may write the word, of which any value will do.
        maps::ports(word).map_or(u64::MAX, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn note_ports(&mut self, word: u32, bits: u64) {
        if let Some(word) = maps::ports(word) {
            // SAFETY: as above; a bit of another CPU that is lost is set again when it is missed.
            unsafe { word.write_volatile(word.read_volatile() | bits) };
        }
    }

    #[inline(always)]
    fn own_ports(&self, word: u32) -> u64 {
        // SAFETY: a pointer into the map's value; the agent alone writes it.
        maps::own_ports(word).map_or(0, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn tally(&mut self, gateway: &A, what: Tallied, len: u32) {
        if A::tally().get_ptr(gateway).is_none() {
            // Another CPU may be first, which is as good; without room nothing is counted.
            let _ = A::tally().insert(gateway, Tally::default(), u64::from(BPF_NOEXIST));
        }
        if let Some(tally) = A::tally().get_ptr_mut(gateway) {
            // SAFETY: a pointer into the map's value, which is counters alone, as many as `Tallied` has; two numbers
            // each, which other CPUs add to likewise.
            unsafe {
                let counter = tally.cast::<Counter>().add(what as usize);
                maps::add(&raw mut (*counter).packets, 1);
                maps::add(&raw mut (*counter).bytes, len.into());
            }
        }
    }

    #[inline(always)]
    fn fib(&self, query: &FibQuery<A>) -> Fib {
        let mut answer = MaybeUninit::uninit();
        let answer = FibAnswer::zero(&mut answer);
        match fib(&self.skb, query, asked(query.len), answer) {
            FIB_SUCCESS | FIB_NO_NEIGH => {
                let family = if answer.family == u32::from(AF_INET) { Family::V4 } else { Family::V6 };
                let via = NextHop { family, addr: bytes(answer.via) };
                Fib::Forward { ifindex: answer.ifindex, via, fits: answer.mtu }
            }
            FIB_FRAG_NEEDED if query.len != 0 && answer.mtu == asked(query.len) => {
                Fib::TooBig { mtu: find_mtu(&self.skb, query, answer) }
            }
            FIB_FRAG_NEEDED => Fib::TooBig { mtu: answer.mtu },
            _ => Fib::Refused,
        }
    }

    #[inline(always)]
    fn macs(&self) -> Option<[u8; 12]> {
        let room = maps::fib_room()?;
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (room.params.dmac, room.params.smac);
        (room.has_macs == 1).then_some([a, b, c, d, e, f, g, h, i, j, k, l])
    }
}

/// What the kernel said, in plain numbers: an enum that is written in one branch and copied in another
/// confuses the verifier.
#[repr(C)]
struct FibAnswer {
    ifindex: u32,
    mtu: u32,
    family: u32,
    via: [u32; 4],
}

impl FibAnswer {
    /// One of zeroes.
    #[inline(always)]
    fn zero(slot: &mut MaybeUninit<Self>) -> &mut Self {
        // SAFETY: words and nothing else.
        unsafe {
            maps::zero::<u32, { size_of::<Self>() / 4 }>(slot.as_mut_ptr().cast());
            slot.assume_init_mut()
        }
    }
}

/// The length that the kernel is asked about: a longer one fits no route's MTU, however cut.
#[inline(always)]
fn asked(len: u32) -> u32 {
    len.min(0xffff)
}

/// The MTU of a route for which a packet is too big, on a kernel that leaves the question's length in the answer: before
/// Linux 5.12 (commit e1850ea9bd9e). There the questions find it.
#[inline(never)]
fn find_mtu<A: Side>(skb: &Buffer, query: &FibQuery<A>, out: &mut FibAnswer) -> u32 {
    if out.ifindex != query.ifindex {
        // The length fits, and the packet at hand does not: there is no MTU to find.
        return 0;
    }
    // In a map, where the verifier does not follow the lengths.
    let Some(room) = maps::fib_room() else { return 0 };
    room.search = Search::below(asked(query.len));
    for _ in 0..Search::ROUNDS {
        let Some(room) = maps::fib_room() else { return 0 };
        let code = fib(skb, query, room.search.question(), out);
        // Such a kernel tells the way out when the length fits, also when the packet at hand does not.
        let routed = out.ifindex != query.ifindex;
        let fits = code == FIB_SUCCESS || code == FIB_NO_NEIGH || code == FIB_FRAG_NEEDED && routed;
        let Some(room) = maps::fib_room() else { return 0 };
        room.search.answer(fits);
    }
    maps::fib_room().map_or(0, |room| room.search.found())
}

/// Asks the kernel's routing about a packet of this length. Not inlined: a stack of its own.
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "of 16 bits")]
fn fib<A: Side>(skb: &Buffer, query: &FibQuery<A>, len: u32, out: &mut FibAnswer) -> i64 {
    let Some(maps::Fib { params, has_macs, .. }) = maps::fib_question() else { return FIB_NOT_ASKED };
    A::write_fib(params, query.src, query.dst, query.tos);
    params.l4_protocol = query.protocol;
    params.sport = query.sport.to_be();
    params.dport = query.dport.to_be();
    params.ifindex = query.ifindex;
    params.__bindgen_anon_1.tot_len = len as u16;
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: params is valid for its size, the context is this packet's.
    let code = unsafe { fib_lookup(skb.context().cast(), params, size, 0) };
    *has_macs = u64::from(code == FIB_SUCCESS);
    out.ifindex = params.ifindex;
    out.family = u32::from(params.family);
    // SAFETY: every bit pattern of these unions is an integer. An IPv4 next hop is the first word.
    unsafe {
        out.mtu = u32::from(params.__bindgen_anon_1.mtu_result);
        out.via = params.__bindgen_anon_4.ipv6_dst;
    }
    code
}
