//! Flows between pods that are provably free of NAT, and those that are the kernel's.
//!
//! A connection is fast in both directions on a node, or in neither, for all its life: replies of a
//! Service connection must pass the kernel's connection tracking, and a connection that it saw by
//! half dies. So a flow becomes fast only at its first packet, seen before any translation, between
//! two pool addresses; what the kernel sends to a pod or out of an uplink is marked as its own; and
//! without an entry the kernel handles a packet.

use crate::{
    Addr, Family, NextHop, Tables,
    abi::{Config, FlowKey, FlowValue, PodValue, Way, way_kind},
    hops::Moment,
    wire::{Kind, Packet, tcp, udp},
};

/// [`FlowValue::state`] of a flow that bypasses the host stack.
pub const FAST: u8 = 1;
/// [`FlowValue::state`] of a flow that is the kernel's.
pub const KERNEL: u8 = 2;

/// How far a flow has come, [`FlowValue::phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// TCP: nothing but SYNs so far.
    New = 0,
    /// It is in use.
    Open = 1,
    /// TCP: FIN or RST was seen.
    Closing = 2,
}

/// Idle seconds after which a flow is forgotten: those of the node's connection tracking, so that a flow of the
/// kernel stays marked as long as its translation lives, and the kernel never takes over in mid-connection what
/// it would have kept itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP, [`Phase::New`].
    pub tcp_new: u32,
    /// TCP, [`Phase::Open`].
    pub tcp_open: u32,
    /// TCP, [`Phase::Closing`].
    pub tcp_closing: u32,
    /// UDP.
    pub udp: u32,
    /// ICMP echo.
    pub echo: u32,
}

impl Default for Limits {
    /// Linux's own defaults.
    fn default() -> Self {
        Self { tcp_new: 120, tcp_open: 432_000, tcp_closing: 300, udp: 180, echo: 30 }
    }
}

/// The key of a packet's flow, and whether the packet goes from its lower end to the higher.
#[inline(always)]
pub fn key<A: Addr>(packet: &Packet<A>) -> (FlowKey<A>, bool) {
    let (src, dst) = (packet.src.words(), packet.dst.words());
    let upward = (src.0, src.1, packet.sport) < (dst.0, dst.1, packet.dport);
    let (low, low_port, high, high_port) = if upward {
        (packet.src, packet.sport, packet.dst, packet.dport)
    } else {
        (packet.dst, packet.dport, packet.src, packet.sport)
    };
    (FlowKey { low, high, low_port, high_port, protocol: u32::from(packet.protocol) }, upward)
}

/// True for kinds of packets that a flow entry can cover; `udp`: UDP is one of them.
#[inline(always)]
pub fn may_be_fast<A: Addr>(packet: &Packet<A>, udp: bool) -> bool {
    match packet.kind {
        Kind::Tcp | Kind::EchoRequest | Kind::EchoReply => true,
        Kind::Udp => udp,
        _ => false,
    }
}

/// True for a packet that begins a flow.
#[inline(always)]
pub fn begins<A: Addr, T: Tables<A>>(packet: &Packet<A>, tables: &T) -> bool {
    match packet.kind {
        Kind::Tcp => is_syn(packet),
        Kind::EchoRequest => true,
        // Any datagram may be the first: only the marks of the kernel's flows tell, so all must be there.
        Kind::Udp => !tables.lost_marks(),
        _ => false,
    }
}

/// True for a packet that may begin a connection to a pod, the first fragment of one included.
#[inline(always)]
pub fn begins_in<A: Addr>(packet: &Packet<A>) -> bool {
    matches!(packet.under, Kind::Udp | Kind::EchoRequest) || is_syn(packet)
}

/// True for a SYN without more.
#[inline(always)]
pub fn is_syn<A: Addr>(packet: &Packet<A>) -> bool {
    packet.kind == Kind::Tcp && packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
}

/// True when the flow is forgotten.
#[must_use]
pub fn expired(protocol: u8, value: &FlowValue, now: u32, limits: &Limits) -> bool {
    let limit = match protocol {
        tcp::PROTOCOL if value.phase == Phase::New as u8 => limits.tcp_new,
        tcp::PROTOCOL if value.phase == Phase::Closing as u8 => limits.tcp_closing,
        tcp::PROTOCOL => limits.tcp_open,
        udp::PROTOCOL => limits.udp,
        _ => limits.echo,
    };
    // The clock stands still while the machine sleeps, and `seen` is a second behind at most.
    now.saturating_sub(value.seen) > limit.saturating_add(1)
}

