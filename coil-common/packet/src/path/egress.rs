//! From a client to its gateway. It leaves through a gateway or not at all.

use crate::{
    Addr, Decision, Deliver, Fib, FibQuery, Message, Outcome, Outer, Outlet, Passage, Plan, Reason, Skb,
    Tables,
    abi::{
        AffinityKey, AffinityValue, FragKey, FragValue, Known, PathKey, PinKey, PinValue, PodValue, Way,
        egress_flag, gateway_flag,
    },
    flow, hash, hops, icmp, nat,
    wire::{Header, Kind, Packet, UDP, udp},
};

use super::{ELSEWHERE, REFUSED, ROUTED, Routed, TOO_BIG, ask, gateway, incoming, neighbour};

/// First port and number of ports of hashed FOU source ports.
const AUTO_FIRST: u16 = 32768;
const AUTO_COUNT: u32 = 28232;

/// No MTU.
const FITS: u32 = u32::MAX;
/// Seconds for which a path's MTU is remembered: Linux's `mtu_expires`.
const PATHS: u32 = 600;

/// Seconds after which what a first fragment said is forgotten: Linux's `ipfrag_time`.
const FRAGMENTS: u32 = 30;

/// What a gateway is chosen by, beside the packet.
struct Choice {
    policy: u32,
    egress: u32,
    /// Of the Egress.
    flags: u32,
}

/// What is remembered of a packet's flow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Remembered {
    /// Nothing that holds.
    Nothing,
    /// All of it: the packet is on its way.
    Sent,
    /// Its gateway, which is on this node.
    Here,
}

/// A packet of a client whose way was decided in this second: one lookup, and one of the hop. `ingress`: the client's
/// link.
#[inline(always)]
pub(super) fn known<A: Addr, T: Tables<A>, O: Outlet<A>>(
    decision: &mut Decision<A>,
    ingress: u32,
    tables: &mut T,
    outlet: &mut O,
) -> Remembered {
    let Decision { packet, passage, way, outcome, .. } = decision;
    // A SYN may have to begin anew at another gateway.
    if !is_plain(packet) || flow::is_syn(packet) {
        return Remembered::Nothing;
    }
    let (config, now) = (tables.config(), tables.now());
    let hop = tables.with_pin(&flow_key(packet), |pin| {
        if pin.ingress != ingress || !pin.known.holds(&config, now) {
            return 0;
        }
        passage.gateway = pin.gateway;
        passage.sport = pin.sport;
        pin.known.hop
    });
    match hop {
        None | Some(0) => Remembered::Nothing,
        Some(hops::HERE) => {
            begin(passage);
            Remembered::Here
        }
        Some(hop) => {
            let outer = outer(packet, passage, tables);
            let Some(encap) = fill(packet, &outer) else { return Remembered::Nothing };
            if !hops::find(hop, packet.segment + A::HEADER + UDP, &config, way, tables) {
                return Remembered::Nothing;
            }
            let plan = Plan { hop: false, encap: Some(encap), ..Plan::forward(super::out_of_link(way)) };
            outlet.send(packet, outcome, Reason::ToGateway, plan);
            Remembered::Sent
        }
    }
}

/// True for a whole packet of a kind whose flows are remembered.
#[inline(always)]
pub(super) fn is_plain<A: Addr>(packet: &Packet<A>) -> bool {
    match packet.kind {
        Kind::Tcp => true,
        // Segmentation of these does not survive the tunnel.
        Kind::Udp | Kind::EchoRequest | Kind::EchoReply => packet.gso == 0,
        _ => false,
    }
}

/// The passage of a packet of a pod of this node.
#[inline(always)]
const fn begin<A: Addr>(passage: &mut Passage<A>) {
    passage.link = 0;
    passage.decap = 0;
    passage.tos = None;
    passage.tell = true;
}

