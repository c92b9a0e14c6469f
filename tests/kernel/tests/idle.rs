//! Connections that are silent for hours end as they should: the fast path keeps them as long as connection tracking would,
//! and their FIN or RST is nobody's invalid packet. The fabric is that of `tests/journey.rs`.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use coil_agent::datapath::monotonic_seconds;
use coil_kernel_tests::{
    Fabric, Pod,
    rules::{self, Writer},
    traffic::{Lines, PATIENCE, Talk},
};
use coil_packet::Reason;

const PORT: u16 = 8000;
const HOUR: u32 = 3600;
/// States of `/proc/net/tcp`.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// The state of the server's side of a connection from a port; none when it has none any more.
fn state(fabric: &Fabric, server: Pod, from: u16) -> Result<Option<u8>> {
    let file = if fabric.is_v4() { "tcp" } else { "tcp6" };
    let text = fabric.inside(server, || fs::read_to_string(format!("/proc/thread-self/net/{file}")))??;
    let (own, other) = (format!(":{PORT:04X}"), format!(":{from:04X}"));
    let line = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = line.into_iter().find(|words| {
        words.get(1).is_some_and(|word| word.ends_with(&own))
            && words.get(2).is_some_and(|word| word.ends_with(&other))
    });
    found.map(|words| u8::from_str_radix(words[3], 16).context("a state")).transpose()
}

/// Waits until it is so.
fn until(fabric: &Fabric, server: Pod, from: u16, wanted: Option<u8>) -> Result<()> {
    let start = std::time::Instant::now();
    loop {
        let is = state(fabric, server, from)?;
        if is == wanted {
            return Ok(());
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "{server:?}, connection from {from}: {is:?}, not {wanted:?}\n{}",
            fabric.counters()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

fn ends_after_hours(v4: bool) -> Result<()> {
    let fabric = Fabric::new(v4)?;
    for node in [0, 1] {
        fabric.on_node(node, || rules::install(Writer::Nft, v4, &[]))??;
    }
    for (server, first) in [(Pod::Remote, 41000), (Pod::Client, 42000)] {
        let lines = Lines::start(&fabric, server, PORT)?;
        let mut finished = Talk::open(&fabric, Pod::Plain, first, lines.address)?;
        let mut reset = Talk::open(&fabric, Pod::Plain, first + 1, lines.address)?;
        for talk in [&mut finished, &mut reset] {
            talk.say("before\n")?;
        }
        for node in [0, 1] {
            let now = monotonic_seconds() + 7 * HOUR;
            fabric.with_datapath(node, |datapath| Ok(datapath.sweep(now).map(drop)?))?;
        }
        let reason = if server == Pod::Remote { Reason::ToNode } else { Reason::ToPod };
        let fast = fabric.count(reason);
        until(&fabric, server, first, Some(ESTABLISHED))?;
        finished.close()?;
        until(&fabric, server, first, Some(CLOSE_WAIT))?;
        reset.reset()?;
        until(&fabric, server, first + 1, None)?;
        // FIN and RST; an acknowledgement may still be on its way.
        ensure!(fabric.count(reason) >= fast + 2, "they ended elsewhere\n{}", fabric.counters());
    }
    for node in [0, 1] {
        let invalid = fabric.on_node(node, || rules::invalid(Writer::Nft, v4))??;
        ensure!(invalid == 0, "node {node} dropped {invalid} packets as invalid\n{}", fabric.counters());
    }
    Ok(())
}

#[test]
fn connections_end_after_hours_of_silence() -> Result<()> {
    ends_after_hours(true)?;
    ends_after_hours(false)
}
