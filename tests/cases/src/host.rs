//! Runs cases with tables in memory.

use std::{cell::Cell, collections::HashMap};

use coil_packet::{
    Decision, Deliver, Later, Path, Plan, Reason, Verdict,
    abi::{
        AffinityKey, AffinityValue, FlowKey, FlowValue, FragKey, FragValue, Known, NatKey, NatRevKey,
        NatRevValue, NatValue, PathKey, PathValue, PinKey, PinValue, Way,
    },
    answer, apply, forward,
    nat::Tallied,
    path, relay,
};

mod tables;

pub use crate::family::HostAddr;
use crate::{Case, Flow, Given, World, memory::Memory, world};

/// Keys and values of a [`Given`] for the maps.
#[derive(Clone, Copy, Debug)]
pub enum Entry<A> {
    /// For `coil_flows`.
    Flow(FlowKey<A>, FlowValue),
    /// For `coil_frags`.
    Frag(FragKey<A>, FragValue),
    /// For `coil_pin`.
    Pin(PinKey<A>, PinValue<A>),
    /// For `coil_affinity`.
    Affinity(AffinityKey<A>, AffinityValue<A>),
    /// For `coil_nat` and `coil_nat_rev`.
    Nat(NatKey<A>, NatValue, NatRevKey<A>, NatRevValue<A>),
}

/// The key of a flow.
pub fn key<A: HostAddr>(flow: &Flow) -> FlowKey<A> {
    let (low, high) = if flow.one < flow.other { (flow.one, flow.other) } else { (flow.other, flow.one) };
    FlowKey {
        low: A::of(low.0),
        high: A::of(high.0),
        low_port: low.1,
        high_port: high.1,
        protocol: flow.protocol.into(),
    }
}

/// Makes the entries of a [`Given`] at the time `now`.
pub fn entry<A: HostAddr>(given: &Given, now: u32) -> Entry<A> {
    match *given {
        Given::Flow(flow) => {
            let value =
                FlowValue { seen: now, state: flow.state, phase: flow.phase as u8, ..FlowValue::default() };
            Entry::Flow(key(&flow), value)
        }
        Given::Frag { protocol, ends, id, ports } => Entry::Frag(
            FragKey { src: A::of(ends.0), dst: A::of(ends.1), id, protocol: protocol.into() },
            FragValue { seen: now, sport: ports.0, dport: ports.1 },
        ),
        Given::Pin { protocol, client, remote, egress, gateway } => Entry::Pin(
            PinKey {
                client: A::of(client.0),
                remote: A::of(remote.0),
                pad: 0,
                client_port: client.1,
                remote_port: remote.1,
                protocol: protocol.into(),
            },
            PinValue {
                gateway: A::of(gateway),
                seen: now,
                egress,
                ingress: 0,
                known: Known::default(),
                sport: 0,
                pad: 0,
            },
        ),
        Given::Affinity { client, egress, gateway, idle } => Entry::Affinity(
            AffinityKey { client: A::of(client), egress },
            AffinityValue { gateway: A::of(gateway), seen: now.saturating_sub(idle) },
        ),
        Given::Nat { protocol, gateway, client, remote, idle } => {
            let protocol = u32::from(protocol);
            let key = NatKey {
                gateway: A::of(gateway.0),
                client: A::of(client.0),
                remote: A::of(remote.0),
                client_port: client.1,
                remote_port: remote.1,
                protocol,
            };
            let reverse = NatRevKey {
                gateway: A::of(gateway.0),
                remote: A::of(remote.0),
                port: gateway.1,
                remote_port: remote.1,
                protocol,
            };
            let lease = NatRevValue {
                client: A::of(client.0),
                seen: now - idle,
                client_port: client.1,
                state: 0,
                pad: 0,
                known: Known::default(),
            };
            Entry::Nat(key, NatValue { port: gateway.1, ..NatValue::default() }, reverse, lease)
        }
    }
}

/// What became of a frame.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// It left by the queue of a pod's link.
    pub queued: bool,
    /// The flow that the case asks for, as it is then: state and phase.
    pub left: Option<(u8, u8)>,
}

/// Runs a case.
#[must_use]
pub fn run(case: &Case) -> Outcome {
    if case.net.is_v4() { run_in::<[u8; 4]>(case) } else { run_in::<[u8; 16]>(case) }
}

fn run_in<A: HostAddr>(case: &Case) -> Outcome {
    // What the programs do not look into.
    let ethertype = case.frame.get(12..14);
    let to = case.frame.get(..6);
    let ours = match case.path {
        Path::FromPod | Path::FromNet => to == Some(&world::host_mac(case.ingress)),
        Path::ToPod | Path::ToNet => true,
    };
    if !ours || ethertype != Some(if case.net.is_v4() { &[8, 0] } else { &[0x86, 0xdd] }) {
        return Outcome { reason: Reason::NotForUs, frame: case.frame.clone(), queued: false, left: None };
    }
    let mut node = Node::<A>::new(World::new(&case.net), &case.given);
    node.fast_udp = case.fast_udp;
    node.host_stack = case.host_stack;
    let outcome = node.run(case.path, case.ingress, &case.frame, 0);
    let left = case.leaves.and_then(|flow| node.flow(&key(&flow)));
    Outcome { left: left.map(|value| (value.state, value.phase)), ..outcome }
}

