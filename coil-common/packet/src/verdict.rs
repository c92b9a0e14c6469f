//! What becomes of a packet, and why.

use bytemuck::Zeroable as _;

use crate::{
    Addr, Family, Message, NextHop, Relay,
    abi::{FlowKey, FlowValue, Way},
    hops::Moment,
    wire::Packet,
};

/// The program that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Path {
    /// TC ingress of the host side of a pod's veth.
    FromPod = 0,
    /// TC ingress of an uplink.
    FromNet = 1,
    /// TC egress of the host side of a pod's veth.
    ToPod = 2,
    /// TC egress of an uplink.
    ToNet = 3,
}

impl Path {
    /// Every path, in the order of the counters.
    pub const ALL: [Self; 4] = [Self::FromPod, Self::FromNet, Self::ToPod, Self::ToNet];

    /// The program's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::FromNet => "from_net",
            Self::ToPod => "to_pod",
            Self::ToNet => "to_net",
        }
    }
}

/// The kind of verdict a reason belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The kernel handles the packet.
    Next,
    /// The packet is gone.
    Drop,
    /// The programs sent it on.
    Sent,
    /// The sender was told that the packet is too big.
    Answered,
}

impl Class {
    /// Name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Drop => "drop",
            Self::Sent => "sent",
            Self::Answered => "answered",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $class:ident, $label:literal;)+) => {
        /// Why a packet got its verdict. One counter for each, by path and family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name),+ }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Name in metrics and messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            /// The kind of verdict it belongs to.
            #[must_use]
            pub const fn class(self) -> Class {
                match self { $(Self::$name => Class::$class),+ }
            }
        }
    };
}