/// A packet of the client `pod` that the Egress `egress` takes. None when a gateway of this node is to translate it:
/// [`gateway::out`] is the caller's to call, for the sake of the BPF stack.
#[inline(never)]
pub(super) fn out<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    pod: &PodValue,
    egress: u32,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Option<Reason> {
    let Decision { moment, packet, quoted: told, passage, way, outcome, .. } = decision;
    // UDP segmentation does not survive decapsulation.
    if packet.gso != 0 && packet.kind != Kind::Tcp {
        return Some(outcome.drop(Reason::EgressGso));
    }
    let whole = match packet.kind {
        Kind::Short => return Some(outcome.drop(Reason::EgressKind)),
        Kind::Error if incoming::is_about_own(skb, packet, told) => {
            // The flow is that of the packet which the error is about.
            (packet.sport, packet.dport, packet.quoted) = (told.dport, told.sport, told.protocol);
            true
        }
        // Of other protocols nobody looks for ports: all fragments of a packet go one way in any order.
        Kind::Fragment if gateway::may_have_ports(packet) => ports_of_fragment(packet, tables),
        _ => true,
    };
    let Some(flags) = tables.egress_flags(egress) else { return Some(outcome.drop(Reason::NoGateway)) };
    if !whole && flags & egress_flag::CLIENT_AFFINITY == 0 {
        return Some(outcome.drop(Reason::EgressFragment));
    }
    if flags & egress_flag::ORIGINATING_ONLY != 0 && incoming::came_in(packet, tables) {
        return Some(outcome.next(Reason::Incoming));
    }
    begin(passage);
    passage.sport = flags_port(flags, packet, tables);
    if !choose(packet, &Choice { policy: pod.policy, egress, flags }, tables, passage) {
        return Some(outcome.drop(Reason::NoGateway));
    }
    let mut hop = 0;
    let reason = match tables.pod(&passage.gateway).filter(PodValue::is_gateway) {
        // There it would need the ports.
        Some(_) if !whole => Some(outcome.drop(Reason::EgressFragment)),
        Some(local) if !gateway::translates(packet) && !local.is_kernel_gateway() => {
            Some(outcome.drop(Reason::EgressKind))
        }
        _ if tables.config().is_by_host_stack() => Some(by_stack(packet, passage, tables, outcome)),
        None => {
            let reason = match ask_tunnel(packet, passage, tables, way) {
                ROUTED => {
                    let reason = encapsulate(packet, passage, tables, way, outcome);
                    hop = hops::note(way, moment, tables);
                    reason
                }
                ELSEWHERE => by_stack(packet, passage, tables, outcome),
                REFUSED => outcome.drop(Reason::EgressNotRouted),
                mtu => {
                    let mtu = (mtu & !TOO_BIG).saturating_sub(A::HEADER + UDP);
                    too_big(packet, passage.gateway, mtu, outcome)
                }
            };
            Some(reason)
        }
        Some(local) if gateway::translates(packet) => {
            passage.link = local.ifindex;
            hop = hops::HERE;
            None
        }
        Some(local) => Some(to_kernel_gateway(packet, passage, &local, tables, outcome)),
    };
    // Whether a connection came in is asked for each packet.
    let hop = if flags & egress_flag::ORIGINATING_ONLY == 0 { hop } else { 0 };
    if matches!(packet.under, Kind::Tcp | Kind::Udp | Kind::EchoRequest) {
        pin(packet, egress, &Known::since(moment, hop), passage, tables);
    }
    reason
}

/// Remembers the gateway of a packet's flow and, when there is a hop, the way there.
#[inline(never)]
fn pin<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    egress: u32,
    known: &Known,
    passage: &Passage<A>,
    tables: &mut T,
) -> u32 {
    let value = PinValue {
        gateway: passage.gateway,
        seen: tables.now(),
        egress,
        ingress: packet.ingress,
        known: *known,
        sport: passage.sport,
        pad: 0,
    };
    let key = flow_key(packet);
    if tables.with_pin(&key, |pin| *pin = value).is_none() {
        tables.put_pin(&key, &value);
    }
    known.hop
}

/// The key of a flow's pin.
#[inline(always)]
pub(super) fn flow_key<A: Addr>(packet: &Packet<A>) -> PinKey<A> {
    PinKey {
        client: packet.src,
        remote: packet.dst,
        pad: 0,
        client_port: packet.sport,
        remote_port: packet.dport,
        protocol: u32::from(hash::protocol(packet)),
    }
}

#[inline(always)]
fn flags_port<A: Addr, T: Tables<A>>(flags: u32, packet: &Packet<A>, tables: &T) -> u16 {
    if flags & egress_flag::SPORT_AUTO != 0 {
        auto_port(hash::flow(packet))
    } else {
        tables.config().fou_port
    }
}

