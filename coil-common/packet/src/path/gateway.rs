//! A gateway pod of this node: what its clients send goes out in its name, what comes back goes to them.

use super::{ELSEWHERE, REFUSED, ROUTED, Routed, TOO_BIG, ask, egress, incoming, neighbour, peer, query};
use crate::{
    Addr, Decision, Deliver, End, FibQuery, Outer, Outlet, Passage, Plan, Reason, Skb, Tables,
    abi::{ClientKey, NONE, PodValue, Way, cluster_range, config_flag, way_kind},
    hops,
    nat::{self, FOUND, NOBODY},
    wire::{Header, Kind, Packet, UDP, from_client, parse_inner, parse_inside, quoted_or_first, tcp, udp},
};

/// What the programs translate: TCP, UDP, echo requests, errors about these, and fragments of these.
#[inline(always)]
pub(super) fn translates<A: Addr>(packet: &Packet<A>) -> bool {
    match packet.kind {
        Kind::Tcp | Kind::Udp | Kind::EchoRequest => true,
        Kind::Error => packet.quoted != 0,
        Kind::Fragment => match packet.under {
            Kind::Tcp | Kind::Udp | Kind::EchoRequest => true,
            // A later one goes where the first of its packet went: that had no ports when it had options.
            Kind::Fragment => packet.protocol == A::ICMP || may_have_ports(packet) && packet.dport != 0,
            _ => false,
        },
        _ => false,
    }
}

/// True for a fragment of a protocol that the programs translate.
#[inline(always)]
pub(super) fn may_have_ports<A: Addr>(packet: &Packet<A>) -> bool {
    let protocol = packet.protocol;
    protocol == tcp::PROTOCOL || protocol == udp::PROTOCOL || protocol == A::ICMP
}

/// A packet of a flow whose way out was decided in this second: one lookup, and one of the hop. False when it has to be
/// decided.
#[inline(always)]
pub(super) fn known<A: Addr, T: Tables<A>, O: Outlet<A>>(
    decision: &mut Decision<A>,
    tables: &mut T,
    outlet: &mut O,
) -> bool {
    let Decision { packet, passage, way, outcome, .. } = decision;
    // What begins or ends a connection changes the lease.
    let stays = packet.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0;
    if packet.ttl <= 1 || !stays || !egress::is_plain(packet) {
        return false;
    }
    let config = tables.config();
    let Some((port, hop)) = nat::remembered(tables, &passage.gateway, packet) else { return false };
    if !hops::find(hop, packet.segment, &config, way, tables) {
        return false;
    }
    let source = Some(End { addr: passage.gateway, port });
    let deliver = super::out_of_link(way);
    let plan = Plan { decap: passage.decap, tos: passage.tos, source, ..Plan::forward(deliver) };
    outlet.send(packet, outcome, Reason::Out, plan);
    true
}

/// A call for IPv6, whose addresses take much of the stack.
#[inline(never)]
fn known_called<A: Addr, T: Tables<A>, O: Outlet<A>>(
    decision: &mut Decision<A>,
    tables: &mut T,
    outlet: &mut O,
) -> bool {
    known(decision, tables, outlet)
}

/// A packet in FOU of a flow whose way out was decided in this second. False, and nothing changed, when it has to be
/// decided.
#[inline(always)]
pub(super) fn known_inside<A: Header, S: Skb, T: Tables<A>, O: Outlet<A>>(
    skb: &S,
    decision: &mut Decision<A>,
    tables: &mut T,
    outlet: &mut O,
) -> bool {
    let Decision { packet, outer, passage, .. } = decision;
    // What comes out of a client has the client's address inside, too; what goes into one has not.
    if !from_client(skb, packet) || tables.config().is_by_host_stack() {
        return false;
    }
    *outer = *packet;
    if parse_inside(skb, packet) {
        let decap = packet.l3 - outer.l3;
        if packet.len + decap == outer.len
            && let Some(tos) = congestion(outer.tos, packet.tos)
        {
            *passage = Passage { gateway: outer.dst, link: 0, decap, tos, tell: false, sport: 0 };
            let is_known = if A::L3_SUM {
                known(decision, tables, outlet)
            } else {
                known_called(decision, tables, outlet)
            };
            if is_known {
                return true;
            }
        }
    }
    decision.packet = decision.outer;
    false
}