reasons! {
    /// Not IP, with a VLAN tag, or not addressed to this link.
    NotForUs = Next, "not-for-us";
    /// The IP header is cut short or contradicts itself.
    Malformed = Next, "malformed";
    /// The source is not an address of the pod that sends.
    NotOwnSource = Next, "not-own-source";
    /// No pod of this node and no pool holds the destination.
    NotAPod = Next, "not-a-pod";
    /// A fragment, with options, or of a protocol that is never fast.
    NotFastKind = Next, "not-fast-kind";
    /// Pods are forwarded by the kernel alone.
    NotFastNode = Next, "not-fast-node";
    /// Everything passes the host's stack.
    HostStack = Next, "host-stack";
    /// A pod with something on its link that the packet would miss.
    KernelPod = Next, "kernel-pod";
    /// A flow that is not known to be free of NAT.
    NotFastFlow = Next, "not-fast-flow";
    /// A flow that the kernel handles.
    KernelFlow = Next, "kernel-flow";
    /// The flow table is full; the kernel takes the flow.
    FlowTableFull = Next, "flow-table-full";
    /// The time to live ends here; the kernel answers.
    LastHop = Next, "last-hop";
    /// Larger than the route's MTU; the kernel fragments or answers.
    ForwardTooBig = Next, "forward-too-big";
    /// The kernel does not forward this through an uplink.
    NotRouted = Next, "not-routed";

    /// On the way out of the kernel: its flow, and marked so.
    Marked = Next, "marked";
    /// The same, and there is no room for the mark.
    MarkLost = Next, "mark-lost";
    /// On the way out of the kernel: no flow that could ever be fast.
    NotMarked = Next, "not-marked";

    /// A connection that came in to a client from outside, and is answered the way it came.
    Incoming = Next, "incoming";
    /// A fragment for a gateway pod, before the first of its packet.
    FragmentEarly = Next, "fragment-early";
    /// FOU for the gateway pod's own kernel: what the programs do not translate.
    KernelGateway = Next, "kernel-gateway";
    /// An ICMP error about FOU that quotes too little for its sender: what fits the path is remembered.
    PathNoted = Next, "path-noted";

    /// Handed to a pod of this node.
    ToPod = Sent, "to-pod";
    /// Sent to another node's pod.
    ToNode = Sent, "to-node";
    /// Encapsulated and sent to a gateway.
    ToGateway = Sent, "to-gateway";
    /// Translated and sent out in a gateway's name.
    Out = Sent, "snat-out";
    /// Translated, and handed to the node's own stack: for an address of the node or a link that is no uplink, at
    /// its last hop, or larger than the route's MTU.
    OutByStack = Sent, "snat-out-by-stack";
    /// A reply, translated and handed to a client of this node.
    ReplyToPod = Sent, "reply-to-pod";
    /// A reply, translated, encapsulated and sent to the client's node.
    ReplyToNode = Sent, "reply-to-node";
    /// Decapsulated and handed to a client of this node.
    Decapsulated = Sent, "decapsulated";

    /// An ICMP error about FOU, told to who sent what was inside.
    FouError = Sent, "fou-error";

    /// The sender was told the MTU that leaves room for the encapsulation.
    TooBig = Answered, "too-big";

    /// Egress: the Egress has no gateway.
    NoGateway = Drop, "no-gateway";
    /// Egress: of a protocol that no gateway translates, or cut short.
    EgressKind = Drop, "egress-kind";
    /// Egress: of a client whose header the kernel understands and the programs do not: `BIG TCP` of IPv4, say.
    EgressUnreadable = Drop, "egress-unreadable";
    /// Egress: a fragment before the first of its packet, or after the end of its translation.
    EgressFragment = Drop, "egress-fragment";
    /// Egress: segmentation offload of something else than TCP.
    EgressGso = Drop, "egress-gso";
    /// Egress: the time to live ends at the gateway.
    EgressLastHop = Drop, "egress-last-hop";
    /// Egress: the kernel does not route it through an uplink.
    EgressNotRouted = Drop, "egress-not-routed";
    /// Egress: larger than the route's MTU at a place where nobody can be told.
    EgressTooBig = Drop, "egress-too-big";
    /// SNAT: every port that was tried is in use.
    NatPorts = Drop, "nat-ports";
    /// SNAT: the table is full.
    NatFull = Drop, "nat-full";
    /// SNAT: the client has as many ports as it may.
    NatQuota = Drop, "nat-quota";
    /// SNAT: the end of a TCP connection that is not known.
    NatInvalid = Drop, "nat-invalid";
    /// A packet to a port of a gateway's SNAT range that is lent to nobody.
    NatUnknown = Drop, "nat-unknown";
    /// FOU to a gateway from an address that none of its clients has.
    FouSender = Drop, "fou-sender";
    /// FOU whose inner packet is malformed or has another source than the outer one.
    FouInner = Drop, "fou-inner";
    /// FOU to a client from an address that is none of its gateways.
    FouNotGateway = Drop, "fou-not-gateway";
    /// FOU from a pod that has no business to send it, or in another's name.
    FouForged = Drop, "fou-forged";
    /// What may be FOU in fragments or behind options, to a pod whose own kernel would take it.
    FouHidden = Drop, "fou-hidden";
    /// Congestion was marked on the outer header of a packet that cannot carry the mark (RFC 6040).
    FouCongestion = Drop, "fou-congestion";
    /// The kernel opened a connection with the addresses and ports of a live fast flow. It opens it again with
    /// another port once the agent has told it of the flow.
    FlowClash = Drop, "flow-clash";
    /// The kernel refused to change the packet.
    Rewrite = Drop, "rewrite";
}

/// Slots of `coil_counters`.
pub const COUNTERS: usize = Path::ALL.len() * 2 * Reason::ALL.len();

/// The slot of a counter. The reason says the verdict's class.
#[inline(always)]
#[must_use]
pub const fn counter_index(path: Path, family: Family, reason: Reason) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "a few dozen reasons")]
    let reasons = Reason::ALL.len() as u32;
    ((path as u32) * 2 + family as u32) * reasons + reason as u32
}

/// What one end of a packet becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End<A> {
    /// Its new address.
    pub addr: A,
    /// Its new port, or the new identifier of an ICMP echo.
    pub port: u16,
}

