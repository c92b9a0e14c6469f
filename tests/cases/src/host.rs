//! Runs cases with tables in memory.

use std::{
    cell::Cell,
    collections::{HashMap, hash_map},
    net::IpAddr,
};

use coil_packet::{
    Decision, Family, Fib, FibQuery, Full, Insert, Later, NextHop, Path, Reason, Tables, Verdict,
    abi::{
        AffinityKey, AffinityValue, ClientKey, Config, FlowKey, FlowValue, FragKey, FragValue, HOPS, Known,
        NatKey, NatRevKey, NatRevValue, NatValue, PathKey, PathValue, PinKey, PinValue, PodValue, Way,
        config_flag, egress_flag, gateway_flag, pod_flag,
    },
    answer, apply, forward, hash,
    nat::Tallied,
    path, relay,
};

pub use crate::family::HostAddr;
use crate::{
    Case, Flow, Given, Route, World,
    memory::Memory,
    world::{self, BESIDE, MTU, POLICY, Role, UPLINK, longest},
};

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
        Given::Affinity { client, egress, gateway } => Entry::Affinity(
            AffinityKey { client: A::of(client), egress },
            AffinityValue { gateway: A::of(gateway), seen: now },
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
        return Outcome { reason: Reason::NotForUs, frame: case.frame.clone(), left: None };
    }
    let mut node = Node::<A>::new(World::new(&case.net), &case.given);
    node.fast_udp = case.fast_udp;
    node.host_stack = case.host_stack;
    let outcome = node.run(case.path, case.ingress, &case.frame, 0);
    let left = case.leaves.and_then(|flow| node.flow(&key(&flow)));
    Outcome { left: left.map(|value| (value.state, value.phase)), ..outcome }
}

/// A node with its tables in memory.
#[derive(Debug)]
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
        Outcome { reason, frame: skb.bytes, left: None }
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

