//! The cluster of one run: what happens in it, and what must hold after each step.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use coil_agent::ipam::{Allocation, AttachmentId, IpamError};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    api::{ApiModel, name},
    process::{AgentProcess, ControllerProcess},
    random::Random,
};

mod invariants;

pub(crate) type Held = Result<(), String>;

/// How often each kind of step comes, before a run's own taste.
const WEIGHTS: [usize; 14] = [70, 110, 36, 36, 20, 8, 2, 4, 16, 14, 12, 4, 5, 6];

/// How much happened.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connected: usize,
    pub(crate) refused: usize,
    pub(crate) faults: usize,
    pub(crate) crashes: usize,
    pub(crate) returned: usize,
}

struct Node {
    name: String,
    agent: Option<AgentProcess>,
    /// Connected pods: their links outlive the agent.
    live: BTreeMap<AttachmentId, Allocation>,
    /// The kernel's table 119, which outlives the agent too.
    table: BTreeSet<IpNet>,
}

struct Pool {
    name: String,
    bits: u8,
    /// Of every subnet.
    host_bits: u8,
    families: (bool, bool),
    number: usize,
}

pub(crate) struct World {
    api: ApiModel,
    random: Random,
    now: Instant,
    pools: Vec<Pool>,
    nodes: Vec<Node>,
    leader: Option<ControllerProcess>,
    /// One that has lost the lease and does not know.
    deposed: Option<ControllerProcess>,
    pods: usize,
    weights: [usize; 14],
    calm: bool,
    /// Controllers hear late of requests, and then late of blocks.
    lazy: bool,
    /// How much of the API's history was judged, and which block was made for which request.
    judged: usize,
    made: BTreeSet<(String, String)>,
    pub(crate) counts: Counts,
    pub(crate) trace: Vec<String>,
}

impl Pool {
    fn subnet(&self, at: usize) -> Value {
        let (host, number) = (self.host_bits, self.number);
        let ipv4 = self.families.0.then(|| format!("10.{number}.{at}.0/{}", 32 - host));
        let ipv6 = self.families.1.then(|| format!("fd00:{number}:{at}::/{}", 128 - host));
        match (ipv4, ipv6) {
            (Some(a), Some(b)) => json!({"ipv4": a, "ipv6": b}),
            (Some(a), None) => json!({"ipv4": a}),
            (None, b) => json!({"ipv6": b}),
        }
    }
}

fn addresses(a: &Allocation) -> Vec<IpAddr> {
    a.ipv4.map(IpAddr::V4).into_iter().chain(a.ipv6.map(IpAddr::V6)).collect()
}

fn networks(block: &Value) -> Vec<IpNet> {
    ["ipv4", "ipv6"].iter().filter_map(|f| block[*f].as_str()).map(|n| n.parse().unwrap()).collect()
}

