use std::collections::BTreeSet;

use coil_api::crd::{AddressPoolSpec, BlockRequest, BlockRequestSpec, SubnetSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::ipam::index::Kind;

struct World {
    index: Index,
}

impl World {
    fn new(pools: &[(&str, &[&str])]) -> Self {
        let mut world = Self { index: Index::default() };
        for (name, subnets) in pools {
            world.pool(name, subnets, false);
        }
        world.index.apply_node("node1");
        world
    }

    fn pool(&mut self, name: &str, subnets: &[&str], deleting: bool) -> Vec<Key> {
        let subnets = subnets.iter().map(|s| SubnetSet {
            ipv4: (!s.contains(':')).then(|| (*s).to_owned()),
            ipv6: s.contains(':').then(|| (*s).to_owned()),
        });
        let spec = AddressPoolSpec { block_size_bits: 1, subnets: subnets.collect() };
        let mut pool = AddressPool::new(name, spec);
        pool.metadata.uid = Some(format!("uid-{name}"));
        pool.metadata.resource_version = Some("7".into());
        pool.metadata.finalizers = Some(vec![FINALIZER.into()]);
        pool.metadata.deletion_timestamp = deleting.then_some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        self.index.apply_pool(&pool.metadata, Ok(&pool))
    }

    fn request(&mut self, uid: &str, pool: &str) -> Option<Work> {
        let spec = BlockRequestSpec { node_name: "node1".into(), pool_name: pool.into() };
        let mut request = BlockRequest::new(uid, spec);
        request.metadata.uid = Some(uid.into());
        let keys = self.index.apply_request(&request.metadata, Ok(&request));
        assert_eq!(keys, [Key::Request(uid.into())]);
        self.index.decide(&keys[0])
    }

    /// A request whose block is created.
    fn block(&mut self, uid: &str, pool: &str) -> AddressBlock {
        let Some(Work::Carve { mut block, .. }) = self.request(uid, pool) else {
            panic!("no block for {uid}")
        };
        block.metadata.uid = Some(format!("block-{uid}"));
        self.index.apply_block(&block.metadata, Ok(&block));
        *block
    }

    fn refused(&mut self, uid: &str, pool: &str) -> Refusal {
        match self.request(uid, pool) {
            Some(Work::Refuse { refusal, .. } | Work::RefuseWithoutPool { refusal, .. }) => refusal,
            other => panic!("{other:?}"),
        }
    }
}

fn name(block: &AddressBlock) -> &str {
    block.metadata.name.as_deref().unwrap()
}

#[test]
fn a_block_has_what_coil_v2_gives_it() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    let block = w.block("r1", "default");
    assert_eq!(name(&block), "default-0");
    assert_eq!((block.block.index, block.block.ipv4.as_deref()), (0, Some("10.0.0.0/31")));
    let labels = block.metadata.labels.unwrap();
    assert_eq!(labels[LABEL_POOL], "default");
    assert_eq!(labels[LABEL_NODE], "node1");
    assert_eq!(labels[LABEL_REQUEST], "r1");
    assert_eq!(block.metadata.finalizers.unwrap(), [FINALIZER]);
    let owner = &block.metadata.owner_references.unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("AddressPool", "uid-default"));
    assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), Some(true)));
}

#[test]
fn a_block_that_was_made_before_a_crash_answers_its_request() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    let block = w.block("r1", "default");
    let mut restarted = World::new(&[("default", &["10.0.0.0/29"])]);
    restarted.index.apply_block(&block.metadata, Ok(&block));
    let work = restarted.request("r1", "default");
    assert!(matches!(work, Some(Work::Answer { block, .. }) if block == "default-0"));
}

#[test]
fn trying_again_makes_the_same_block() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    let first = w.request("r1", "default");
    assert!(matches!(first, Some(Work::Carve { .. })));
    assert_eq!(w.request("r1", "default"), first);
    let Some(Work::Carve { block, .. }) = w.request("r2", "default") else { panic!() };
    assert_eq!(name(&block), "default-1");
}

