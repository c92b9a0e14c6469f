//! Node IPAM and the IPAM controller, the real ones, in a cluster that goes wrong in every way that a seed
//! can choose.
//!
//! ```text
//!   agent (NodeIpam) ─┐   requests: carried out, lost, answered      ┌─ controller (leader)
//!   agent             ├─▶ to nobody, or carried out much later  ─▶  API model
//!   agent            ◀┴── watches: each kind late by itself     ──▶  └─ controller (deposed, unaware)
//! ```
//!
//! Beside the random runs, `directed` plays what chance brings about too seldom.
//!
//! After every step: no address is on two pods, every pod's address is in a block of its node, no two blocks
//! share addresses, table 119 has only blocks that the node owns, no request changed an object that is younger
//! than the request, no BlockRequest is answered with another's block, and no agent gives an address of a block
//! that it knows is being deleted. At the end: every block came back, and
//! every address can be had again.
//!
//! `COIL_TEST_SEED` replays a run; `COIL_TEST_STEPS` sets the number of steps. `cargo xtask test --seed N`
//! sets the first.

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

mod api;
mod directed;
mod process;
mod random;
mod world;

use std::time::{SystemTime, UNIX_EPOCH};

use random::Random;
use world::{Counts, World};

const STEPS: u64 = 10_000;
const STEPS_PER_RUN: u64 = 250;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: it must be a number")))
}

#[test]
fn addresses_survive_everything() {
    let seed = variable("COIL_TEST_SEED").unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::from(since.subsec_nanos()) << 20 | since.as_secs() & 0xf_ffff
    });
    println!("seed {seed}; replay with: cargo xtask test --only host --seed {seed} -- addresses_survive");
    let runs = variable("COIL_TEST_STEPS").unwrap_or(STEPS).div_ceil(STEPS_PER_RUN);
    let mut seeds = Random::new(seed);
    let mut all = Counts::default();
    for run in 0..runs {
        let mut world = World::new(seeds.next());
        let result = (0..STEPS_PER_RUN).try_for_each(|_| world.step()).and_then(|()| world.finish());
        if let Err(broken) = result {
            let last = world.trace.len().saturating_sub(120);
            panic!("seed {seed}, run {run}: {broken}\n{}", world.trace[last..].join("\n"));
        }
        let counts = world.count();
        all.connected += counts.connected;
        all.refused += counts.refused;
        all.faults += counts.faults;
        all.crashes += counts.crashes;
        all.returned += counts.returned;
    }
    println!("{all:?}");
    // A cluster in which nothing happens would prove nothing.
    let most = usize::try_from(runs).unwrap();
    assert!(all.connected > 10 * most && all.returned > 4 * most && all.faults > 4 * most, "{all:?}");
}