/// Translates a client's packet in the name of the gateway, and sends it out.
#[inline(never)]
pub(super) fn out<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, tables: &mut T) -> Reason {
    let Decision { packet, quoted: told, passage, outcome, .. } = decision;
    let answer = if packet.kind == Kind::Error {
        nat::outbound_error(tables, &passage.gateway, told)
    } else {
        nat::outbound(tables, &passage.gateway, packet)
    };
    let Ok(port) = u16::try_from(answer) else { return outcome.drop(nat::refusal(answer)) };
    let routed = ask_out(decision, port, tables);
    let reason = send_out(decision, port, routed, tables);
    let Decision { moment, packet, passage, way, .. } = decision;
    if routed == ROUTED && egress::is_plain(packet) {
        let _ = nat::remember(tables, &passage.gateway, packet, way, moment);
    }
    reason
}

/// Asks the routing for the way out of a packet that comes from a port of the gateway. What is the host's stack's is not
/// asked about.
#[inline(never)]
fn ask_out<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, port: u16, tables: &T) -> Routed {
    let Decision { packet, passage, way, .. } = decision;
    if packet.ttl <= 1 || tables.config().is_by_host_stack() {
        return REFUSED;
    }
    // A flow that remembers its gateway alone does not know the link.
    if passage.link == 0 {
        let Some(pod) = tables.pod(&passage.gateway) else { return REFUSED };
        passage.link = pod.ifindex;
    }
    // Of Services the routing knows nothing: kube-proxy does, in the host's stack. What it turns to a pod must meet there what goes
    // to that pod directly: to other ends they may have the same port.
    if range_of(&packet.dst, tables) == cluster_range::CLUSTER {
        return ELSEWHERE;
    }
    let ports = matches!(packet.kind, Kind::Tcp | Kind::Udp);
    let sport = if ports { port } else { 0 };
    let dport = if ports { packet.dport } else { 0 };
    let question = FibQuery { ifindex: passage.link, src: passage.gateway, sport, dport, ..query(packet) };
    ask(&question, tables, way)
}

/// Sends a packet out as the gateway, from the port that it was given.
#[inline(never)]
fn send_out<A: Addr, T: Tables<A>>(
    decision: &mut Decision<A>,
    port: u16,
    routed: Routed,
    tables: &T,
) -> Reason {
    let Decision { packet, passage, way, outcome, .. } = decision;
    let source = Some(End { addr: passage.gateway, port });
    let mut plan = Plan { decap: passage.decap, tos: passage.tos, source, ..Plan::forward(Deliver::Here) };
    match routed {
        ROUTED => {
            plan.deliver = neighbour(way);
            return outcome.send(Reason::Out, plan);
        }
        REFUSED | ELSEWHERE => {}
        mtu => {
            if passage.tell && packet.kind != Kind::Error {
                return egress::too_big(packet, passage.gateway, mtu & !TOO_BIG, outcome);
            }
        }
    }
    // An address of this node, another kind of link, something to tell the sender, or somebody who looks on in the
    // host's stack: all the kernel's, which gets the packet as if the gateway pod had sent it.
    let Some(pod) = tables.pod(&passage.gateway) else { return outcome.drop(Reason::EgressNotRouted) };
    plan.hop = false;
    plan.deliver = Deliver::Stack { ifindex: pod.ifindex, mac: pod.mac, host_mac: pod.host_mac };
    outcome.send(Reason::OutByStack, plan)
}

