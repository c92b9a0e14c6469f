//! What holds after each step, and at the end when all is calm.

use super::*;

impl World {
    /// What must hold at every moment.
    pub(crate) fn check(&mut self) -> Held {
        self.judge_news()?;
        let blocks = self.api.lock().all("addressblocks");
        for (n, a) in blocks.iter().enumerate() {
            for b in &blocks[n + 1..] {
                for (x, y) in networks(a).iter().flat_map(|x| networks(b).into_iter().map(move |y| (*x, y))) {
                    if x.contains(&y) || y.contains(&x) {
                        return Err(format!("blocks {} and {} share addresses", name(a), name(b)));
                    }
                }
            }
        }
        let owned = |node: &str| -> BTreeSet<IpNet> {
            blocks.iter().filter(|b| node_of(b) == node).flat_map(networks).collect()
        };
        let mut seen = BTreeMap::new();
        for node in &self.nodes {
            let owned = owned(&node.name);
            for (owner, allocation) in &node.live {
                for address in addresses(allocation) {
                    if let Some(other) = seen.insert(address, owner) {
                        return Err(format!("{address} is on {other} and on {owner}"));
                    }
                    if !owned.iter().any(|block| block.contains(&address)) {
                        return Err(format!("{address} of {owner} is in no block of {}", node.name));
                    }
                }
            }
            if let Some(foreign) = node.table.difference(&owned).next() {
                return Err(format!("{} exports {foreign}, which it does not own", node.name));
            }
        }
        Ok(())
    }

    /// No request changed an object that it was not meant for, and no BlockRequest was answered with a block
    /// that was made for another.
    fn judge_news(&mut self) -> Held {
        let api = self.api.lock();
        if let Some(request) = &api.misled {
            return Err(format!("meant for one object, but any other of its name would do: {request}"));
        }
        for change in &api.history[self.judged..] {
            let object = &change.object;
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
            match change.plural.as_str() {
                "addressblocks" => {
                    let request = object["metadata"]["labels"]["coil.cybozu.com/request"].as_str();
                    self.made.insert((name(object).to_owned(), request.unwrap_or_default().to_owned()));
                }
                "blockrequests" => {
                    if let Some(block) = object["status"]["addressBlockName"].as_str()
                        && !self.made.contains(&(block.to_owned(), uid.to_owned()))
                    {
                        return Err(format!("{} is answered with {block}, made for another", name(object)));
                    }
                }
                _ => {}
            }
        }
        self.judged = api.history.len();
        Ok(())
    }

    /// An agent that knows that a block is being deleted gives no new address of it: whoever deletes it may
    /// have its last step under way.
    pub(super) fn gave_from_what_stays(&self, at: usize, allocation: &Allocation) -> Held {
        let Some(agent) = &self.nodes[at].agent else { return Ok(()) };
        let given = addresses(allocation);
        let of = |block: &Value| networks(block).iter().any(|n| given.iter().any(|a| n.contains(a)));
        let blocks = self.api.lock().all("addressblocks");
        let leaves =
            |block: &&Value| agent.knew_it_leaves(block["metadata"]["uid"].as_str().unwrap_or_default());
        match blocks.iter().filter(|b| of(b)).find(leaves) {
            Some(block) => Err(format!(
                "{} gave an address of {}, which it knew leaves",
                self.nodes[at].name,
                name(block)
            )),
            None => Ok(()),
        }
    }

    /// Time passes without faults, and everything arrives.
    fn calm(&mut self, rounds: usize) -> Held {
        for _ in 0..rounds {
            for _ in 0..3 {
                let mut api = self.api.lock();
                if let Some(controller) = &mut self.leader {
                    for kind in 0..4 {
                        while controller.behind(&api).contains(&kind) {
                            controller.deliver(&api, kind, false);
                        }
                    }
                }
                for agent in self.nodes.iter_mut().filter_map(|n| n.agent.as_mut()) {
                    while agent.is_behind(&api) {
                        agent.deliver(&api, false);
                    }
                }
                let (misled, others) = api.late();
                for id in api.waiting().into_iter().chain(misled).chain(others) {
                    api.carry_out(id);
                }
                drop(api);
                self.settle()?;
                (0..self.nodes.len()).for_each(|at| self.export(at));
                self.check()?;
            }
            let draining = self.draining();
            for agent in self.nodes.iter_mut().filter_map(|n| n.agent.as_mut()) {
                agent.ipam.drain(draining.clone());
            }
            self.now += Duration::from_secs(40);
        }
        Ok(())
    }