#[test]
fn a_taken_name_leads_to_another_block() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    let Some(Work::Carve { mut block, .. }) = w.request("r1", "default") else { panic!() };
    block.metadata.labels.as_mut().unwrap().insert(LABEL_REQUEST.into(), "other".into());
    w.index.apply_block(&block.metadata, Ok(&block));
    w.index.taken("r1");
    assert_eq!(name(&w.block("r1", "default")), "default-1");
}

#[test]
fn a_returned_block_is_given_last() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    let first = w.block("r1", "default");
    assert_eq!(w.index.delete_block(name(&first), "block-r1"), [Key::Pool("default".into())]);
    let next: Vec<String> = (2..6).map(|n| name(&w.block(&format!("r{n}"), "default")).to_owned()).collect();
    assert_eq!(next, ["default-1", "default-2", "default-3", "default-0"]);
}

#[test]
fn refusals_say_why() {
    let mut w =
        World::new(&[("default", &["10.0.0.0/31"]), ("bad", &["10.0.0.0"]), ("gone", &["10.1.0.0/24"])]);
    w.pool("gone", &["10.1.0.0/24"], true);
    w.block("r1", "default");
    let refusal = w.refused("r2", "default");
    assert_eq!(refusal.reason, "out of blocks");
    assert_eq!(refusal.message, "pool default does not have free blocks");
    let bad = w.refused("r3", "bad");
    assert_eq!(bad.reason, "malformed pool");
    assert!(bad.message.contains("spec.subnets[0].ipv4"), "{}", bad.message);
    assert_eq!(w.refused("r4", "gone").reason, "pool is being deleted");
    assert_eq!(w.refused("r5", "absent").reason, "pool not found");
    w.index.delete_block("default-0", "block-r1");
    assert_eq!(name(&w.block("r6", "default")), "default-0", "neighbours are served");
}

#[test]
fn a_request_waits_for_a_pool_that_appears() {
    let mut w = World::new(&[]);
    assert!(matches!(w.request("r1", "late"), Some(Work::RefuseWithoutPool { .. })));
    let keys = w.pool("late", &["10.0.0.0/24"], false);
    assert!(keys.contains(&Key::Request("r1".into())));
    assert!(matches!(w.index.decide(&Key::Request("r1".into())), Some(Work::Carve { .. })));
}

#[test]
fn addresses_of_another_pool_are_passed_over() {
    let mut w = World::new(&[("a", &["10.0.0.0/29"]), ("b", &["10.0.0.0/30"])]);
    w.block("r1", "a");
    let second = w.block("r2", "b");
    assert_eq!(second.block.ipv4.as_deref(), Some("10.0.0.2/31"));
    let refusal = w.refused("r3", "b");
    assert!(refusal.message.contains("10.0.0.0/31"), "{}", refusal.message);
    let third = w.block("r4", "a");
    assert_eq!(third.block.ipv4.as_deref(), Some("10.0.0.4/31"), "not pool b's");
}

#[test]
fn a_pool_is_held_until_its_last_block_is_gone() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    w.block("r1", "default");
    let key = Key::Pool("default".into());
    assert_eq!(w.index.decide(&key), None);
    w.pool("default", &["10.0.0.0/29"], true);
    assert_eq!(w.index.decide(&key), None, "a block is left");
    w.index.delete_block("default-0", "block-r1");
    let Some(Work::LetGo { finalizers, .. }) = w.index.decide(&key) else { panic!() };
    assert!(finalizers.is_empty());
    let bare = AddressPool::new("new", AddressPoolSpec { block_size_bits: 5, subnets: vec![] });
    w.index.apply_pool(&bare.metadata, Ok(&bare));
    let Some(Work::Finalizers { finalizers, .. }) = w.index.decide(&Key::Pool("new".into())) else {
        panic!()
    };
    assert_eq!(finalizers, [FINALIZER]);
}

#[test]
fn blocks_of_absent_nodes_are_orphans() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    w.block("r1", "default");
    assert_eq!(w.index.orphans(), []);
    w.index.delete_node("node1");
    let keys = w.index.orphans();
    assert_eq!(keys, [Key::Block("default-0".into())]);
    assert!(matches!(w.index.decide(&keys[0]), Some(Work::Collect { node, .. }) if node == "node1"));
    w.index.apply_node("node1");
    assert_eq!(w.index.decide(&keys[0]), None);
}

