//! All access to packets: BPF helpers on a socket buffer.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
        BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
    },
    helpers::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skb_vlan_pop,
    },
    programs::TcContext,
};
use coil_packet::{Family, Fault, Room, Skb, wire::replace_in_sum};

/// `VLAN_VID_MASK`.
const VLAN_ID: u32 = 0xfff;
/// `PACKET_HOST`: addressed to the link that received it.
const PACKET_HOST: u32 = 0;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// Address families.
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

/// Reads an even number of bytes by words of two: frames begin at an even address, and a program that reads single
/// bytes takes many instructions.
///
/// # Safety
/// `place` is even, and has `N` bytes.
#[inline(always)]
unsafe fn words_at<const N: usize>(place: *const u8) -> [u8; N] {
    let mut bytes = [0; N];
    let mut n = 0;
    while n + 1 < N {
        // SAFETY: the caller's promise.
        let [a, b] = unsafe { place.add(n).cast::<u16>().read() }.to_ne_bytes();
        (bytes[n], bytes[n + 1]) = (a, b);
        n += 2;
    }
    if !N.is_multiple_of(2) {
        // SAFETY: as above.
        bytes[N - 1] = unsafe { place.add(N - 1).read() };
    }
    bytes
}

/// Writes them.
///
/// # Safety
/// As [`words_at`].
#[inline(always)]
unsafe fn put_words<const N: usize>(place: *mut u8, bytes: &[u8; N]) {
    let mut n = 0;
    while n + 1 < N {
        // SAFETY: the caller's promise.
        unsafe { place.add(n).cast::<u16>().write(u16::from_ne_bytes([bytes[n], bytes[n + 1]])) };
        n += 2;
    }
    if !N.is_multiple_of(2) {
        // SAFETY: as above.
        unsafe { place.add(N - 1).write(bytes[N - 1]) };
    }
}

/// A packet in the kernel. Copies of it are the same packet. `FRONT`: it is written at places that are the same in
/// every packet, near its beginning, and so without a helper.
pub(crate) struct Buffer<const FRONT: bool = false> {
    raw: *mut __sk_buff,
}

/// Zero is success.
#[inline(always)]
const fn done(code: i64) -> Result<(), Fault> {
    if code == 0 { Ok(()) } else { Err(Fault) }
}

impl Buffer {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self { raw: ctx.skb.skb }
    }

    /// The same packet, to write to.
    #[inline(always)]
    pub(crate) const fn writer(&self) -> Self {
        Self { raw: self.raw }
    }

    /// The same packet, to write to its front.
    #[inline(always)]
    pub(crate) const fn front(&self) -> Buffer<true> {
        Buffer { raw: self.raw }
    }
}

impl<const FRONT: bool> Buffer<FRONT> {
    /// The program's context, for helpers.
    #[inline(always)]
    pub(crate) const fn context(&self) -> *mut __sk_buff {
        self.raw
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).ifindex }
    }

    /// False for frames with a VLAN tag and for frames to somebody else's, broadcast or multicast
    /// MAC addresses.
    #[inline(always)]
    pub(crate) fn is_for_us(&self) -> bool {
        // SAFETY: as above.
        !self.is_tagged() && unsafe { (*self.raw).pkt_type == PACKET_HOST }
    }

    /// True for frames with a VLAN tag beside the packet.
    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).vlan_present != 0 }
    }

    /// Takes off tags that name no VLAN (IEEE 802.1p): the kernel routes such a packet like one without, and so could what a
    /// client sends pass a program by that leaves tagged frames alone. False when one is left.
    #[inline(always)]
    pub(crate) fn take_priority_tags(&self) -> bool {
        // One more is in the frame itself when it has two.
        for _ in 0..2 {
            if !self.has_priority_tag() {
                return true;
            }
            // SAFETY: as above; nothing of the packet is held over the call.
            if unsafe { bpf_skb_vlan_pop(self.raw) } != 0 {
                return false;
            }
        }
        !self.has_priority_tag()
    }

    #[inline(always)]
    fn has_priority_tag(&self) -> bool {
        // SAFETY: as above.
        self.is_tagged() && unsafe { (*self.raw).vlan_tci & VLAN_ID == 0 }
    }

    /// Takes a bit off the packet's mark; true when it was there.
    #[inline(always)]
    pub(crate) fn take_mark(&self, mark: u32) -> bool {
        // SAFETY: as above; a program may write the mark.
        unsafe {
            let there = (*self.raw).mark & mark != 0;
            if there {
                (*self.raw).mark &= !mark;
            }
            there
        }
    }

    /// Adds a bit to the packet's mark.
    #[inline(always)]
    pub(crate) fn add_mark(&self, mark: u32) {
        // SAFETY: as above; a program may write the mark.
        unsafe { (*self.raw).mark |= mark };
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the kernel keeps 16 bits here")]
    pub(crate) fn family(&self) -> Option<Family> {
        // SAFETY: as above.
        match u16::from_be(unsafe { (*self.raw).protocol } as u16) {
            ETH_P_IP => Some(Family::V4),
            ETH_P_IPV6 => Some(Family::V6),
            _ => None,
        }
    }

    /// Hands the packet to the pod behind the veth whose host side is `ifindex`.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "an action")]
    pub(crate) fn send_to_peer(&self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes numbers.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    }

    /// Sends the packet to a neighbour; the kernel fills in the MAC addresses.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "an action")]
    pub(crate) fn send_to_neighbour(&self, ifindex: u32, family: u8, via: &[u8; 16]) -> i32 {
        // SAFETY: integers and a union of integers; zero is a value.
        let mut params: bpf_redir_neigh = unsafe { MaybeUninit::zeroed().assume_init() };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *via;
        params.nh_family = u32::from(family);
        params.__bindgen_anon_1.ipv6_nh = [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ];
        // SAFETY: params is valid for its size.
        unsafe { bpf_redirect_neigh(ifindex, &raw mut params, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
    }

    /// Sends the frame out of a link.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "an action")]
    pub(crate) fn send_out(&self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes numbers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Makes the frame one that comes in on a link.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "an action")]
    pub(crate) fn send_in(&self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes numbers.
        unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
    }

    /// Sends the frame out of the link on which it came in.
    #[inline(always)]
    pub(crate) fn send_back(&self) -> i32 {
        self.send_out(self.ifindex())
    }

    /// Where the `N` bytes at `at` lie, when the kernel lets a program at them: in the packet's first part, which
    /// holds the headers of nearly all packets. A helper costs many times as much. `at` must be a number by the time
    /// that this is compiled: the verifier does not follow another.
    #[inline(always)]
    fn place<const N: usize>(&self, at: u32) -> Option<*mut u8> {
        if !at.is_multiple_of(2) {
            return None;
        }
        // SAFETY: the context is valid while the program runs.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        let place = start + at as usize;
        (place + N <= end).then_some(place as *mut u8)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "lengths of headers")]
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N], flags: u64) -> Result<(), Fault> {
        // SAFETY: the array is valid for N bytes; the kernel checks the packet's bounds.
        done(unsafe { bpf_skb_store_bytes(self.raw, at, bytes.as_ptr().cast(), N as u32, flags) })
    }

    #[inline(always)]
    fn adjust(&mut self, bytes: i32, flags: u32) -> Result<(), Fault> {
        // SAFETY: the kernel checks lengths and flags; no pointer into the packet is held.
        done(unsafe { bpf_skb_adjust_room(self.raw, bytes, BPF_ADJ_ROOM_MAC, u64::from(flags)) })
    }
}

