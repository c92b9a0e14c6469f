//! Courses of events that chance brings about too seldom, played by hand.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use coil_agent::ipam::{Allocation, AttachmentId, IpamError};
use serde_json::{Value, json};

use crate::{
    api::{ApiModel, State, name},
    process::{AgentProcess, ControllerProcess},
};

const POOLS: usize = 0;
const BLOCKS: usize = 1;
const REQUESTS: usize = 2;
const NODES: usize = 3;

/// A pool of as many blocks with one address each as the subnets have, and two nodes.
fn cluster(ipv4: &str, ipv6: &str) -> ApiModel {
    let api = ApiModel::default();
    {
        let mut state = api.lock();
        let metadata = json!({"name": "pool", "finalizers": ["coil.cybozu.com"]});
        let spec = json!({"blockSizeBits": 0, "subnets": [{"ipv4": ipv4, "ipv6": ipv6}]});
        let pool = json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressPool", "metadata": metadata, "spec": spec});
        state.create("addresspools", pool);
        for node in ["node0", "node1"] {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
            state.create("nodes", node);
        }
    }
    api
}

fn attachment(container: &str) -> AttachmentId {
    AttachmentId { container_id: container.to_owned(), ifname: "eth0".to_owned() }
}

fn answer_all(state: &mut State) {
    for id in state.waiting() {
        state.carry_out(id);
    }
}

/// All but the answers to BlockRequests, which stay under way.
fn answer_all_but_answers(state: &mut State) {
    for id in state.waiting() {
        if !state.describe(id).ends_with("/status") {
            state.carry_out(id);
        }
    }
}

/// News, what they lead to, and the export of the blocks that are left.
fn follow(agent: &mut AgentProcess, api: &ApiModel) -> Option<Result<Allocation, IpamError>> {
    while agent.is_behind(&api.lock()) {
        agent.deliver(&api.lock(), false);
    }
    let ended = agent.run().pop();
    let blocks = agent.blocks.borrow().clone();
    agent.ipam.exported(blocks);
    agent.run();
    ended.map(|(_, result)| result)
}

/// Everything that `controller` has not read of `kinds`.
fn read(controller: &mut ControllerProcess, api: &ApiModel, kinds: &[usize]) {
    for kind in kinds {
        while controller.behind(&api.lock()).contains(kind) {
            controller.deliver(&api.lock(), *kind, false);
        }
    }
}

fn block_of(request: &Value) -> Option<&str> {
    request["status"]["addressBlockName"].as_str()
}

/// A controller that knows none of the blocks hears of a request after the block that it would carve for it
/// was given to another, whose request is gone: the block's name is taken, and the request gets the next one.
#[test]
fn a_taken_block_is_no_answer() {
    let api = cluster("10.0.0.0/31", "fd00::/127");
    let now = Instant::now();
    let mut late = ControllerProcess::start(&api);
    read(&mut late, &api, &[POOLS, BLOCKS, NODES]);

    let mut controller = ControllerProcess::start(&api);
    let mut first = AgentProcess::start(&api, "node0", Vec::new());
    first.add("pool", &attachment("first"));
    let mut given = None;
    for _ in 0..20 {
        read(&mut controller, &api, &[POOLS, BLOCKS, REQUESTS, NODES]);
        controller.run(now);
        while first.is_behind(&api.lock()) {
            first.deliver(&api.lock(), false);
        }
        given = first.run().pop().or(given);
        answer_all(&mut api.lock());
    }
    let (_, given) = given.expect("the first ADD ends");
    let given = given.unwrap();
    drop(controller);
    // With its node's next one, say.
    api.lock().delete("blockrequests", "req-pool-node0", "");

    let mut second = AgentProcess::start(&api, "node1", Vec::new());
    second.deliver(&api.lock(), false);
    second.add("pool", &attachment("second"));
    // The blocks stay as this controller knew them until it has found out by itself.
    let mut answers = BTreeSet::new();
    for round in 0..40 {
        read(&mut late, &api, &[REQUESTS]);
        late.run(now + Duration::from_secs(round));
        answer_all(&mut api.lock());
        let requests = api.lock().all("blockrequests");
        let asked = requests.iter().find(|r| r["spec"]["nodeName"] == "node1");
        answers.extend(asked.and_then(block_of).map(str::to_owned));
        second.run();
    }
    // A wrong answer does not last: the node sees that the block is not its own, and asks again.
    assert_eq!(answers.len(), 1, "one answer, from what is free: {answers:?}");
    let blocks = api.lock().all("addressblocks");
    let block = blocks.iter().find(|b| answers.contains(name(b))).expect("the block is there");
    assert_eq!(block["metadata"]["labels"]["coil.cybozu.com/node"], "node1", "{block}");
    assert_ne!(block["ipv4"], json!(format!("{}/32", given.ipv4.unwrap())), "{block}");
    assert_ne!(block["ipv6"], json!(format!("{}/128", given.ipv6.unwrap())), "{block}");
    assert_eq!(api.lock().misled, None);
}

/// A block comes and goes while the answer to its request is under way, and the controller's watch of blocks
/// starts anew in between: no event will ever tell of that block. Its place is free all the same.
#[test]
fn a_block_that_came_and_went_unseen_leaves_its_place() {
    let api = cluster("10.0.0.0/32", "fd00::/128");
    let now = Instant::now();
    let mut controller = ControllerProcess::start(&api);
    read(&mut controller, &api, &[POOLS, BLOCKS, REQUESTS, NODES]);
    let mut first = AgentProcess::start(&api, "node0", Vec::new());
    first.add("pool", &attachment("first"));
    let mut given = None;
    for _ in 0..20 {
        given = follow(&mut first, &api).or(given);
        read(&mut controller, &api, &[REQUESTS]);
        controller.run(now);
        answer_all_but_answers(&mut api.lock());
    }
    given.expect("the watch shows the block, without an answer").unwrap();
    first.free(&attachment("first"));
    for _ in 0..20 {
        follow(&mut first, &api);
        answer_all_but_answers(&mut api.lock());
    }
    assert_eq!(api.lock().all("addressblocks"), Vec::<Value>::new(), "it was returned");
    controller.deliver(&api.lock(), BLOCKS, true);
    let asked = api.lock().all("blockrequests");
    assert_eq!(asked.iter().filter_map(block_of).next(), None, "the answer is still under way");

    let mut second = AgentProcess::start(&api, "node1", Vec::new());
    let mut given = None;
    for round in 0..40 {
        if round == 10 {
            second.add("pool", &attachment("second"));
        }
        answer_all(&mut api.lock());
        controller.run(now + Duration::from_secs(round));
        read(&mut controller, &api, &[POOLS, BLOCKS, REQUESTS, NODES]);
        follow(&mut first, &api);
        given = follow(&mut second, &api).or(given);
    }
    given.expect("the second ADD ends").expect("the only block is free");
    second.free(&attachment("second"));
    api.lock().delete("addresspools", "pool", "");
    for round in 40..80 {
        follow(&mut second, &api);
        answer_all(&mut api.lock());
        read(&mut controller, &api, &[POOLS, BLOCKS, REQUESTS, NODES]);
        controller.run(now + Duration::from_secs(round));
    }
    assert_eq!(api.lock().all("addresspools"), Vec::<Value>::new(), "nothing holds the pool");
    assert_eq!(api.lock().misled, None);
}