/// Notes a packet of the flow: the time, once a second, and how far it has come.
#[inline(always)]
pub fn note<A: Addr>(flow: &mut FlowValue, packet: &Packet<A>, now: u32) {
    if flow.seen != now {
        flow.seen = now;
    }
    let phase = phase(packet, flow.phase);
    if flow.phase != phase {
        flow.phase = phase;
    }
}

/// A new SYN re-opens a closed flow; FIN and RST close it.
#[inline(always)]
fn phase<A: Addr>(packet: &Packet<A>, before: u8) -> u8 {
    if packet.kind != Kind::Tcp {
        Phase::Open as u8
    } else if packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        Phase::Closing as u8
    } else if packet.tcp_flags & tcp::SYN != 0 {
        if before == Phase::Open as u8 { before } else { Phase::New as u8 }
    } else if before == Phase::New as u8 {
        Phase::Open as u8
    } else {
        before
    }
}

/// Fills in state, time and phase of a flow whose first packet this is.
#[inline(always)]
pub fn begin<A: Addr>(value: &mut FlowValue, state: u8, packet: &Packet<A>, now: u32) {
    value.seen = now;
    value.state = state;
    value.phase = phase(packet, Phase::New as u8);
    value.clash = 0;
    value.pad = 0;
}

impl Way {
    /// True while the decision holds for a packet of `len` bytes that comes in on `ingress`: no longer than the
    /// second it was made in, so that routes that change while no agent runs are followed too.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, config: &Config, now: u32, ingress: u32, len: u32) -> bool {
        self.epoch == config.epoch
            && self.made == now
            && self.ingress == ingress
            && len <= u32::from(self.fits)
            && self.check == self.sum()
    }

    /// Makes it lead to a pod of this node.
    #[inline(always)]
    pub fn to_pod(&mut self, pod: &PodValue) {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (pod.mac, pod.host_mac);
        // Without the pod's hardware address, its kernel takes what is handed to it past its link alone.
        let known = a | b | c | d | e | f != 0;
        self.kind = if pod.is_by_kernel() && known { way_kind::POD_BY_LINK } else { way_kind::POD };
        self.egress = pod.ifindex;
        self.next = [a, b, c, d, e, f, g, h, i, j, k, l, 0, 0, 0, 0];
        self.set_fits(pod.mtu);
    }

    /// True for one that leads to a pod of this node.
    #[inline(always)]
    #[must_use]
    pub const fn is_to_pod(&self) -> bool {
        matches!(self.kind, way_kind::POD | way_kind::POD_BY_LINK)
    }

    /// Makes it lead to a neighbour.
    #[inline(always)]
    pub fn to_neighbour(&mut self, ifindex: u32, via: &NextHop, fits: u32) {
        self.kind =
            if via.family as u8 == Family::V4 as u8 { way_kind::NEIGHBOUR4 } else { way_kind::NEIGHBOUR6 };
        self.egress = ifindex;
        self.next = via.addr;
        self.set_fits(fits);
    }

    /// Makes no more fit than `mtu`.
    #[inline(always)]
    pub const fn limit(&mut self, mtu: u32) {
        if mtu < self.fits as u32 {
            self.set_fits(mtu);
        }
    }

    /// Makes one that leads to a neighbour spare the kernel the search for it: `macs` are the neighbour's and the
    /// link's.
    #[inline(always)]
    pub const fn to_link(&mut self, macs: [u8; 12]) {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
        self.kind = way_kind::LINK;
        self.next = [a, b, c, d, e, f, g, h, i, j, k, l, 0, 0, 0, 0];
    }

    /// MAC addresses of the receiver and of the link, of a way to a link or into a pod.
    #[inline(always)]
    #[must_use]
    pub const fn macs(&self) -> [u8; 12] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = self.next;
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "checked")]
    const fn set_fits(&mut self, fits: u32) {
        self.fits = if fits > 0xffff { 0xffff } else { fits as u16 };
    }

    /// Makes it hold for what comes in on `ingress` in the second of the moment when it began.
    #[inline(always)]
    pub fn seal(&mut self, moment: &Moment, ingress: u32) {
        self.epoch = moment.epoch;
        self.made = moment.second;
        self.ingress = ingress;
        self.check = self.sum();
    }
}