impl<const FRONT: bool> Skb for Buffer<FRONT> {
    #[inline(always)]
    fn frame_len(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: the context is valid while the program runs (the field is there since Linux 5.7).
        unsafe { (*self.raw).gso_size }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "lengths of headers")]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the array takes N bytes; the kernel checks the packet's bounds.
        let code = unsafe { bpf_skb_load_bytes(self.raw.cast(), at, bytes.as_mut_ptr().cast(), N as u32) };
        // SAFETY: the kernel has filled it in, with zeroes when it failed.
        let bytes = unsafe { bytes.assume_init() };
        (code == 0).then_some(bytes)
    }

    #[inline(always)]
    fn peek<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        match self.place::<N>(at) {
            // SAFETY: the place has N bytes, as the verifier has seen, and begins at an even address.
            Some(place) => Some(unsafe { words_at(place) }),
            None => self.load(at),
        }
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Result<(), Fault> {
        self.write(at, bytes, 0)
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Result<(), Fault> {
        match if FRONT { self.place::<N>(at) } else { None } {
            Some(place) => {
                // SAFETY: as above. The kernel has made the place this packet's own before the program began.
                unsafe { put_words(place, bytes) };
                Ok(())
            }
            None => self.write(at, bytes, 0),
        }
    }

    #[inline(always)]
    fn store_summed<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Result<(), Fault> {
        self.write(at, bytes, u64::from(BPF_F_RECOMPUTE_CSUM))
    }

    #[inline(always)]
    fn fix_l3_sum(&mut self, at: u32, diff: u32) -> Result<(), Fault> {
        if FRONT && let Some(place) = self.place::<2>(at) {
            // SAFETY: the place has two bytes, and begins at an even address.
            unsafe {
                let sum = place.cast::<u16>();
                sum.write(replace_in_sum(sum.read(), diff));
            }
            return Ok(());
        }
        // SAFETY: the helper takes numbers; size 0 means that `to` is a difference.
        done(unsafe { bpf_l3_csum_replace(self.raw, at, 0, u64::from(diff), 0) })
    }

    #[inline(always)]
    fn fix_l4_sum(&mut self, at: u32, diff: u32, pseudo: bool, optional: bool) -> Result<(), Fault> {
        let pseudo = if pseudo { BPF_F_PSEUDO_HDR } else { 0 };
        let optional = if optional { BPF_F_MARK_MANGLED_0 } else { 0 };
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(self.raw, at, 0, u64::from(diff), u64::from(pseudo | optional)) })
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_wrap, reason = "lengths of headers")]
    fn grow(&mut self, room: Room) -> Result<(), Fault> {
        // FIXED_GSO: the segment size is the sender's, and stays so in both directions.
        let encap = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
        let flags = match room {
            Room::FouV4 => encap | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
            Room::FouV6 => encap | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
            Room::Plain(_) => BPF_F_ADJ_ROOM_FIXED_GSO,
        };
        self.adjust(room.bytes() as i32, flags)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_wrap, reason = "lengths of headers")]
    fn shrink(&mut self, bytes: u32) -> Result<(), Fault> {
        self.adjust(-(bytes as i32), BPF_F_ADJ_ROOM_FIXED_GSO)
    }

    #[inline(always)]
    fn truncate(&mut self, len: u32) -> Result<(), Fault> {
        // SAFETY: the helper takes numbers; no pointer into the packet is held.
        done(unsafe { bpf_skb_change_tail(self.raw, len, 0) })
    }
}