#[test]
fn an_unreadable_block_still_takes_its_place() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    let meta = ObjectMeta { name: Some("default-1".into()), uid: Some("u".into()), ..Default::default() };
    w.index.apply_block(&meta, Err("unreadable".into()));
    let names: Vec<String> = (0..3).map(|n| name(&w.block(&format!("r{n}"), "default")).to_owned()).collect();
    assert_eq!(names, ["default-2", "default-3", "default-0"]);
    assert_eq!(w.refused("r9", "default").reason, "out of blocks");
}

#[test]
fn a_request_that_was_given_up_frees_its_index() {
    let mut w = World::new(&[("default", &["10.0.0.0/31"])]);
    assert!(matches!(w.request("r1", "default"), Some(Work::Carve { .. })));
    assert_eq!(w.refused("r2", "default").reason, "out of blocks");
    w.index.delete_request("r1", "r1");
    assert_eq!(w.refused("r2", "default").reason, "out of blocks", "its block may yet be made");
    w.index.not_made("r1");
    assert_eq!(name(&w.block("r3", "default")), "default-0");
}

#[test]
fn a_pool_whose_subnets_overlap_gives_each_address_once() {
    let mut w = World::new(&[("old", &["10.0.0.0/30", "10.0.0.2/31"])]);
    let networks: Vec<_> = ["r1", "r2"].map(|r| w.block(r, "old").block.ipv4.unwrap()).into();
    assert_eq!(networks, ["10.0.0.0/31", "10.0.0.2/31"]);
    assert_eq!(w.refused("r3", "old").reason, "out of blocks");
}

#[test]
fn a_made_block_keeps_its_index_until_the_watch_shows_it() {
    let mut w = World::new(&[("default", &["10.0.0.0/31"])]);
    let Some(Work::Carve { mut block, request }) = w.request("r1", "default") else { panic!() };
    w.index.made("r1");
    let answer = w.index.decide(&Key::Request("r1".into()));
    assert!(
        matches!(answer, Some(Work::Answer { block, .. }) if block == "default-0"),
        "it is known by its name"
    );
    w.index.delete_request("r1", &request.uid);
    assert_eq!(w.refused("r2", "default").reason, "out of blocks", "the block exists, seen or not");
    block.metadata.uid = Some("b1".into());
    w.index.apply_block(&block.metadata, Ok(&block));
    w.index.delete_block("default-0", "b1");
    // An answer to the creation that comes only now must not bring the block back.
    w.index.made("r1");
    assert_eq!(name(&w.block("r3", "default")), "default-0");
}

/// What follows from a complete list of blocks that shows none.
fn list_without_blocks(w: &mut World) -> Vec<Key> {
    w.index.begin(Kind::Blocks);
    w.index.end(Kind::Blocks)
}

#[test]
fn a_list_without_a_made_block_frees_its_index() {
    let mut w = World::new(&[("default", &["10.0.0.0/31"])]);
    w.index.begin(Kind::Blocks);
    assert!(matches!(w.request("r1", "default"), Some(Work::Carve { .. })));
    assert_eq!(w.index.made("r1"), []);
    w.index.delete_request("r1", "r1");
    assert_eq!(w.index.gone("r1"), [], "nobody asked");
    assert_eq!(w.refused("r2", "default").reason, "out of blocks");
    // What is in a list that was under way then may be from before the block, or from after it.
    let keys = w.index.end(Kind::Blocks);
    assert_eq!(keys, [Key::Block("default-0".into())]);
    assert_eq!(list_without_blocks(&mut w), keys, "and asked again where there was no answer");
    let confirm = Work::Confirm { request: "r1".into(), block: "default-0".into() };
    assert_eq!(w.index.decide(&keys[0]), Some(confirm));
    assert_eq!(w.refused("r2", "default").reason, "out of blocks", "it may be made after the list");
    assert_eq!(w.index.gone("r1"), [Key::Pool("default".into())]);
    assert_eq!(w.index.decide(&keys[0]), None);
    assert!(matches!(w.request("r2", "default"), Some(Work::Carve { .. })));
}