impl<A: HostAddr> Tables<A> for Node<A> {
    fn config(&self) -> Config {
        let udp = config_flag::FAST_UDP | config_flag::MARK_UDP;
        let flags = match (self.host_stack, self.fast_udp) {
            (true, _) => config_flag::HOST_STACK,
            (false, false) => config_flag::FORWARD | config_flag::MARK,
            (false, true) => config_flag::FORWARD | config_flag::MARK | udp,
        };
        Config { flags, fou_port: 5555, pad: 0, mark: 0x2000, epoch: self.epoch.get(), quota: self.quota }
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn pod(&self, addr: &A) -> Option<PodValue> {
        let (_, ifindex, role) = *self.world.pods.iter().find(|pod| pod.0 == (*addr).into())?;
        let (policy, flags) = match role {
            Role::Plain => (0, 0),
            Role::Client => (POLICY, pod_flag::CLIENT | pod_flag::ORIGINATING_ONLY),
            Role::KernelClient => (POLICY, pod_flag::KERNEL_CLIENT),
            Role::Gateway => (0, pod_flag::GATEWAY),
            Role::Both => (POLICY, pod_flag::GATEWAY | pod_flag::KERNEL_CLIENT),
            Role::KernelGateway => (0, pod_flag::GATEWAY | pod_flag::KERNEL_GATEWAY | pod_flag::NEW_CLIENTS),
        };
        let (mac, host_mac) = (world::pod_mac(ifindex), world::host_mac(ifindex));
        Some(PodValue { ifindex, policy, flags, mac, host_mac, mtu: world::pod_mtu(ifindex) })
    }

    fn in_pools(&self, addr: &A) -> bool {
        let pools: Vec<_> = self.world.pools.iter().map(|pool| (*pool, ())).collect();
        longest(&pools, (*addr).into()).is_some()
    }

    fn is_uplink(&self, ifindex: u32) -> bool {
        ifindex == UPLINK
    }

    fn policy(&self, policy: u32, dst: &A) -> Option<u32> {
        if policy == POLICY { longest(&self.world.policy, (*dst).into()).flatten() } else { None }
    }

    fn egress_flags(&self, egress: u32) -> Option<u32> {
        let (_, _, auto) = self.world.egresses.iter().find(|e| e.0 == egress)?;
        let affinity = if egress == world::AFFINE { egress_flag::CLIENT_AFFINITY } else { 0 };
        let originating = if egress == world::ORIGINATING { egress_flag::ORIGINATING_ONLY } else { 0 };
        Some(affinity | originating | if *auto { egress_flag::SPORT_AUTO } else { 0 })
    }

    fn gateway(&self, egress: u32, hash: u32) -> Option<A> {
        let (_, gateways, _) = self.world.egresses.iter().find(|e| e.0 == egress)?;
        let ready: Vec<_> = gateways.iter().filter(|g| !self.world.leaving.contains(g)).collect();
        Some(A::of(**ready.get(hash::slot(hash).checked_rem(ready.len())?)?))
    }

    fn gateway_of(&self, policy: u32, addr: &A) -> Option<u32> {
        let addr = (*addr).into();
        let is_gateway = self.world.egresses.iter().any(|e| e.1.contains(&addr));
        let known = [POLICY, 0].contains(&policy) && (is_gateway || addr == self.world.service);
        let flags = if self.world.leaving.contains(&addr) { gateway_flag::NO_NEW } else { 0 };
        known.then_some(if policy == 0 { 0 } else { flags })
    }

    fn is_client(&self, key: &ClientKey<A>) -> bool {
        self.world.clients.contains(&(key.gateway.into(), key.client.into()))
    }

    fn with_pin<R>(&mut self, key: &PinKey<A>, work: impl FnOnce(&mut PinValue<A>) -> R) -> Option<R> {
        self.pins.get_mut(key).map(work)
    }

    fn put_pin(&mut self, key: &PinKey<A>, value: &PinValue<A>) {
        self.pins.insert(*key, *value);
    }

    fn with_affinity<R>(
        &mut self,
        key: &AffinityKey<A>,
        work: impl FnOnce(&mut AffinityValue<A>) -> R,
    ) -> Option<R> {
        self.affinity.get_mut(key).map(work)
    }

    fn put_affinity(&mut self, key: &AffinityKey<A>, value: &AffinityValue<A>) {
        self.affinity.insert(*key, *value);
    }

    fn frag(&self, key: &FragKey<A>) -> Option<FragValue> {
        self.frags.get(key).copied()
    }

    fn put_frag(&mut self, key: &FragKey<A>, value: &FragValue) {
        self.frags.insert(*key, *value);
    }

    fn path(&self, key: &PathKey<A>) -> Option<PathValue> {
        self.paths.get(key).copied()
    }

    fn put_path(&mut self, key: &PathKey<A>, value: &PathValue) {
        self.paths.insert(*key, *value);
    }

    fn ports(&self, word: u32) -> u64 {
        self.ports.get(&word).copied().unwrap_or_default()
    }

    fn note_ports(&mut self, word: u32, bits: u64) {
        *self.ports.entry(word).or_default() |= bits;
    }

    fn own_ports(&self, word: u32) -> u64 {
        self.own_ports.get(&word).copied().unwrap_or_default()
    }

    fn tally(&mut self, gateway: &A, what: Tallied, _len: u32) {
        self.tallies.push((*gateway, what));
    }

    fn borrow_port(&mut self, client: &A, quota: u32) -> bool {
        let lent = self.lent.entry(*client).or_default();
        *lent += 1;
        quota == 0 || *lent <= quota
    }

    fn with_flow<R>(&mut self, key: &FlowKey<A>, work: impl FnOnce(&mut FlowValue) -> R) -> Option<R> {
        self.flows.iter_mut().find(|(k, _)| k == key).map(|(_, v)| work(v))
    }

    fn add_flow(&mut self, key: &FlowKey<A>, value: &FlowValue) -> Result<(), Insert> {
        if self.flow(key).is_some() {
            return Err(Insert::Exists);
        }
        if self.flows.len() >= self.room {
            return Err(Insert::Full);
        }
        self.flows.push((*key, *value));
        Ok(())
    }

    fn lose_mark(&mut self) {
        self.lost = true;
    }

    fn lost_marks(&self) -> bool {
        self.lost
    }

    fn nat(&self, key: &NatKey<A>) -> Option<NatValue> {
        self.nat.get(key).copied()
    }

    fn with_nat<R>(&mut self, key: &NatKey<A>, work: impl FnOnce(&mut NatValue) -> R) -> Option<R> {
        self.nat.get_mut(key).map(work)
    }

    fn put_nat(&mut self, key: &NatKey<A>, value: &NatValue) -> Result<(), Full> {
        if !self.nat.contains_key(key) && self.nat.len() >= self.room {
            return Err(Full);
        }
        self.nat.insert(*key, *value);
        Ok(())
    }

    fn nat_rev(&self, key: &NatRevKey<A>) -> Option<NatRevValue<A>> {
        self.nat_rev.get(key).copied()
    }

    fn add_nat_rev(&mut self, key: &NatRevKey<A>, value: &NatRevValue<A>) -> Result<(), Insert> {
        let room = self.nat_rev.len() < self.room;
        match self.nat_rev.entry(*key) {
            hash_map::Entry::Occupied(_) => Err(Insert::Exists),
            hash_map::Entry::Vacant(_) if !room => Err(Insert::Full),
            hash_map::Entry::Vacant(entry) => {
                entry.insert(*value);
                Ok(())
            }
        }
    }

    fn remove_nat_rev(&mut self, key: &NatRevKey<A>) {
        self.nat_rev.remove(key);
    }

    fn with_nat_rev<R>(
        &mut self,
        key: &NatRevKey<A>,
        work: impl FnOnce(&mut NatRevValue<A>) -> R,
    ) -> Option<R> {
        self.nat_rev.get_mut(key).map(work)
    }

    fn hop(&self, slot: u32, way: &mut Way) -> bool {
        *way = self.hops.get(&slot).copied().unwrap_or_default();
        slot < HOPS
    }

    fn put_hop(&mut self, slot: u32, way: &Way) {
        self.hops.insert(slot, *way);
    }

    fn fib(&self, query: &FibQuery<A>) -> Fib {
        self.fib_queries.set(self.fib_queries.get() + 1);
        if self.overtaken {
            self.epoch.set(self.epoch.get() + 1);
        }
        // Each pod of the node has a route of its own.
        if let Some((_, ifindex, _)) = self.world.pods.iter().find(|(addr, ..)| *addr == query.dst.into()) {
            let via = NextHop { family: A::FAMILY, addr: [0; 16] };
            return Fib::Forward { ifindex: *ifindex, via, fits: MTU };
        }
        match longest(&self.world.routes, query.dst.into()) {
            Some(Route::Via(_) | Route::Beside(_)) if query.len > MTU => Fib::TooBig { mtu: MTU },
            Some(route @ (Route::Via(via) | Route::Beside(via))) => {
                let mut addr = [0; 16];
                let family = match via {
                    IpAddr::V4(v4) => {
                        addr[..4].copy_from_slice(&v4.octets());
                        Family::V4
                    }
                    IpAddr::V6(v6) => {
                        addr = v6.octets();
                        Family::V6
                    }
                };
                let ifindex = if matches!(route, Route::Via(_)) { UPLINK } else { BESIDE };
                Fib::Forward { ifindex, via: NextHop { family, addr }, fits: MTU }
            }
            Some(Route::Blackhole) | None => Fib::Refused,
        }
    }

    fn macs(&self) -> Option<[u8; 12]> {
        self.macs
    }
}