/// A packet for a gateway pod. None when it is for the pod itself. `network`: it came from an uplink.
#[inline(never)]
pub(super) fn back<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    network: bool,
    decision: &mut Decision<A>,
    tables: &mut T,
) -> Option<Reason> {
    let Decision { packet, quoted: told, client, outcome, .. } = decision;
    let found = match packet.kind {
        Kind::Error => {
            if !quoted_or_first(skb, packet, told) {
                return None;
            }
            packet.quoted = told.protocol;
            nat::inbound_error(tables, told, client)
        }
        Kind::Fragment => {
            if !egress::ports_of_fragment(packet, tables) {
                return Some(outcome.next(Reason::FragmentEarly));
            }
            nat::inbound(tables, packet, client)
        }
        _ => nat::inbound(tables, packet, client),
    };
    match found {
        NOBODY => {}
        hop if hop != FOUND && network && known_reply(decision, hop, tables) => {
            return Some(decision.outcome.reason);
        }
        // What the node's stack saw go, it has to see come: `to_pod` has it next.
        _ if network && range_of(far(decision), tables) == cluster_range::CLUSTER => {
            return Some(decision.outcome.next(Reason::NotFastFlow));
        }
        _ => {
            let routed = ask_back(decision, tables);
            let reason = reply(decision, routed, tables);
            let Decision { moment, packet, way, .. } = decision;
            // Routing rules may look at the link that a packet comes in on: uplinks are alike, others are not.
            if network && routed == ROUTED && egress::is_plain(packet) {
                let _ = nat::remember_reply(tables, packet, way, moment);
            }
            return Some(reason);
        }
    }
    // The pod's kernel would answer with a reset, to a connection that it never had.
    let has_ports = matches!(packet.kind, Kind::Tcp | Kind::Udp)
        || (packet.kind == Kind::Fragment && packet.protocol != A::ICMP);
    if has_ports && nat::may_lend(tables, packet.dport) {
        // A pod or a node may answer for a Service, whose packets kube-proxy has turned to it in the node's stack, by the
        // gateway's lease towards the Service: connection tracking puts its address back, and `to_pod` drops what it leaves.
        if network && (tables.in_pools(&packet.src) || range_of(&packet.src, tables) != NONE) {
            return Some(outcome.next(Reason::NotFastFlow));
        }
        return Some(outcome.drop(Reason::NatUnknown));
    }
    None
}

/// The other end of the flow that a packet for a gateway is of, or is about.
#[inline(always)]
const fn far<A: Addr>(decision: &Decision<A>) -> &A {
    match decision.packet.kind {
        Kind::Error => &decision.quoted.dst,
        _ => &decision.packet.src,
    }
}

/// What an address of the cluster is of: a number of [`cluster_range`], or [`NONE`].
#[inline(never)]
fn range_of<A: Addr, T: Tables<A>>(addr: &A, tables: &T) -> u32 {
    tables.policy(NONE, addr).unwrap_or(NONE)
}

/// A reply of a flow whose way back was decided in this second. False when it has to be decided.
#[inline(never)]
fn known_reply<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, hop: u32, tables: &T) -> bool {
    let Decision { packet, client, way, outcome, .. } = decision;
    if packet.ttl <= 1 || !egress::is_plain(packet) {
        return false;
    }
    let config = tables.config();
    if !hops::find(hop, packet.segment, &config, way, tables) {
        return false;
    }
    let destination = Some(*client);
    if way.is_to_pod() {
        let _ = outcome.send(Reason::ReplyToPod, Plan { destination, ..Plan::forward(into_pod(way)) });
        return true;
    }
    if packet.segment + A::HEADER + UDP > u32::from(way.fits) {
        return false;
    }
    let Some(encap) = egress::fill(packet, &back_outer(packet, client, config.fou_port)) else {
        return false;
    };
    let plan = Plan { destination, encap: Some(encap), ..Plan::forward(super::out_of_link(way)) };
    let _ = outcome.send(Reason::ReplyToNode, plan);
    true
}

/// The outer header towards a client, but for what the packet's length says.
#[inline(always)]
const fn back_outer<A: Addr>(packet: &Packet<A>, to: &End<A>, fou_port: u16) -> Outer<A> {
    Outer { src: packet.dst, dst: to.addr, sport: fou_port, dport: fou_port, inner_len: 0, tos: 0 }
}