/// Gives a fragment the ports that the first one of its packet has; false when that is not known.
#[inline(never)]
pub(super) fn ports_of_fragment<A: Addr, T: Tables<A>>(packet: &mut Packet<A>, tables: &mut T) -> bool {
    let key =
        FragKey { src: packet.src, dst: packet.dst, id: packet.id, protocol: u32::from(packet.protocol) };
    let now = tables.now();
    if packet.under != Kind::Fragment {
        tables.put_frag(&key, &FragValue { seen: now, sport: packet.sport, dport: packet.dport });
        return true;
    }
    match tables.frag(&key) {
        Some(first) if now.saturating_sub(first.seen) <= FRAGMENTS => {
            (packet.sport, packet.dport) = (first.sport, first.dport);
            true
        }
        _ => false,
    }
}

/// Picks the gateway: the one that the flow has, else the client's own, else one of those that take new flows.
/// False when there is none.
#[inline(never)]
fn choose<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    of: &Choice,
    tables: &mut T,
    way: &mut Passage<A>,
) -> bool {
    let Choice { egress, flags, .. } = *of;
    // What begins may begin anew at a gateway that takes it.
    let ready = flow::is_syn(packet);
    let idle = nat::idle_limit(hash::protocol(packet), nat::State::Established as u8);
    let now = tables.now();
    let pinned = tables.with_pin(&flow_key(packet), |pin| {
        way.gateway = pin.gateway;
        pin.egress == egress && now.saturating_sub(pin.seen) <= idle
    });
    if pinned == Some(true) && is_there(&way.gateway, of, ready, tables) {
        return true;
    }
    if flags & egress_flag::CLIENT_AFFINITY != 0 {
        return choose_for_client(packet, of, tables, way);
    }
    let Some(gateway) = tables.gateway(egress, hash::high(hash::flow(packet))) else { return false };
    way.gateway = gateway;
    true
}

/// Picks the gateway of a client's new flow: the client's own, else one that takes new flows. False when there is none.
#[inline(always)]
fn choose_for_client<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    of: &Choice,
    tables: &mut T,
    way: &mut Passage<A>,
) -> bool {
    let now = tables.now();
    let key = AffinityKey { client: packet.src, egress: of.egress };
    let kept = tables.with_affinity(&key, |kept| {
        way.gateway = kept.gateway;
        now.saturating_sub(kept.seen) <= egress_flag::affinity_seconds(of.flags)
    });
    if kept == Some(true) && is_there(&way.gateway, of, true, tables) {
        let _ = tables.with_affinity(&key, |kept| kept.seen = now);
        return true;
    }
    let hash = hash::high(hash::address(packet.src));
    let Some(gateway) = tables.gateway(of.egress, hash) else { return false };
    way.gateway = gateway;
    tables.put_affinity(&key, &AffinityValue { gateway, seen: now });
    true
}

/// True while a gateway is there, and takes new flows when it has to (`ready`).
#[inline(always)]
fn is_there<A: Addr, T: Tables<A>>(gateway: &A, of: &Choice, ready: bool, tables: &T) -> bool {
    let Some(flags) = tables.gateway_of(of.policy, gateway) else { return false };
    !ready || flags & gateway_flag::NO_NEW == 0
}

/// Asks the routing for the way to a client's gateway.
#[inline(never)]
fn ask_tunnel<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    passage: &Passage<A>,
    tables: &T,
    way: &mut Way,
) -> Routed {
    ask_path(&outer_query(packet, &outer(packet, passage, tables)), tables, way)
}

/// [`ask`] about a packet in FOU, with what routers have said of the path.
#[inline(always)]
pub(super) fn ask_path<A: Addr, T: Tables<A>>(question: &FibQuery<A>, tables: &T, way: &mut Way) -> Routed {
    let routed = ask(question, tables, way);
    if routed != ROUTED && routed != ELSEWHERE {
        return routed;
    }
    let mtu = path_mtu(&PathKey { from: question.src, to: question.dst }, tables);
    if question.len > mtu {
        return TOO_BIG | mtu;
    }
    way.limit(mtu);
    routed
}

/// What fits a path, as far as that is known.
#[inline(never)]
pub(super) fn path_mtu<A: Addr, T: Tables<A>>(key: &PathKey<A>, tables: &T) -> u32 {
    match tables.path(key) {
        Some(path) if tables.now().saturating_sub(path.seen) < PATHS => path.mtu,
        _ => 0xffff,
    }
}