/// The outer header of an encapsulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer<A> {
    /// Source.
    pub src: A,
    /// Destination.
    pub dst: A,
    /// UDP source port.
    pub sport: u16,
    /// UDP destination port.
    pub dport: u16,
    /// Length of the inner packet in bytes.
    pub inner_len: u16,
    /// DSCP 0 and the inner packet's ECN bits.
    pub tos: u8,
}

/// The way of a client's packet to and through its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage<A> {
    /// The gateway pod's address.
    pub gateway: A,
    /// The gateway pod's link when it is on this node, else 0.
    pub link: u32,
    /// Bytes of outer headers to remove.
    pub decap: u32,
    /// The TOS to write, when it changes.
    pub tos: Option<u8>,
    /// True when the client is on this node and can be told an MTU.
    pub tell: bool,
    /// UDP source port of the encapsulation.
    pub sport: u16,
}

/// How a packet leaves.
// The tag comes first: BTF knows no other place for it, and the kernel refuses the type otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Deliver {
    /// Straight into a pod of this node.
    Peer {
        /// The host side of its veth.
        ifindex: u32,
        /// MAC address of the pod's side.
        mac: [u8; 6],
        /// MAC address of the host's side.
        host_mac: [u8; 6],
    },
    /// Into the node's own stack, as if the pod behind this veth had sent it.
    Stack {
        /// The host side of the veth.
        ifindex: u32,
        /// MAC address of the pod's side.
        mac: [u8; 6],
        /// MAC address of the host's side.
        host_mac: [u8; 6],
    },
    /// On the way that it is on: into the pod behind the veth, or on into the host's stack.
    Here,
    /// Out of a link, to a neighbour whose MAC address is known.
    Link {
        /// The link.
        ifindex: u32,
        /// MAC addresses of the neighbour and of the link.
        macs: [u8; 12],
    },
    /// To a neighbour, whose MAC address the kernel knows or finds.
    Neighbour {
        /// The link.
        ifindex: u32,
        /// The neighbour.
        via: NextHop,
    },
}

/// What to do with a packet before it is sent, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan<A> {
    /// Bytes of the outer headers to remove, or 0.
    pub decap: u32,
    /// The TOS or traffic class to write, when it changes.
    pub tos: Option<u8>,
    /// The new source of a client's packet on its way out.
    pub source: Option<End<A>>,
    /// The new destination of a reply.
    pub destination: Option<End<A>>,
    /// True when the time to live goes down by one.
    pub hop: bool,
    /// The header to put in front, if any.
    pub encap: Option<Outer<A>>,
    /// How it leaves.
    pub deliver: Deliver,
}

impl<A: Addr> Plan<A> {
    /// A packet forwarded as a router does.
    #[inline(always)]
    #[must_use]
    pub const fn forward(deliver: Deliver) -> Self {
        Self { decap: 0, tos: None, source: None, destination: None, hop: true, encap: None, deliver }
    }
}

/// What becomes of a packet.
#[must_use = "a verdict that nobody applies loses the packet's counter"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict<A> {
    /// The kernel handles it.
    Next,
    /// It is gone.
    Drop,
    /// Forward it as a router does, the way that the [`Decision`] states.
    Forward,
    /// Change and send it.
    Send(Plan<A>),
    /// Answer it.
    Answer(Message<A>),
    /// It is an error that is somebody else's.
    Relay(Relay<A>),
}

/// A packet, what becomes of it, and why. A program keeps it in per-CPU memory: it is too large for the
/// BPF stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<A> {
    /// When it began.
    pub moment: Moment,
    /// The facts that [`crate::apply`] needs: of the inner packet when the plan decapsulates.
    pub packet: Packet<A>,
    /// The outer packet of one that came through a tunnel; else of no meaning.
    pub outer: Packet<A>,
    /// The packet that an ICMP error quotes, of one about FOU the one inside; else of no meaning.
    pub quoted: Packet<A>,
    /// How it gets out, when an Egress takes it.
    pub passage: Passage<A>,
    /// To whom it goes back, when it is a reply to a gateway.
    pub client: End<A>,
    /// Its flow: room to work on.
    pub flow: Draft<A>,
    /// How it is forwarded, when it is.
    pub way: Way,
    /// What becomes of it, and why.
    pub outcome: Outcome<A>,
}