    /// All pods go; then nothing may be left, and every address can be had again.
    pub(crate) fn finish(&mut self) -> Held {
        self.note("calm from here on");
        self.calm = true;
        self.deposed = None;
        self.leader.get_or_insert_with(|| ControllerProcess::start(&self.api));
        for at in 0..self.nodes.len() {
            if !self.node_exists(at) {
                self.start_node(at);
            }
        }
        self.start_agents();
        self.calm(8)?;
        self.empty()?;
        for at in 0..self.pools.len() {
            if self.api.lock().get("addresspools", &self.pools[at].name).is_none() {
                self.make_pool(at);
            }
            self.calm(2)?;
            self.exhaust(at)?;
            self.empty()?;
        }
        Ok(())
    }

    fn empty(&mut self) -> Held {
        for node in &mut self.nodes {
            let Some(agent) = &mut node.agent else { continue };
            for owner in std::mem::take(&mut node.live).into_keys() {
                agent.free(&owner);
            }
        }
        for _ in 0..6 {
            self.calm(3)?;
            let agents = self.nodes.iter_mut().filter_map(|n| n.agent.as_mut());
            agents.for_each(AgentProcess::gc);
            self.leader.iter_mut().for_each(ControllerProcess::collect);
        }
        self.calm(3)?;
        let pending = self.nodes.iter().filter_map(|n| n.agent.as_ref()).map(|a| a.adds.len()).sum::<usize>();
        let blocks: Vec<String> =
            self.api.lock().all("addressblocks").iter().map(|b| name(b).to_owned()).collect();
        let tables: Vec<_> = self.nodes.iter().filter(|n| !n.table.is_empty()).map(|n| &n.name).collect();
        let live = self.nodes.iter().map(|n| n.live.len()).sum::<usize>();
        if live > 0 {
            // ADDs that ended in this calm.
            return self.empty();
        }
        if pending > 0 || !blocks.is_empty() || !tables.is_empty() {
            return Err(format!(
                "not everything came back: {pending} ADDs wait, blocks {blocks:?}, exported by {tables:?}"
            ));
        }
        let families = self.leader.as_ref().unwrap().registry.gather();
        let allocated = families.iter().filter(|f| f.name() == "coil_controller_allocated_blocks");
        for metric in allocated.flat_map(prometheus::proto::MetricFamily::get_metric) {
            if metric.get_gauge().get_value() > 0.0 {
                return Err(format!("a pool still counts blocks: {metric:?}"));
            }
        }
        let gone = |pool: &String| !self.draining().contains(pool);
        if let Some(pool) = self.pools.iter().map(|p| &p.name).find(|p| !gone(p)) {
            return Err(format!("{pool} was deleted, has no blocks, and does not go"));
        }
        Ok(())
    }

    /// Blocks that came back in this run.
    pub(crate) fn count(mut self) -> Counts {
        let gone = |c: &&crate::api::Change| c.plural == "addressblocks" && c.kind == "DELETED";
        self.counts.returned = self.api.lock().history.iter().filter(gone).count();
        self.counts
    }

    /// One node takes all addresses of a pool.
    fn exhaust(&mut self, at: usize) -> Held {
        let pool = self.pools[at].name.clone();
        let subnets = self.api.lock().get("addresspools", &pool).unwrap()["spec"]["subnets"].clone();
        let subnets: Vec<IpNet> = subnets.as_array().unwrap().iter().flat_map(networks).collect();
        let host_bits = self.pools[at].host_bits;
        let both = usize::from(self.pools[at].families.0) + usize::from(self.pools[at].families.1);
        let expected = (1usize << host_bits) * subnets.len() / both;
        for n in 0..=expected {
            self.pods += 1;
            let owner = AttachmentId { container_id: format!("all{n}-{}", self.pods), ifname: "eth0".into() };
            let agent = self.nodes[0].agent.as_mut().unwrap();
            agent.add(&pool, &owner);
            for _ in 0..6 {
                self.calm(1)?;
                let agent = self.nodes[0].agent.as_ref().unwrap();
                if !agent.busy(&owner) {
                    break;
                }
            }
            if self.nodes[0].agent.as_ref().unwrap().busy(&owner) {
                return Err(format!("the {n}th address of {pool} does not come"));
            }
        }
        let had: BTreeSet<IpAddr> = self.nodes[0].live.values().flat_map(addresses).collect();
        if self.nodes[0].live.len() != expected || had.len() != expected * both {
            return Err(format!(
                "{} pods have {} addresses of {expected} in {pool}",
                self.nodes[0].live.len(),
                had.len()
            ));
        }
        Ok(())
    }
}