/// Puts a client's packet into FOU, towards its gateway.
#[inline(never)]
fn encapsulate<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    passage: &Passage<A>,
    tables: &T,
    way: &Way,
    outcome: &mut Outcome<A>,
) -> Reason {
    wrap(packet, &outer(packet, passage, tables), neighbour(way), outcome)
}

/// Puts a client's packet into FOU, and lets the host's stack find the gateway.
#[inline(never)]
fn by_stack<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    way: &Passage<A>,
    tables: &T,
    outcome: &mut Outcome<A>,
) -> Reason {
    let outer = outer(packet, way, tables);
    // What the stack would say of a packet that is too big, the client would not understand.
    let mut mtu = path_mtu(&PathKey { from: outer.src, to: outer.dst }, tables);
    if packet.segment + A::HEADER + UDP <= mtu {
        mtu = match tables.fib(&outer_query(packet, &outer)) {
            Fib::TooBig { mtu } => mtu,
            _ => FITS,
        };
    }
    if mtu != FITS {
        return too_big(packet, way.gateway, mtu.saturating_sub(A::HEADER + UDP), outcome);
    }
    wrap(packet, &outer, Deliver::Here, outcome)
}

/// Puts a client's packet into FOU for the kernel of a gateway pod of this node: what the programs do not
/// translate.
#[inline(never)]
fn to_kernel_gateway<A: Addr, T: Tables<A>>(
    packet: &Packet<A>,
    way: &Passage<A>,
    pod: &PodValue,
    tables: &T,
    outcome: &mut Outcome<A>,
) -> Reason {
    if packet.segment + A::HEADER + UDP > pod.mtu {
        return too_big(packet, way.gateway, pod.mtu.saturating_sub(A::HEADER + UDP), outcome);
    }
    wrap(packet, &outer(packet, way, tables), super::peer(pod), outcome)
}

/// The outer header towards a client's gateway, but for what the packet's length says.
#[inline(always)]
fn outer<A: Addr, T: Tables<A>>(packet: &Packet<A>, way: &Passage<A>, tables: &T) -> Outer<A> {
    let dport = tables.config().fou_port;
    Outer { src: packet.src, dst: way.gateway, sport: way.sport, dport, inner_len: 0, tos: 0 }
}

/// Sends a client's packet on in FOU. A link of the pod itself would do that: no hop yet.
#[inline(always)]
fn wrap<A: Addr>(packet: &Packet<A>, outer: &Outer<A>, deliver: Deliver, outcome: &mut Outcome<A>) -> Reason {
    let Some(encap) = fill(packet, outer) else { return outcome.drop(Reason::EgressTooBig) };
    let plan = Plan { hop: false, encap: Some(encap), ..Plan::forward(deliver) };
    outcome.send(Reason::ToGateway, plan)
}

/// The routing question for a packet in FOU.
#[inline(always)]
pub(super) const fn outer_query<A: Addr>(packet: &Packet<A>, outer: &Outer<A>) -> FibQuery<A> {
    FibQuery {
        ifindex: packet.ingress,
        src: outer.src,
        dst: outer.dst,
        protocol: udp::PROTOCOL,
        sport: outer.sport,
        dport: outer.dport,
        len: packet.segment + A::HEADER + UDP,
        // Of the inner header nothing but ECN is taken over.
        tos: 0,
    }
}

/// Adds length and ECN of the inner packet to an outer header, or `None` when the lengths do not fit 16 bits.
#[inline(always)]
pub(super) fn fill<A: Addr>(packet: &Packet<A>, outer: &Outer<A>) -> Option<Outer<A>> {
    if packet.len + A::HEADER + UDP > 0xffff {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let inner_len = packet.len as u16;
    Some(Outer { inner_len, tos: packet.tos & 3, ..*outer })
}

/// Tells the sender what fits. Nobody is told about an error.
#[inline(always)]
pub(super) fn too_big<A: Addr>(packet: &Packet<A>, from: A, mtu: u32, outcome: &mut Outcome<A>) -> Reason {
    let least = icmp::least_mtu::<A>();
    // A route may have an MTU that no sender of the family may be told.
    if mtu < least || mtu > 0xffff || packet.kind == Kind::Error {
        return outcome.drop(Reason::EgressTooBig);
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let mtu = mtu as u16;
    outcome.answer(Reason::TooBig, Message { from, mtu })
}

#[inline(always)]
const fn auto_port(flow: u64) -> u16 {
    AUTO_FIRST + (hash::high(flow) % AUTO_COUNT) as u16
}
