use std::collections::{BTreeMap, BTreeSet, HashSet};

use coil_api::crd::BlockFields;
use proptest::prelude::*;

use super::*;

fn owner(n: usize) -> AttachmentId {
    AttachmentId { container_id: format!("c{n}"), ifname: "eth0".into() }
}

/// A dual-stack block of four addresses.
fn block(pool: &str, index: i32, generation: u32) -> BlockInfo {
    let fields = BlockFields {
        index,
        ipv4: Some(format!("10.{}.0.{}/30", pool.len(), index * 4)),
        ipv6: Some(format!("fd00:{}::{:x}/126", pool.len(), index * 4)),
    };
    BlockInfo {
        name: format!("{pool}-{index}"),
        uid: format!("{pool}-{index}-{generation}"),
        pool: pool.to_owned(),
        index,
        networks: Networks::parse(&fields).unwrap(),
        reserved: false,
        deleting: false,
        finalizer: true,
    }
}

fn table(blocks: impl IntoIterator<Item = BlockInfo>) -> Table {
    let mut table = Table::default();
    blocks.into_iter().for_each(|b| table.upsert(b));
    table
}

#[test]
fn an_owner_gets_the_same_addresses_again() {
    let mut t = table([block("a", 0, 0)]);
    let first = t.allocate("a", &owner(1)).unwrap();
    assert_eq!(t.allocate("a", &owner(1)), Some(first.clone()));
    assert_eq!(first.ipv4.unwrap().to_string(), "10.1.0.0");
    assert_eq!(first.ipv6.unwrap().to_string(), "fd00:1::");
    let second = AttachmentId { ifname: "net1".into(), ..owner(1) };
    assert_ne!(t.allocate("a", &second).unwrap().ipv4, first.ipv4);
}

#[test]
fn pools_do_not_mix_and_the_lowest_block_comes_first() {
    let mut t = table([block("a", 10, 0), block("a", 2, 0), block("bb", 0, 0)]);
    assert_eq!(t.allocate("a", &owner(1)).unwrap().ipv4.unwrap().to_string(), "10.1.0.8");
    assert_eq!(t.allocate("bb", &owner(2)).unwrap().ipv4.unwrap().to_string(), "10.2.0.0");
    assert_eq!(t.allocate("ccc", &owner(3)), None);
}

#[test]
fn reserved_blocks_are_announced_and_half_returned_ones_are_not() {
    let mut t = table([
        BlockInfo { reserved: true, ..block("a", 0, 0) },
        BlockInfo { deleting: true, ..block("a", 1, 0) },
    ]);
    assert_eq!(t.allocate("a", &owner(1)), None);
    assert_eq!(t.networks().len(), 2);
    let gone: Vec<String> = t.depart_idle().into_iter().map(|d| d.name).collect();
    assert_eq!(gone, ["a-1"], "a reserved block is somebody else's business");
}

#[test]
fn recovery_before_and_after_the_block_is_known() {
    let found = Allocation {
        pool: "a".into(),
        owner: owner(1),
        ipv4: Some("10.1.0.1".parse().unwrap()),
        ipv6: Some("fd00:1::1".parse().unwrap()),
    };
    for before in [true, false] {
        let mut t = table([]);
        if before {
            assert!(!t.recover(found.clone()));
        }
        t.upsert(block("a", 0, 0));
        if !before {
            assert!(t.recover(found.clone()));
        }
        assert_eq!(t.allocate("a", &owner(1)), Some(found.clone()));
        let others: Vec<_> = (2..6).filter_map(|n| t.allocate("a", &owner(n))).collect();
        assert_eq!(others.len(), 3, "three addresses were left");
        assert!(others.iter().all(|a| a.ipv4 != found.ipv4 && a.ipv6 != found.ipv6));
    }
}

#[test]
fn the_last_address_sends_the_block_away_and_nobody_gets_it_meanwhile() {
    let mut t = table([block("a", 0, 0)]);
    t.allocate("a", &owner(1)).unwrap();
    t.allocate("a", &owner(2)).unwrap();
    assert_eq!(t.free(&owner(1)).unwrap().1, []);
    let (_, departures) = t.free(&owner(2)).unwrap();
    let [d] = departures.try_into().unwrap();
    assert_eq!(t.allocate("a", &owner(3)), None);
    assert_eq!(t.depart_idle(), [], "it is on its way already");
    assert_eq!(t.networks().len(), 2, "still ours");
    t.leaves(&d);
    assert_eq!(t.networks().len(), 0);
    t.stays(&d);
    assert_eq!(t.networks().len(), 2);
    assert!(t.allocate("a", &owner(3)).is_some());
    assert_eq!(t.free(&owner(99)), None);
}