/// A flow's entry in the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draft<A> {
    /// The key that both directions share.
    pub key: FlowKey<A>,
    /// The entry.
    pub value: FlowValue,
    /// True when the packet goes from the key's lower end to the higher.
    pub upward: bool,
}

/// The judgement half of a [`Decision`], to be written once.
///
/// Every step of a decision ends in one of the methods and returns the reason: a BPF function that
/// returns nothing leaves whatever it likes in the return register, which the verifier refuses when
/// that is a stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<A> {
    /// What becomes of the packet.
    pub verdict: Verdict<A>,
    /// Why.
    pub reason: Reason,
}

impl<A: Addr> Outcome<A> {
    #[inline(always)]
    pub(crate) fn next(&mut self, reason: Reason) -> Reason {
        self.verdict = Verdict::Next;
        self.reason = reason;
        reason
    }

    #[inline(always)]
    pub(crate) fn drop(&mut self, reason: Reason) -> Reason {
        self.verdict = Verdict::Drop;
        self.reason = reason;
        reason
    }

    #[inline(always)]
    pub(crate) fn forward(&mut self, reason: Reason) -> Reason {
        self.verdict = Verdict::Forward;
        self.reason = reason;
        reason
    }

    #[inline(always)]
    pub(crate) fn send(&mut self, reason: Reason, plan: Plan<A>) -> Reason {
        self.verdict = Verdict::Send(plan);
        self.reason = reason;
        reason
    }

    #[inline(always)]
    pub(crate) fn answer(&mut self, reason: Reason, answer: Message<A>) -> Reason {
        self.verdict = Verdict::Answer(answer);
        self.reason = reason;
        reason
    }

    #[inline(always)]
    pub(crate) fn relay(&mut self, reason: Reason, relay: Relay<A>) -> Reason {
        self.verdict = Verdict::Relay(relay);
        self.reason = reason;
        reason
    }
}

/// Where a packet goes whose plan is clear at once.
pub trait Outlet<A: Addr> {
    /// Sends it, or leaves that in `outcome` to who carries out the decision.
    fn send(&mut self, packet: &Packet<A>, outcome: &mut Outcome<A>, reason: Reason, plan: Plan<A>);
}

/// Leaves all of it to who carries out the decision.
#[derive(Clone, Copy, Debug)]
pub struct Later;

impl<A: Addr> Outlet<A> for Later {
    #[inline(always)]
    fn send(&mut self, _: &Packet<A>, outcome: &mut Outcome<A>, reason: Reason, plan: Plan<A>) {
        outcome.plan(reason, plan);
    }
}

impl<A: Addr> Outcome<A> {
    /// Leaves a plan to who carries out the decision.
    #[inline(always)]
    pub fn plan(&mut self, reason: Reason, plan: Plan<A>) {
        let _ = self.send(reason, plan);
    }
}

impl<A: Addr> Decision<A> {
    /// About no packet yet.
    #[must_use]
    pub fn new() -> Self {
        let packet = Packet::nothing();
        let flow = Draft { key: FlowKey::zeroed(), value: FlowValue::default(), upward: false };
        let outcome = Outcome { verdict: Verdict::Next, reason: Reason::Malformed };
        let passage = Passage { gateway: A::zeroed(), link: 0, decap: 0, tos: None, tell: false, sport: 0 };
        let client = End { addr: A::zeroed(), port: 0 };
        let moment = Moment::default();
        Self {
            moment,
            packet,
            outer: packet,
            quoted: packet,
            passage,
            client,
            flow,
            way: Way::default(),
            outcome,
        }
    }
}

impl<A: Addr> Default for Decision<A> {
    fn default() -> Self {
        Self::new()
    }
}