/// A node with its tables in memory.
#[derive(Clone, Debug)]
pub struct Node<A> {
    /// What the agent has written.
    pub world: World,
    flows: Vec<(FlowKey<A>, FlowValue)>,
    nat: HashMap<NatKey<A>, NatValue>,
    nat_rev: HashMap<NatRevKey<A>, NatRevValue<A>>,
    pins: HashMap<PinKey<A>, PinValue<A>>,
    affinity: HashMap<AffinityKey<A>, AffinityValue<A>>,
    frags: HashMap<FragKey<A>, FragValue>,
    /// What routers have said of paths.
    pub paths: HashMap<PathKey<A>, PathValue>,
    hops: HashMap<u32, Way>,
    ports: HashMap<u32, u64>,
    /// What the gateways did, and how often.
    pub tallies: Vec<(A, Tallied)>,
    /// Ports that each client has.
    lent: HashMap<A, u32>,
    /// Ports that gateway pods have for themselves.
    pub own_ports: HashMap<u32, u64>,
    /// Most of these; 0 for no limit.
    pub quota: u32,
    /// The clock, in seconds.
    pub now: Cell<u32>,
    /// Most entries of each table.
    pub room: usize,
    /// UDP may be fast.
    pub fast_udp: bool,
    /// Every packet passes the host's stack.
    pub host_stack: bool,
    /// The configuration's epoch.
    pub epoch: Cell<u32>,
    /// A new epoch begins whenever the routing is asked.
    pub overtaken: bool,
    /// A mark found no room.
    pub lost: bool,
    /// MAC addresses of every neighbour and of the uplink, if they are known.
    pub macs: Option<[u8; 12]>,
    /// How often the routing was asked.
    pub fib_queries: Cell<u32>,
}

impl<A: HostAddr> Node<A> {
    /// A node of `world`.
    #[must_use]
    pub fn new(world: World, given: &[Given]) -> Self {
        let now = 1_000_000;
        let mut node = Self {
            world,
            flows: vec![],
            nat: HashMap::new(),
            nat_rev: HashMap::new(),
            pins: HashMap::new(),
            affinity: HashMap::new(),
            frags: HashMap::new(),
            paths: HashMap::new(),
            hops: HashMap::new(),
            ports: HashMap::new(),
            tallies: vec![],
            lent: HashMap::new(),
            own_ports: HashMap::new(),
            quota: 0,
            now: Cell::new(now),
            room: 1000,
            fast_udp: false,
            host_stack: false,
            epoch: Cell::new(1),
            overtaken: false,
            lost: false,
            macs: None,
            fib_queries: Cell::new(0),
        };
        for given in given {
            match entry(given, now) {
                Entry::Flow(key, value) => node.flows.push((key, value)),
                Entry::Frag(key, value) => drop(node.frags.insert(key, value)),
                Entry::Pin(key, value) => drop(node.pins.insert(key, value)),
                Entry::Affinity(key, value) => drop(node.affinity.insert(key, value)),
                Entry::Nat(key, value, reverse, lease) => {
                    node.nat.insert(key, value);
                    node.nat_rev.insert(reverse, lease);
                }
            }
        }
        node
    }

    /// Runs a program on a frame.
    pub fn run(&mut self, program: Path, ingress: u32, frame: &[u8], gso_size: u32) -> Outcome {
        let mut skb = Memory { bytes: frame.to_vec(), gso_size };
        let mut decision = Decision::<A>::new();
        match program {
            Path::FromPod if path::known_from_pod(&skb, ingress, self, &mut decision, &mut Later) => {
                decision.outcome.reason
            }
            Path::FromPod => path::decide_from_pod(&skb, ingress, self, &mut decision),
            Path::FromNet if path::known_from_net(&skb, ingress, self, &mut decision, &mut Later) => {
                decision.outcome.reason
            }
            Path::FromNet => path::decide_from_net(&skb, self, &mut decision),
            Path::ToPod => path::to_pod(&skb, ingress, self, &mut decision),
            Path::ToNet => path::to_net(&skb, self, &mut decision),
        };
        let reason = decision.outcome.reason;
        let done = match &decision.outcome.verdict {
            Verdict::Next | Verdict::Drop => Ok(()),
            Verdict::Forward => forward(&mut skb, &decision.packet, &decision.way),
            Verdict::Send(plan) => apply(&mut skb, &decision.packet, plan),
            Verdict::Answer(message) => answer(&mut skb, &decision.packet, message),
            Verdict::Relay(error) => relay(&mut skb, &decision.quoted, error),
        };
        let reason = if done.is_ok() { reason } else { Reason::Rewrite };
        let queued = match &decision.outcome.verdict {
            Verdict::Send(Plan { deliver: Deliver::Link { ifindex, .. }, .. }) => {
                self.world.pods.iter().any(|(_, link, _)| link == ifindex)
            }
            _ => false,
        };
        Outcome { reason, frame: skb.bytes, queued, left: None }
    }

    /// A flow's entry.
    pub fn flow(&self, key: &FlowKey<A>) -> Option<FlowValue> {
        self.flows.iter().find(|(k, _)| k == key).map(|(_, v)| *v)
    }

    /// States of all leases: numbers of [`coil_packet::nat::State`].
    #[must_use]
    pub fn states(&self) -> Vec<u8> {
        self.nat_rev.values().map(|lease| lease.state).collect()
    }

    /// Changes what the hops' slots hold.
    pub fn change_hops(&mut self, change: impl Fn(&mut Way)) {
        self.hops.values_mut().for_each(change);
    }

    /// The live entries of the three tables: flows, translations, reverse translations.
    #[must_use]
    pub fn sizes(&self) -> [usize; 3] {
        [self.flows.len(), self.nat.len(), self.nat_rev.len()]
    }
}
