//! Nothing is lost while agents end, start and replace programs, and connections outlive all of it: agents, a full
//! flow table, and programs that come in the middle. The fabric is that of `tests/journey.rs`.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use coil_agent::datapath::Desired;
use coil_kernel_tests::{
    Fabric, Pod,
    rules::{self, Writer},
    stream,
    traffic::{Lines, Talk},
};
use coil_packet::{
    Reason,
    abi::{FlowKey, FlowValue},
};
use coil_traffic::paced::{Sent, at_full_rate};

fn nothing_is_lost(v4: bool) -> Result<Sent> {
    let fabric = Fabric::new(v4)?;
    let desired = [0, 1].map(|node| Desired { fast_udp: true, ..fabric.stated(node) });
    for (node, desired) in desired.iter().enumerate() {
        fabric.with_datapath(node, |datapath| Ok(datapath.apply(desired).map(drop)?))?;
    }
    let sent = stream::unbroken(&fabric, || {
        (0..3).flat_map(|_| [0, 1]).try_for_each(|node| {
            // Nobody is there for a while.
            fabric.replace_agent(node, &desired[node], || stream::flows_on(&fabric))
        })
    })?;
    for reason in [Reason::ToNode, Reason::ToPod] {
        ensure!(fabric.count(reason) >= sent.packets / 2, "the fast path was left\n{}", fabric.counters());
    }
    Ok(sent)
}

#[test]
fn a_stream_loses_nothing_while_agents_come_and_go() -> Result<()> {
    [true, false].into_iter().try_for_each(|v4| at_full_rate(|| nothing_is_lost(v4)).map(drop))
}

/// Both nodes drop what connection tracking finds invalid, as kube-proxy's rules do.
fn strict(v4: bool) -> Result<Fabric> {
    let fabric = Fabric::new(v4)?;
    for node in [0, 1] {
        fabric.on_node(node, || rules::install(Writer::Nft, v4, &[]))??;
    }
    Ok(fabric)
}

fn forward(fabric: &Fabric, forward: bool) -> Result<()> {
    for node in [0, 1] {
        let desired = Desired { forward, ..fabric.stated(node) };
        fabric.with_datapath(node, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;
    }
    Ok(())
}

/// A connection goes on when the programs come, when they leave the packets to the kernel again, and when agents
/// are replaced; another one that began under the programs, too.
#[test]
fn connections_outlive_every_change() -> Result<()> {
    for v4 in [true, false] {
        let fabric = strict(v4)?;
        forward(&fabric, false)?;
        let servers = [Lines::start(&fabric, Pod::Remote, 8000)?, Lines::start(&fabric, Pod::Client, 8000)?];
        let mut talks = vec![];
        for (round, fast) in [false, true, false, true].into_iter().enumerate() {
            forward(&fabric, fast)?;
            let talking = talks.iter_mut().try_for_each(|talk: &mut Talk| talk.say("still there\n"));
            talking.with_context(|| format!("round {round}\n{}", fabric.counters()))?;
            for (port, server) in (41000u16..).step_by(10).zip(&servers) {
                let port = port + u16::try_from(round)?;
                talks.push(Talk::open(&fabric, Pod::Plain, port, server.address)?);
            }
        }
        for node in [0, 1] {
            fabric.replace_agent(node, &fabric.stated(node), || Ok(()))?;
            talks.iter_mut().try_for_each(|talk| talk.say("after another agent\n"))?;
        }
        ensure!(
            fabric.count(Reason::ToPod) > 10 && fabric.count(Reason::ToNode) > 10,
            "{}",
            fabric.counters()
        );
        talks.into_iter().try_for_each(Talk::close)?;
    }
    Ok(())
}

/// New connections are the kernel's while the table is full; old ones stay as they are.
#[test]
fn connections_outlive_a_full_flow_table() -> Result<()> {
    let fabric = strict(true)?;
    let server = Lines::start(&fabric, Pod::Remote, 8000)?;
    let mut old = Talk::open(&fabric, Pod::Plain, 41000, server.address)?;
    old.say("before\n")?;
    let map = Map::from_map_data(MapData::from_pin(fabric.maps(0).join("coil_flows4"))?)?;
    let mut flows: HashMap<_, FlowKey<[u8; 4]>, FlowValue> = map.try_into()?;
    let mut full = false;
    for number in 0..200_000u32 {
        let [_, a, b, c] = number.to_be_bytes();
        let key = FlowKey { low: [10, a, b, c], high: [11, 0, 0, 1], low_port: 1, high_port: 2, protocol: 6 };
        full = flows.insert(key, FlowValue { seen: u32::MAX, state: 1, ..FlowValue::default() }, 0).is_err();
        if full {
            break;
        }
    }
    ensure!(full, "the table takes more than it should");
    old.say("while it is full\n")?;
    let mut new = Talk::open(&fabric, Pod::Plain, 41001, server.address)?;
    new.say("new\n")?;
    old.say("old\n")?;
    ensure!(fabric.count(Reason::FlowTableFull) > 0, "the table was not full\n{}", fabric.counters());
    new.close()?;
    old.close()
}