/// The answer to the creation comes when a list began that passed over all of the block's life.
#[test]
fn a_block_that_came_and_went_before_it_was_known_to_be_made_is_asked_for() {
    for ended_before in [true, false] {
        let mut w = World::new(&[("default", &["10.0.0.0/31"])]);
        assert!(matches!(w.request("r1", "default"), Some(Work::Carve { .. })));
        w.index.begin(Kind::Blocks);
        let doubt = [Key::Block("default-0".into())];
        if ended_before {
            assert_eq!(w.index.end(Kind::Blocks), [], "it may not be made yet");
            assert_eq!(w.index.made("r1"), doubt);
        } else {
            assert_eq!(w.index.made("r1"), []);
            assert_eq!(w.index.end(Kind::Blocks), doubt);
        }
        assert!(matches!(w.index.decide(&doubt[0]), Some(Work::Confirm { .. })));
        assert_eq!(w.index.gone("r1"), [], "no other is made while its request is open");
        let answer = w.index.decide(&Key::Request("r1".into()));
        assert!(matches!(answer, Some(Work::Answer { block, .. }) if block == "default-0"));
        assert_eq!(w.index.delete_request("r1", "r1"), [Key::Pool("default".into())]);
        assert!(matches!(w.request("r2", "default"), Some(Work::Carve { .. })));
    }
}

#[test]
fn a_late_answer_to_a_question_takes_nothing_from_the_next_block() {
    let mut w = World::new(&[("default", &["10.0.0.0/31"])]);
    let Some(Work::Carve { mut block, .. }) = w.request("r1", "default") else { panic!() };
    w.index.made("r1");
    list_without_blocks(&mut w);
    block.metadata.uid = Some("b1".into());
    w.index.apply_block(&block.metadata, Ok(&block));
    assert_eq!(w.index.decide(&Key::Block("default-0".into())), None, "the watch has shown it");
    w.index.delete_block("default-0", "b1");
    // Its request is still open.
    assert!(matches!(w.request("r1", "default"), Some(Work::Carve { .. })));
    w.index.delete_request("r1", "r1");
    assert_eq!(w.index.gone("r1"), []);
    assert_eq!(w.refused("r2", "default").reason, "out of blocks", "that one is being made");
}

#[test]
fn a_refused_request_does_not_hold_its_pool() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    assert!(matches!(w.request("r1", "default"), Some(Work::Carve { .. })));
    w.index.not_made("r1");
    w.pool("default", &["10.0.0.0/29"], true);
    let mut request =
        BlockRequest::new("r1", BlockRequestSpec { node_name: "node1".into(), pool_name: "default".into() });
    request.metadata.uid = Some("r1".into());
    let refused = serde_json::json!({"conditions": [{"type": "Complete", "status": "True"}, {"type": "Failed", "status": "True"}]});
    request.status = serde_json::from_value(refused).unwrap();
    let keys = w.index.apply_request(&request.metadata, Ok(&request));
    assert_eq!(keys, [Key::Pool("default".into())]);
    assert!(matches!(w.index.decide(&keys[0]), Some(Work::LetGo { .. })));
}

#[test]
fn a_block_that_took_the_place_of_another_answers_only_its_own_request() {
    let mut w = World::new(&[("default", &["10.0.0.0/31"])]);
    let mut block = w.block("r1", "default");
    block.metadata.uid = Some("another".into());
    block.metadata.labels.as_mut().unwrap().insert(LABEL_REQUEST.into(), "r2".into());
    w.index.apply_block(&block.metadata, Ok(&block));
    assert_eq!(w.refused("r1", "default").reason, "out of blocks");
    assert!(matches!(w.request("r2", "default"), Some(Work::Answer { .. })));
    assert_eq!(w.index.changed_counts(), [("default".into(), Some((1, 1)))]);
}

#[test]
fn nodes_that_are_not_there_get_nothing() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    w.index.delete_node("node1");
    let work = w.request("r1", "default");
    assert!(matches!(&work, Some(Work::RefuseWithoutNode { node, .. }) if node == "node1"), "{work:?}");
    w.index.apply_node("node1");
    assert!(matches!(w.request("r1", "default"), Some(Work::Carve { .. })));
}