/// Finds the way of a reply to its client: into a pod of this node, or as the routing says.
#[inline(never)]
fn ask_back<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, tables: &T) -> Routed {
    let Decision { packet, client: to, way, .. } = decision;
    let config = tables.config();
    if packet.ttl <= 1 {
        return REFUSED;
    }
    if !config.is_by_host_stack()
        && let Some(pod) = tables.pod(&to.addr)
    {
        way.to_pod(&pod);
        return ROUTED;
    }
    egress::ask_path(&egress::outer_query(packet, &back_outer(packet, to, config.fou_port)), tables, way)
}

/// A reply to a gateway, for one of its clients.
#[inline(never)]
fn reply<A: Addr, T: Tables<A>>(decision: &mut Decision<A>, routed: Routed, tables: &T) -> Reason {
    let Decision { packet, client: to, way, outcome, .. } = decision;
    if packet.ttl <= 1 {
        return outcome.drop(Reason::EgressLastHop);
    }
    let destination = Some(*to);
    if routed == ROUTED && way.is_to_pod() {
        return outcome.send(Reason::ReplyToPod, Plan { destination, ..Plan::forward(into_pod(way)) });
    }
    // Segmentation of datagrams does not survive the tunnel.
    if packet.gso != 0 && packet.kind != Kind::Tcp {
        return outcome.drop(Reason::EgressGso);
    }
    let config = tables.config();
    let outer = back_outer(packet, to, config.fou_port);
    let Some(encap) = egress::fill(packet, &outer) else { return outcome.drop(Reason::EgressTooBig) };
    if routed & TOO_BIG != 0 {
        // The remote learns what fits: its reply of full size would vanish again and again.
        let mtu = (routed & !TOO_BIG).saturating_sub(A::HEADER + UDP);
        return egress::too_big(packet, packet.dst, mtu, outcome);
    }
    let deliver = if config.is_by_host_stack() || routed == ELSEWHERE {
        // As if the gateway pod had sent it.
        let Some(pod) = tables.pod(&packet.dst) else { return outcome.drop(Reason::EgressNotRouted) };
        Deliver::Stack { ifindex: pod.ifindex, mac: pod.mac, host_mac: pod.host_mac }
    } else if routed == ROUTED {
        neighbour(way)
    } else {
        return outcome.drop(Reason::EgressNotRouted);
    };
    outcome.send(Reason::ReplyToNode, Plan { destination, encap: Some(encap), ..Plan::forward(deliver) })
}

/// Delivery into the pod that a way leads to: past its link, or, where something waits there, by the link. (Not by the
/// host's stack, whose connection tracking has seen nothing of what is answered.)
#[inline(always)]
const fn into_pod(way: &Way) -> Deliver {
    if way.kind == way_kind::POD_BY_LINK {
        return super::out_of_link(way);
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l] = way.macs();
    Deliver::Peer { ifindex: way.egress, mac: [a, b, c, d, e, f], host_mac: [g, h, i, j, k, l] }
}

/// FOU for a client or a gateway of this node.
#[inline(always)]
pub(super) fn from_tunnel<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    pod: &PodValue,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Reason {
    match out_of_tunnel(skb, pod, tables, decision) {
        Some(reason) => reason,
        None => out(decision, tables),
    }
}

