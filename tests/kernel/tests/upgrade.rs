//! From an earlier version to this one under live traffic: no packet is lost, connections go on, translations keep their
//! ports, and nothing of the earlier version is left. The fabric is that of `tests/journey.rs`, with kube-proxy's drop of
//! what connection tracking finds invalid.
//!
//! The earlier version differs in what an upgrade has to cope with: some maps have other sizes, one has entries of another
//! layout, and one is called something else.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use coil_agent::datapath::{Desired, NatEntry, PINNED_MAPS, monotonic_seconds};
use coil_kernel_tests::{
    Fabric, Pod,
    rules::{self, Writer},
    stream,
    traffic::{Lines, Talk},
};
use coil_packet::Reason;
use coil_traffic::paced::{Sent, at_full_rate};

/// Sizes that the earlier version's maps have.
const OTHER: [(&str, u32); 12] = [
    ("coil_nat4", 5000),
    ("coil_nat6", 5000),
    ("coil_nat_rev4", 5000),
    ("coil_nat_rev6", 5000),
    ("coil_pin4", 4096),
    ("coil_pin6", 4096),
    ("coil_lent4", 500),
    ("coil_lent6", 500),
    ("coil_flows4", 2000),
    ("coil_flows6", 2000),
    ("coil_datagrams4", 2000),
    ("coil_datagrams6", 2000),
];

/// Where the client of the stream has no part: the egress connection's server.
const WORLD_PORT: u16 = 8000;

fn size(maps: &Path, name: &str) -> Result<u32> {
    Ok(MapInfo::from_pin(maps.join(name)).with_context(|| format!("{name} is not pinned"))?.max_entries())
}

/// Makes pins what another version would have left: the running programs have their maps in hand.
fn of_another_layout(maps: &Path) -> Result<()> {
    let make = |name: &str| -> Result<()> {
        let path = maps.join(name).display().to_string();
        let arguments = format!("map create {path} type hash key 4 value 64 entries 8 name coil_other")
            .replace("  ", " ");
        let output =
            Command::new("bpftool").args(arguments.split(' ')).output().context("cannot run bpftool")?;
        ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    for name in ["coil_pods4", "coil_pods6"] {
        fs::remove_file(maps.join(name))?;
        make(name)?;
    }
    make("coil_former4")
}

fn translations(fabric: &Fabric) -> Result<Vec<NatEntry>> {
    fabric.with_datapath(1, |datapath| Ok(datapath.nat_entries(monotonic_seconds())?))
}

fn upgrade(v4: bool) -> Result<Sent> {
    let fabric = Fabric::of_another_version(v4, OTHER.to_vec())?;
    let desired = [0, 1].map(|node| Desired { fast_udp: true, ..fabric.stated(node) });
    for (node, desired) in desired.iter().enumerate() {
        fabric.on_node(node, || rules::install(Writer::Nft, v4, &[]))??;
        fabric.with_datapath(node, |datapath| Ok(datapath.apply(desired).map(drop)?))?;
        for (name, entries) in OTHER {
            ensure!(size(&fabric.maps(node), name)? == entries, "{name} is not of the earlier version");
        }
    }
    let servers = [Lines::start(&fabric, Pod::World, WORLD_PORT)?, Lines::start(&fabric, Pod::Remote, 8001)?];
    let mut egress = Talk::open(&fabric, Pod::Client, 41000, servers[0].address)?;
    let mut direct = Talk::open(&fabric, Pod::Plain, 41001, servers[1].address)?;
    let mut talk = |when: &str| -> Result<()> {
        egress.say(when).with_context(|| format!("by the gateway, {when}{}", fabric.counters()))?;
        direct.say(when).with_context(|| format!("pod to pod, {when}{}", fabric.counters()))
    };
    talk("before\n")?;
    let of_client = |entries: Vec<NatEntry>| entries.into_iter().find(|entry| entry.client_port == 41000);
    let lease = of_client(translations(&fabric)?).context("no translation")?;

    let fast = fabric.count(Reason::ToNode);
    let sent = stream::unbroken(&fabric, || {
        for node in [1, 0] {
            fabric.replace_agent(node, &desired[node], || {
                of_another_layout(&fabric.maps(node))?;
                stream::flows_on(&fabric)
            })?;
            talk("after one more upgrade\n")?;
            stream::flows_on(&fabric)?;
        }
        Ok(())
    })?;
    ensure!(fabric.count(Reason::ToNode) > fast, "the earlier version's stream was not fast");

    for node in [0, 1] {
        let maps = fabric.maps(node);
        for (name, entries) in OTHER {
            ensure!(size(&maps, name)? > entries, "{name} is still of the earlier version");
        }
        let mut there: Vec<_> =
            fs::read_dir(&maps)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        let mut wanted: Vec<std::ffi::OsString> = PINNED_MAPS.iter().map(Into::into).collect();
        there.sort();
        wanted.sort();
        ensure!(there == wanted, "node {node} has {there:?}");
        let drift = fabric.with_datapath(node, |datapath| Ok(datapath.check()?))?;
        ensure!(drift == coil_agent::datapath::Drift::default(), "node {node}: {drift:?}");
    }
    let kept = of_client(translations(&fabric)?).context("the translation is lost")?;
    ensure!((kept.port, kept.client) == (lease.port, lease.client), "{kept:?}, it was {lease:?}");
    talk("after all\n")?;
    // What begins now is fast.
    let before = fabric.count(Reason::ToNode);
    let mut new = Talk::open(&fabric, Pod::Plain, 41002, servers[1].address)?;
    (0..10).try_for_each(|_| new.say("new\n"))?;
    ensure!(fabric.count(Reason::ToNode) >= before + 10, "{}", fabric.counters());
    for node in [0, 1] {
        let invalid = fabric.on_node(node, || rules::invalid(Writer::Nft, v4))??;
        ensure!(invalid == 0, "node {node} dropped {invalid} packets as invalid");
    }
    Ok(sent)
}

#[test]
fn an_upgrade_under_traffic_loses_nothing() -> Result<()> {
    [true, false].into_iter().try_for_each(|v4| at_full_rate(|| upgrade(v4)).map(drop))
}