/// The first attempt's last step may still be on its way when a second attempt finds the API server unreachable.
#[test]
fn a_block_that_was_doubtful_once_is_never_in_hand_again() {
    let mut t = table([block("a", 0, 0)]);
    let first = t.depart_idle().remove(0);
    t.leaves(&first);
    t.doubtful(&first);
    let second = t.depart_idle().remove(0);
    t.stays(&second);
    t.upsert(BlockInfo { deleting: false, ..block("a", 0, 0) });
    assert_eq!((t.allocate("a", &owner(1)), t.networks().len()), (None, 0));
    assert_eq!(t.depart_idle(), [second], "it is tried again");
}

/// The last step of an earlier life may still be on its way when this life's attempt finds the API server unreachable.
#[test]
fn a_block_that_an_earlier_life_half_returned_is_never_in_hand_again() {
    let half_returned = BlockInfo { deleting: true, ..block("a", 0, 0) };
    let mut t = table([half_returned.clone()]);
    let d = t.depart_idle().remove(0);
    t.stays(&d);
    assert_eq!((t.allocate("a", &owner(1)), t.networks().len()), (None, 0));
    t.upsert(half_returned);
    assert_eq!((t.allocate("a", &owner(1)), t.networks().len()), (None, 0));
    assert_eq!(t.depart_idle(), [d], "it is tried again");
}

#[test]
fn a_doubtful_block_is_unused_and_tried_again() {
    let mut t = table([block("a", 0, 0)]);
    let [d] = t.depart_idle().try_into().unwrap();
    t.leaves(&d);
    t.doubtful(&d);
    assert_eq!(t.allocate("a", &owner(1)), None);
    assert_eq!(t.depart_idle(), [d]);
}

#[test]
fn a_late_event_does_not_bring_a_returned_block_back() {
    let mut t = table([block("a", 0, 0)]);
    let [d] = t.depart_idle().try_into().unwrap();
    assert!(!t.remove(&d.name, &d.uid));
    t.upsert(block("a", 0, 0));
    assert_eq!(t.allocate("a", &owner(1)), None);
    t.upsert(block("a", 0, 1));
    assert!(t.allocate("a", &owner(1)).is_some(), "another block of the same name");
    assert!(!t.remove(&d.name, &d.uid), "a late deletion concerns the old one");
    assert_eq!(t.networks().len(), 2);
}

#[test]
fn a_pool_with_waiters_keeps_its_empty_block_for_them() {
    let mut t = table([block("a", 0, 0)]);
    t.allocate("a", &owner(1)).unwrap();
    t.wait("a");
    assert_eq!(t.free(&owner(1)).unwrap().1, []);
    assert!(t.allocate("a", &owner(2)).is_some());
    t.free(&owner(2));
    t.wait_ends("a");
    assert_eq!(t.depart_idle().len(), 1);
}

#[test]
fn blocks_of_a_draining_pool_give_nothing_and_go_with_their_pods() {
    let mut t = table([block("a", 0, 0), block("bb", 0, 0)]);
    let pod = t.allocate("a", &owner(1)).unwrap();
    t.drain(BTreeSet::from(["a".to_owned()]));
    assert_eq!(t.allocate("a", &owner(2)), None);
    assert_eq!(t.allocate("a", &owner(1)), Some(pod), "what a pod has it keeps");
    assert!(t.allocate("bb", &owner(3)).is_some());
    t.wait("a");
    assert_eq!(t.free(&owner(1)).unwrap().1.len(), 1, "whoever waits is waiting in vain");
}

#[test]
fn a_block_changed_by_hand_is_still_on_its_way_out() {
    let mut t = table([block("a", 0, 0)]);
    let [d] = t.depart_idle().try_into().unwrap();
    t.leaves(&d);
    let other = BlockInfo { networks: block("a", 5, 0).networks, ..block("a", 0, 0) };
    t.upsert(other);
    assert_eq!(t.allocate("a", &owner(1)), None);
    assert_eq!(t.networks().len(), 0);
}

#[test]
fn a_new_list_drops_what_is_not_in_it() {
    let mut t = table([block("a", 0, 0), block("a", 1, 0)]);
    assert!(!t.synced());
    t.allocate("a", &owner(1)).unwrap();
    let lost = t.retain(&HashSet::from(["a-1-0".to_owned()]));
    assert_eq!(lost, ["a-0"]);
    assert!(t.synced());
    // The pod lives on; when the name comes back, its address is still taken.
    t.upsert(block("a", 0, 5));
    assert_eq!((2..12).filter_map(|n| t.allocate("a", &owner(n))).count(), 7);
}

