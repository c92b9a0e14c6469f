//! What the agent takes back of what the programs lent: a bounded part at a time, and in the end all of it.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use coil_agent::datapath::{GatewayUse, PART, monotonic_seconds};
use coil_kernel_tests::{Node, Pins};
use coil_packet::{
    Reason,
    abi::{Known, NatKey, NatRevKey, NatRevValue, NatValue, PORT_ROWS, PortRow},
};

/// Longer than any flow may be idle.
const LATER: u32 = 10_000;
/// More entries than fit one system call.
const SLACK: usize = 10_000;

fn map(pins: &Pins, name: &str) -> Result<Map> {
    Ok(Map::from_map_data(MapData::from_pin(pins.config().pin_root.join("maps").join(name))?)?)
}

/// Ports that are probably lent.
fn bits(ports: &Array<MapData, PortRow>) -> Result<u32> {
    let mut bits = 0;
    for row in 0..PORT_ROWS {
        bits += ports.get(&row, 0)?.words.iter().map(|word| word.count_ones()).sum::<u32>();
    }
    Ok(bits)
}

#[test]
fn a_sweep_takes_a_part_at_a_time() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        let mut leases: HashMap<_, NatRevKey<[u8; 4]>, NatRevValue<[u8; 4]>> =
            map(&pins, "coil_nat_rev4")?.try_into()?;
        let mut forward: HashMap<_, NatKey<[u8; 4]>, NatValue> = map(&pins, "coil_nat4")?.try_into()?;
        let now = monotonic_seconds();
        let all = PART * 2;
        let (gateway, client) = ([10, 64, 0, 3], [10, 64, 1, 9]);
        for n in 0..u32::try_from(all)? {
            let [_, a, b, c] = n.to_be_bytes();
            let remote = [198, 18 + a, b, c];
            let reverse = NatRevKey { gateway, remote, port: 2000, remote_port: 443, protocol: 6 };
            let lease = NatRevValue {
                client,
                seen: now,
                client_port: 2000,
                state: 1,
                pad: 0,
                known: Known::default(),
            };
            leases.insert(reverse, lease, 0)?;
            let key = NatKey { gateway, client, remote, client_port: 2000, remote_port: 443, protocol: 6 };
            forward.insert(key, NatValue { port: 2000, ..NatValue::default() }, 0)?;
        }
        let agent = node.datapath()?;
        let mut sweeps = 0;
        while agent.usage().is_empty() {
            ensure!(agent.sweep(now)?.translations == 0, "none has run out");
            sweeps += 1;
            ensure!(sweeps <= 6, "a pass over {all} leases does not end");
        }
        ensure!(sweeps >= 3, "{all} leases and as many forward entries in {sweeps} sweeps");
        let used = agent.usage().get(&gateway.into()).context("the gateway")?;
        ensure!(used.total() == all as u64, "{} of {all} leases were seen", used.total());

        let mut removed = vec![];
        while removed.iter().sum::<usize>() < all {
            removed.push(agent.sweep(now + LATER)?.translations);
            ensure!(removed.len() < 12, "leases are left: {removed:?}");
        }
        ensure!(removed.iter().all(|part| *part <= PART + SLACK), "{removed:?} in single sweeps");
        ensure!(forward.keys().next().is_none(), "a lease went without its forward entry");
        for _ in 0..4 {
            agent.sweep(now + LATER)?;
        }
        ensure!(leases.keys().next().is_none() && forward.keys().next().is_none(), "something is left");
        ensure!(agent.usage().is_empty(), "{:?}", agent.usage());
        Ok(())
    })
}

#[test]
fn ports_that_come_back_are_free_again() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        let ports: Array<_, PortRow> = map(&pins, "coil_ports")?.try_into()?;
        let cases = coil_cases::all();
        for case in cases.iter().filter(|case| case.reason == Reason::Out && case.given.is_empty()) {
            node.packet(case.path.name(), case.ingress, &case.frame)?;
        }
        let agent = node.datapath()?;
        let now = monotonic_seconds();
        agent.sweep(now)?;
        let lent: u64 = agent.usage().values().map(GatewayUse::total).sum();
        ensure!(lent >= 4, "{lent} ports were lent");
        ensure!(u64::from(bits(&ports)?) == lent, "{} bits for {lent} ports", bits(&ports)?);
        let (gateway, _) = agent.usage().iter().next().context("a gateway")?;
        let now_used = agent.gateway(*gateway)?;
        ensure!(now_used.flows() == now_used.used.total(), "{now_used:?}");
        ensure!(now_used.tally.lent.packets >= now_used.used.total(), "{now_used:?}");
        agent.sweep(now + LATER)?;
        ensure!(bits(&ports)? == 0, "{} bits are left", bits(&ports)?);
        Ok(())
    })
}

#[test]
fn what_is_lent_during_a_pass_counts_once_against_the_quota() -> Result<()> {
    const BEFORE: u32 = 3000;
    const MEANWHILE: u32 = 2000;
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        let mut leases: HashMap<_, NatRevKey<[u8; 4]>, NatRevValue<[u8; 4]>> =
            map(&pins, "coil_nat_rev4")?.try_into()?;
        let mut lent: HashMap<_, [u8; 4], u32> = map(&pins, "coil_lent4")?.try_into()?;
        let returned: HashMap<_, [u8; 4], u32> = map(&pins, "coil_returned4")?.try_into()?;
        let now = monotonic_seconds() + 100;
        let (client, another) = ([10, 64, 1, 9], [10, 64, 1, 10]);
        let mut lend = |client, seen, ports: std::ops::Range<u32>| -> Result<()> {
            for n in ports {
                let [_, a, b, c] = n.to_be_bytes();
                let remote = [198, 18 + a, b, c];
                let key =
                    NatRevKey { gateway: [10, 64, 0, 3], remote, port: 2000, remote_port: 443, protocol: 6 };
                let known = Known::default();
                let lease = NatRevValue { client, seen, client_port: 2000, state: 1, pad: 0, known };
                leases.insert(key, lease, 0)?;
            }
            Ok(())
        };
        let others = u32::try_from(PART)? * 2;
        lend(another, now - 50, 0..others)?;
        lend(client, now - 50, others..others + BEFORE)?;
        lent.insert(client, BEFORE, 0)?;
        let agent = node.datapath()?;
        agent.sweep(now)?;
        ensure!(returned.get(&client, 0).is_err(), "the pass is over before the client goes on");
        lend(client, now, others + BEFORE..others + BEFORE + MEANWHILE)?;
        lent.insert(client, BEFORE + MEANWHILE, 0)?;
        let mut sweeps = 0;
        let used = loop {
            if let Ok(returned) = returned.get(&client, 0) {
                break lent.get(&client, 0)?.wrapping_sub(returned);
            }
            agent.sweep(now)?;
            sweeps += 1;
            ensure!(sweeps <= 6, "the pass does not end");
        };
        ensure!(used == BEFORE + MEANWHILE, "{used} ports count, of {BEFORE} and {MEANWHILE}");
        Ok(())
    })
}