fn node_of(block: &Value) -> &str {
    block["metadata"]["labels"]["coil.cybozu.com/node"].as_str().unwrap_or_default()
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let families = [(true, false), (false, true), (true, true)];
        let pools = (0..1 + random.below(2)).map(|number| {
            let bits = u8::try_from(random.below(3)).unwrap();
            // A pool of one block gives the same name again and again.
            let host_bits = bits + u8::try_from(random.below(3)).unwrap();
            let families = families[random.below(3)];
            Pool { name: format!("pool{number}"), bits, host_bits, families, number }
        });
        let pools: Vec<Pool> = pools.collect();
        let nodes = (0..2 + random.below(2)).map(|n| Node {
            name: format!("node{n}"),
            agent: None,
            live: BTreeMap::new(),
            table: BTreeSet::new(),
        });
        let nodes = nodes.collect();
        // Runs differ: watches that are hardly served, agents that die all the time.
        let weights = WEIGHTS.map(|weight| weight * [1, 3, 3, 9][random.below(4)]);
        let (lazy, two_lead) = (random.percent(50), random.percent(50));
        let mut world = Self {
            api: ApiModel::default(),
            random,
            now: Instant::now(),
            pools,
            nodes,
            leader: None,
            deposed: None,
            pods: 0,
            weights,
            calm: false,
            lazy,
            judged: 0,
            made: BTreeSet::new(),
            counts: Counts::default(),
            trace: Vec::new(),
        };
        for at in 0..world.pools.len() {
            world.make_pool(at);
        }
        for at in 0..world.nodes.len() {
            world.start_node(at);
        }
        world.leader = Some(ControllerProcess::start(&world.api));
        world.deposed = two_lead.then(|| ControllerProcess::start(&world.api));
        world
    }

    fn note(&mut self, text: impl Into<String>) {
        self.trace.push(text.into());
    }

    fn make_pool(&mut self, at: usize) {
        let pool = &self.pools[at];
        let spec = json!({"blockSizeBits": pool.bits, "subnets": [pool.subnet(0)]});
        let metadata = json!({"name": pool.name, "finalizers": ["coil.cybozu.com"]});
        let object = json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressPool", "metadata": metadata, "spec": spec});
        self.api.lock().create("addresspools", object);
    }

    fn node_exists(&self, at: usize) -> bool {
        self.api.lock().get("nodes", &self.nodes[at].name).is_some()
    }

    fn start_node(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}});
        self.api.lock().create("nodes", object);
        let found = node.live.values().cloned().collect();
        node.agent = Some(AgentProcess::start(&self.api, &node.name, found));
    }

    /// Everything runs until it waits for the API server or for time. ADDs that have ended connect their pod.
    fn settle(&mut self) -> Held {
        for controller in self.leader.iter_mut().chain(&mut self.deposed) {
            controller.run(self.now);
        }
        for at in 0..self.nodes.len() {
            let Some(agent) = &mut self.nodes[at].agent else { continue };
            for (owner, result) in agent.run() {
                self.ended(at, owner, result)?;
            }
            self.nodes[at].agent.iter_mut().for_each(AgentProcess::remember);
        }
        Ok(())
    }

    fn ended(&mut self, at: usize, owner: AttachmentId, result: Result<Allocation, IpamError>) -> Held {
        let Ok(allocation) = result else {
            let error = result.map(drop).unwrap_err();
            self.counts.refused += 1;
            self.note(format!("  node{at} {owner} got nothing: {error}"));
            return Ok(());
        };
        self.note(format!("  node{at} {owner} got {:?} {:?}", allocation.ipv4, allocation.ipv6));
        let again = self.nodes[at].live.get(&owner).cloned();
        if let Some(before) = again {
            return if before == allocation {
                Ok(())
            } else {
                Err(format!("{owner} had {before:?}, now {allocation:?}"))
            };
        }
        self.gave_from_what_stays(at, &allocation)?;
        if !self.calm && self.random.percent(10) {
            self.note("  but connecting the pod fails");
            if let Some(agent) = &mut self.nodes[at].agent {
                agent.free(&owner);
            }
        } else {
            self.nodes[at].live.insert(owner, allocation);
            self.counts.connected += 1;
        }
        Ok(())
    }

    /// One thing happens: what is chosen may be impossible now, such as news when all is read.
    pub(crate) fn step(&mut self) -> Held {
        let before = self.trace.len();
        for _ in 0..50 {
            self.try_step();
            if self.trace.len() > before {
                break;
            }
        }
        self.settle()?;
        self.check()
    }

    fn try_step(&mut self) {
        let mut at = self.random.below(self.weights.iter().sum());
        let mut chosen = 0;
        while at >= self.weights[chosen] {
            at -= self.weights[chosen];
            chosen += 1;
        }
        match chosen {
            0 => self.deliver_one(),
            1 => self.answer_one(),
            2 => (0..1 + self.random.below(3)).for_each(|_| self.add()),
            3 => (0..1 + self.random.below(3)).for_each(|_| self.del()),
            4 => self.export_one(),
            5 => self.with_agent("collects garbage", |_, agent| agent.gc()),
            6 => self.tell_draining(),
            7 => self.crash_agent(),
            8 => self.start_agents(),
            9 => self.controllers(),
            10 => self.time_passes(),
            11 => self.relist(),
            12 => self.nodes_come_and_go(),
            _ => self.pools_change(),
        }
    }

    fn with_agent(&mut self, what: &str, act: impl FnOnce(&mut Random, &mut AgentProcess)) {
        let at = self.random.below(self.nodes.len());
        if let Some(agent) = &mut self.nodes[at].agent {
            self.trace.push(format!("node{at} {what}"));
            act(&mut self.random, agent);
        }
    }

    fn deliver_one(&mut self) {
        let api = self.api.lock();
        let mut behind = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            if node.agent.as_ref().is_some_and(|a| a.is_behind(&api)) {
                behind.push((at, 0));
            }
        }
        for (which, controller) in [(100, &self.leader), (101, &self.deposed)] {
            behind.extend(controller.iter().flat_map(|c| c.behind(&api)).map(|kind| (which, kind)));
        }
        let Some((which, kind)) = self.random.pick(&behind).copied() else { return };
        let controller = if which == 100 { &self.leader } else { &self.deposed };
        if self.lazy && which >= 100 && self.random.percent(95) {
            // Blocks as they were once, and requests as they are now: what such a controller gives is often taken.
            let listed = controller.as_ref().is_some_and(|c| c.has_listed(kind));
            if matches!((kind, listed), (1, true) | (2, false)) {
                return;
            }
        }
        match which {
            100 => self.leader.as_mut().unwrap().deliver(&api, kind, false),
            101 => self.deposed.as_mut().unwrap().deliver(&api, kind, false),
            at => self.nodes[at].agent.as_mut().unwrap().deliver(&api, false),
        }
        drop(api);
        self.note(format!("news for {which}/{kind}"));
    }

    fn answer_one(&mut self) {
        let mut api = self.api.lock();
        let (misled, others) = api.late();
        // Late enough to find another object, as often as there is a chance for it.
        let (late, chance) = if misled.is_empty() { (others, 1) } else { (misled, 40) };
        if self.random.percent(chance)
            && let Some(id) = self.random.pick(&late).copied()
        {
            let what = api.describe(id);
            api.carry_out(id);
            drop(api);
            return self.note(format!("{what} arrives late"));
        }
        let Some(id) = self.random.pick(&api.waiting()).copied() else { return };
        let how = self.random.below(100);
        let what = api.describe(id);
        let doubled = self.random.percent(30);
        match how {
            0..70 if doubled => api.double(id),
            0..70 => api.carry_out(id),
            70..82 => api.lose_answer(id),
            82..90 => api.lose(id),
            _ => api.delay(id),
        }
        drop(api);
        self.counts.faults += usize::from(how >= 70);
        let how = ["is carried out", "is carried out, its answer lost", "is lost", "is delayed"]
            [usize::from(how >= 70) + usize::from(how >= 82) + usize::from(how >= 90)];
        self.note(format!("{what} {how}"));
    }

    fn add(&mut self) {
        let at = self.random.below(self.nodes.len());
        let pool = self.pools[self.random.below(self.pools.len())].name.clone();
        let node = &mut self.nodes[at];
        let known: Vec<AttachmentId> = node.live.keys().cloned().collect();
        let Some(agent) = &mut node.agent else { return };
        let again = self.random.percent(10).then(|| self.random.pick(&known).cloned()).flatten();
        let owner = again.unwrap_or_else(|| {
            self.pods += 1;
            AttachmentId { container_id: format!("c{}", self.pods), ifname: "eth0".into() }
        });
        if !agent.busy(&owner) {
            agent.add(&pool, &owner);
            self.note(format!("node{at} ADD {owner} in {pool}"));
        }
    }

    fn del(&mut self) {
        let at = self.random.below(self.nodes.len());
        let node = &mut self.nodes[at];
        let known: Vec<AttachmentId> = node.live.keys().cloned().collect();
        let (Some(agent), Some(owner)) = (&mut node.agent, self.random.pick(&known)) else { return };
        if !agent.busy(owner) {
            node.live.remove(owner);
            agent.free(owner);
            self.note(format!("node{at} DEL {owner}"));
        }
    }

    fn export_one(&mut self) {
        let at = self.random.below(self.nodes.len());
        self.export(at);
    }

    /// Table 119 follows what the agent says, once it says anything.
    fn export(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(agent) = &mut node.agent else { return };
        // The channel's first value is no news.
        if agent.said_blocks() {
            let wanted = agent.blocks.borrow().clone();
            if node.table == wanted && agent.told {
                return;
            }
            agent.told = true;
            node.table.clone_from(&wanted);
            agent.ipam.exported(wanted);
            self.note(format!("node{at} exports"));
        }
    }

    fn tell_draining(&mut self) {
        let draining = self.draining();
        self.with_agent("hears which pools drain", |_, agent| agent.ipam.drain(draining));
    }

    fn draining(&self) -> BTreeSet<String> {
        let pools = self.api.lock().all("addresspools");
        pools
            .iter()
            .filter(|p| !p["metadata"]["deletionTimestamp"].is_null())
            .map(|p| name(p).to_owned())
            .collect()
    }

    fn crash_agent(&mut self) {
        let at = self.random.below(self.nodes.len());
        if self.nodes[at].agent.take().is_some() {
            self.counts.crashes += 1;
            self.note(format!("node{at} coild dies"));
        }
    }

    fn start_agents(&mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].agent.is_none() && self.node_exists(at) {
                let node = &mut self.nodes[at];
                let found = node.live.values().cloned().collect();
                node.agent = Some(AgentProcess::start(&self.api, &node.name, found));
                self.note(format!("node{at} coild starts"));
            }
        }
    }

    fn controllers(&mut self) {
        let what = match self.random.below(10) {
            0 => {
                self.counts.crashes += usize::from(self.leader.is_some());
                self.leader = None;
                "the controller dies"
            }
            1 => {
                self.deposed = None;
                "the deposed controller dies"
            }
            2 | 3 => {
                self.deposed = self.leader.take();
                self.leader = Some(ControllerProcess::start(&self.api));
                "another controller leads, and the old one does not know"
            }
            4 | 5 => {
                self.leader.iter_mut().for_each(ControllerProcess::collect);
                "the controller collects garbage"
            }
            _ => {
                self.leader.get_or_insert_with(|| ControllerProcess::start(&self.api));
                "there is a controller"
            }
        };
        self.note(what);
    }

    fn time_passes(&mut self) {
        self.now += Duration::from_millis(100 * (1 << self.random.below(9)));
        self.note("time passes");
    }

    fn relist(&mut self) {
        let kind = self.random.below(5);
        let api = self.api.lock();
        match (kind, &mut self.leader) {
            (4, _) => {
                let at = self.random.below(self.nodes.len());
                self.nodes[at].agent.iter_mut().for_each(|agent| agent.deliver(&api, true));
            }
            (kind, Some(leader)) => leader.deliver(&api, kind, true),
            _ => {}
        }
        drop(api);
        self.note(format!("a watch starts anew ({kind})"));
    }

    fn nodes_come_and_go(&mut self) {
        let at = self.random.below(self.nodes.len());
        if self.node_exists(at) {
            // The machine is gone, with its pods and its kernel.
            let node = &mut self.nodes[at];
            (node.agent, node.table) = (None, BTreeSet::new());
            node.live.clear();
            self.api.lock().delete("nodes", &node.name, "");
            self.note(format!("node{at} is removed"));
        } else {
            self.start_node(at);
            self.note(format!("node{at} is back"));
        }
    }

    fn pools_change(&mut self) {
        let at = self.random.below(self.pools.len());
        let pool = &self.pools[at];
        let existing = self.api.lock().get("addresspools", &pool.name).cloned();
        let Some(existing) = existing else {
            self.make_pool(at);
            return self.note(format!("pool{at} is made again"));
        };
        let mut subnets = existing["spec"]["subnets"].as_array().cloned().unwrap_or_default();
        if self.random.percent(50) && subnets.len() < 3 {
            subnets.push(pool.subnet(subnets.len()));
            let patch = json!({"spec": {"subnets": subnets}});
            self.api.lock().patch("addresspools", &pool.name, &patch, false);
            self.note(format!("pool{at} gets another subnet"));
        } else if self.random.percent(30) {
            self.api.lock().delete("addresspools", &pool.name, "");
            self.note(format!("pool{at} is deleted"));
        }
    }
}