#[test]
fn a_list_of_nodes_mends_what_the_watch_missed() {
    let mut w = World::new(&[("default", &["10.0.0.0/29"])]);
    w.block("r1", "default");
    w.index.apply_node("gone");
    let Some(Work::ListNodes { known }) = w.index.decide(&Key::Nodes) else { panic!("no list") };
    // It came while the list was under way.
    w.index.apply_node("new");
    w.index.listed_nodes(&known, &["late".to_owned()].into());
    assert_eq!(w.index.nodes.keys().map(|n| &**n).collect::<Vec<_>>(), ["late", "new"]);
    assert_eq!(w.index.orphans(), [Key::Block("default-0".into())], "node1 is gone");
}

#[test]
fn people_hear_of_exhaustion_room_and_malformed_objects_once() {
    let told = |w: &mut World| -> Vec<(Reason, String)> {
        w.index.take_notices().into_iter().map(|n| (n.reason, n.name.to_string())).collect()
    };
    let mut w =
        World::new(&[("default", &["10.0.0.0/31"]), ("bad", &["10.0.0.0"]), ("wide", &["10.0.0.0/24"])]);
    assert_eq!(told(&mut w), [(Reason::Malformed, "bad".into()), (Reason::Overlap, "wide".into())]);
    w.pool("bad", &["10.0.0.0"], false);
    w.block("r1", "default");
    assert_eq!(told(&mut w), []);
    w.refused("r2", "default");
    assert_eq!(told(&mut w), [(Reason::OutOfBlocks, "default".into())]);
    w.index.delete_block("default-0", "block-r1");
    assert_eq!(told(&mut w), [(Reason::BlocksAvailable, "default".into())]);
    let mut bad = AddressBlock::new(
        ObjectMeta { name: Some("x-1".into()), ..ObjectMeta::default() },
        BlockFields::default(),
    );
    w.index.apply_block(&bad.metadata, Ok(&bad));
    w.index.apply_block(&bad.metadata, Ok(&bad));
    bad.block.ipv4 = Some("10.9.0.0".into());
    w.index.apply_block(&bad.metadata, Ok(&bad));
    assert_eq!(told(&mut w), [(Reason::Malformed, "x-1".into())]);
    let empty =
        BlockRequest::new("r9", BlockRequestSpec { node_name: "node1".into(), pool_name: String::new() });
    w.index.apply_request(&empty.metadata, Ok(&empty));
    assert_eq!(told(&mut w), [(Reason::Malformed, "r9".into())]);
}

proptest::proptest! {
    /// Whatever comes and goes, blocks that exist never share an address, and none is lost.
    #[test]
    fn blocks_never_overlap(steps in proptest::collection::vec((0..4u8, 0..2u8, 0..12u8), 1..120)) {
        let mut w = World::new(&[("a", &["10.0.0.0/28"]), ("b", &["10.0.0.8/29", "fd00::/126"])]);
        let mut live: Vec<AddressBlock> = Vec::new();
        for (n, (op, pool, who)) in steps.into_iter().enumerate() {
            let pool = if pool == 0 { "a" } else { "b" };
            match op {
                0 | 1 => {
                    let uid = format!("r{n}");
                    if let Some(Work::Carve { mut block, .. }) = w.request(&uid, pool) {
                        block.metadata.uid = Some(format!("block-{uid}"));
                        // A crash before the block is made, or after it.
                        if op == 0 {
                            w.index.apply_block(&block.metadata, Ok(&block));
                            live.push(*block);
                        } else {
                            w.index.delete_request(&uid, &uid);
                        }
                    }
                }
                2 if !live.is_empty() => {
                    let block = live.swap_remove(usize::from(who) % live.len());
                    w.index.delete_block(name(&block), block.metadata.uid.as_deref().unwrap());
                }
                _ => {
                    w = World::new(&[("a", &["10.0.0.0/28"]), ("b", &["10.0.0.8/29", "fd00::/126"])]);
                    for block in &live {
                        w.index.apply_block(&block.metadata, Ok(block));
                    }
                }
            }
            let mut seen = BTreeSet::new();
            for block in &live {
                proptest::prop_assert!(seen.insert(name(block).to_owned()));
                for net in [&block.block.ipv4, &block.block.ipv6].into_iter().flatten() {
                    let net: IpNet = net.parse().unwrap();
                    for address in net.hosts() {
                        proptest::prop_assert!(seen.insert(address.to_string()), "{address} twice");
                    }
                }
            }
        }
    }
}