/// Takes the tunnel off. None when the packet is to be translated.
#[inline(never)]
fn out_of_tunnel<A: Header, S: Skb, T: Tables<A>>(
    skb: &S,
    pod: &PodValue,
    tables: &mut T,
    decision: &mut Decision<A>,
) -> Option<Reason> {
    let Decision { packet: inner, outer, quoted: told, passage: way, outcome, .. } = decision;
    *outer = *inner;
    if !parse_inner(skb, outer.l4 + UDP, inner) {
        return Some(outcome.drop(Reason::FouInner));
    }
    let decap = inner.l3 - outer.l3;
    if inner.len + decap != outer.len {
        return Some(outcome.drop(Reason::FouInner));
    }
    let Some(tos) = congestion(outer.tos, inner.tos) else {
        return Some(outcome.drop(Reason::FouCongestion));
    };
    if pod.is_client() && tables.gateway_of(pod.policy, &outer.src).is_some() {
        if !inner.dst.same(outer.dst) {
            return Some(outcome.drop(Reason::FouInner));
        }
        // By the kernel it goes through what is on the pod's link, and `to_pod` takes the tunnel off before that.
        if inner.ingress != pod.ifindex && pod.is_by_kernel() {
            return Some(outcome.next(Reason::KernelPod));
        }
        // The tunnel ends in the pod: no hop.
        let deliver = if inner.ingress == pod.ifindex { Deliver::Here } else { peer(pod) };
        let plan = Plan { decap, tos, hop: false, ..Plan::forward(deliver) };
        return Some(outcome.send(Reason::Decapsulated, plan));
    }
    if !pod.is_gateway() {
        return Some(outcome.drop(Reason::FouNotGateway));
    }
    if !inner.src.same(outer.src) {
        return Some(outcome.drop(Reason::FouInner));
    }
    if !takes_from(pod, outer, tables) {
        return Some(outcome.drop(Reason::FouSender));
    }
    if inner.kind == Kind::Error && incoming::is_about_own(skb, inner, told) {
        (inner.sport, inner.dport, inner.quoted) = (told.dport, told.sport, told.protocol);
    }
    if inner.gso != 0 && inner.kind != Kind::Tcp {
        return Some(outcome.drop(Reason::EgressGso));
    }
    if inner.kind == Kind::Fragment && may_have_ports(inner) && !egress::ports_of_fragment(inner, tables) {
        return Some(outcome.drop(Reason::EgressFragment));
    }
    if !translates(inner) {
        // The pod's kernel does the rest, where it can.
        return Some(if pod.is_kernel_gateway() {
            outcome.next(Reason::KernelGateway)
        } else {
            outcome.drop(Reason::EgressKind)
        });
    }
    *way = Passage { gateway: outer.dst, link: pod.ifindex, decap, tos, tell: false, sport: 0 };
    None
}

/// Who may send FOU to a gateway: its clients. While some are being started, whose addresses are not known yet, that is
/// any client of this node, and any address of the pools that no pod of this node has.
#[inline(always)]
fn takes_from<A: Addr, T: Tables<A>>(gateway: &PodValue, outer: &Packet<A>, tables: &T) -> bool {
    if tables.is_client(&ClientKey { gateway: outer.dst, client: outer.src }) {
        return true;
    }
    gateway.has_new_clients()
        && match tables.pod(&outer.src) {
            Some(pod) => pod.is_any_client(),
            None => tables.config().flags & config_flag::ANY_SENDER != 0 || tables.in_pools(&outer.src),
        }
}

/// ECN bits of TOS and traffic class.
const ECN: u8 = 3;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;

/// The inner TOS after decapsulation (RFC 6040, figure 4): `None` when the packet must be dropped,
/// `Some(None)` when it stays.
#[inline(always)]
#[expect(clippy::option_option, reason = "refused, unchanged or changed")]
const fn congestion(outer: u8, inner: u8) -> Option<Option<u8>> {
    match (outer & ECN, inner & ECN) {
        (CE, 0) => None,
        (CE, ECT0 | ECT1) => Some(Some(inner | CE)),
        (ECT1, ECT0) => Some(Some(inner & !ECN | ECT1)),
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::congestion;

    #[test]
    fn congestion_marks_survive_the_tunnel() {
        assert_eq!(congestion(0xfc, 0), Some(None));
        assert_eq!(congestion(0x03, 0), None);
        assert_eq!(congestion(0x03, 0xb9), Some(Some(0xbb)));
        assert_eq!(congestion(0x01, 0x02), Some(Some(0x01)));
        assert_eq!(congestion(0x02, 0x01), Some(None));
        assert_eq!(congestion(0x00, 0x03), Some(None));
    }
}