#[derive(Debug, Clone)]
enum Step {
    Appear {
        pool: bool,
        index: i32,
    },
    Allocate {
        pool: bool,
        owner: usize,
    },
    Free {
        owner: usize,
    },
    Gc,
    /// The oldest departure ends: gone, stays, or doubtful.
    Ends(u8),
    /// The agent restarts: only the API's blocks and the pods remain.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (any::<bool>(), 0..4i32).prop_map(|(pool, index)| Step::Appear { pool, index }),
        6 => (any::<bool>(), 0..20usize).prop_map(|(pool, owner)| Step::Allocate { pool, owner }),
        4 => (0..20usize).prop_map(|owner| Step::Free { owner }),
        1 => Just(Step::Gc),
        3 => (0..3u8).prop_map(Step::Ends),
        1 => Just(Step::Restart),
    ]
}

fn pool(second: bool) -> &'static str {
    if second { "bb" } else { "a" }
}

proptest! {
    /// No address twice, every free address of a block in hand is given, every block comes back.
    #[test]
    fn model(steps in proptest::collection::vec(step(), 1..200)) {
        let mut t = table([]);
        let mut api: BTreeMap<String, BlockInfo> = BTreeMap::new();
        let mut pods: BTreeMap<usize, Allocation> = BTreeMap::new();
        let mut leaving: VecDeque<Departure> = VecDeque::new();
        let mut doubted: BTreeSet<String> = BTreeSet::new();
        let mut generation = 0;
        for step in steps {
            match step {
                Step::Appear { pool: p, index } => {
                    generation += 1;
                    let new = block(pool(p), index, generation);
                    if !api.contains_key(&new.name) {
                        t.upsert(new.clone());
                        api.insert(new.name.clone(), new);
                    }
                }
                Step::Allocate { pool: p, owner: n } => match t.allocate(pool(p), &owner(n)) {
                    Some(a) => {
                        let known = pods.get(&n);
                        prop_assert!(known.is_none_or(|k| *k == a));
                        prop_assert!(pods.iter().all(|(m, b)| *m == n || (a.ipv4 != b.ipv4 && a.ipv6 != b.ipv6)));
                        let of = |b: &&BlockInfo| b.networks.iter().any(|n| n.contains(&IpAddr::from(a.ipv4.unwrap())));
                        let from = api.values().find(of);
                        prop_assert!(from.is_some_and(|b| known.is_some() || !doubted.contains(&b.name)));
                        pods.insert(n, a);
                    }
                    None => {
                        let usable = api.values().filter(|b| b.pool == pool(p) && !doubted.contains(&b.name)
                            && !leaving.iter().any(|d| d.name == b.name)).count();
                        let taken = pods.values().filter(|a| a.pool == pool(p)).count();
                        prop_assert!(taken >= usable * 4, "{taken} of {} taken", usable * 4);
                    }
                },
                Step::Free { owner: n } => {
                    let freed = t.free(&owner(n));
                    let had = pods.remove(&n);
                    prop_assert_eq!(freed.as_ref().map(|f| &f.0), had.as_ref());
                    leaving.extend(freed.into_iter().flat_map(|f| f.1));
                }
                Step::Gc => leaving.extend(t.depart_idle()),
                Step::Ends(how) => if let Some(d) = leaving.pop_front() {
                    let empty = |a: &Allocation| !api[&d.name].networks.iter().any(|n| n.contains(&IpAddr::from(a.ipv4.unwrap())));
                    prop_assert!(pods.values().all(empty), "a departing block has no pods");
                    match how {
                        0 => { api.remove(&d.name); doubted.remove(&d.name); t.remove(&d.name, &d.uid); }
                        1 => t.stays(&d),
                        _ => { t.doubtful(&d); doubted.insert(d.name.clone()); }
                    }
                },
                Step::Restart => {
                    t = table([]);
                    leaving.clear();
                    doubted.clear();
                    pods.values().for_each(|a| { t.recover(a.clone()); });
                    api.values().for_each(|b| t.upsert(b.clone()));
                }
            }
        }
        for n in pods.keys() {
            leaving.extend(t.free(&owner(*n)).into_iter().flat_map(|f| f.1));
        }
        leaving.extend(t.depart_idle());
        for d in leaving {
            t.remove(&d.name, &d.uid);
        }
        prop_assert_eq!(t.networks(), BTreeSet::new());
        prop_assert!(t.owners.is_empty() && t.blocks.is_empty());
    }
}
