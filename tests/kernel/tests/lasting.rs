//! Nothing is lost while agents end, start and replace programs, and connections outlive all of it: agents, a full
//! flow table, and programs that come in the middle. The fabric is that of `tests/journey.rs`.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use coil_agent::datapath::Desired;
use coil_kernel_tests::{
    Fabric, Pod,
    rules::{self, Writer},
    traffic::{Lines, Talk},
};
use coil_packet::{
    Reason,
    abi::{FlowKey, FlowValue},
};

/// Packets a millisecond.
const BURST: usize = 50;
const PORT: u16 = 7000;

/// Packets that a node's links have received and sent: from the sender's link, over the uplink, to the receivers'.
fn links(fabric: &Fabric) -> Result<[u64; 5]> {
    let count = |node: usize, link: &'static str, what: &'static str| -> Result<u64> {
        let command = || {
            let output =
                std::process::Command::new("ip").args(["-s", "-j", "link", "show", "dev", link]).output()?;
            anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let text = fabric.on_node(node, command)??;
        let side = text.split(&format!("\"{what}\":{{")).nth(1).context("statistics")?;
        let packets = side.split("\"packets\":").nth(1).context("packets")?;
        Ok(packets.chars().take_while(char::is_ascii_digit).collect::<String>().parse()?)
    };
    Ok([
        count(0, "plain", "rx")?,
        count(0, "eth0", "tx")?,
        count(1, "eth0", "rx")?,
        received(fabric, Pod::Remote)?,
        received(fabric, Pod::Client)?,
    ])
}

/// Datagrams that came to a pod's socket, read or not.
fn received(fabric: &Fabric, pod: Pod) -> Result<u64> {
    let v4 = fabric.is_v4();
    fabric.inside(pod, || -> Result<u64> {
        if !v4 {
            let text = fs::read_to_string("/proc/thread-self/net/snmp6")?;
            let counts = text.lines().filter_map(|line| {
                let (name, value) = line.split_once(char::is_whitespace)?;
                matches!(name, "Udp6InDatagrams" | "Udp6RcvbufErrors")
                    .then(|| value.trim().parse::<u64>().ok())?
            });
            return Ok(counts.sum());
        }
        let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
        let pairs = names.split_whitespace().zip(values.split_whitespace());
        let wanted = pairs.filter(|(name, _)| matches!(*name, "InDatagrams" | "RcvbufErrors"));
        Ok(wanted.filter_map(|(_, value)| value.parse::<u64>().ok()).sum())
    })?
}

/// Sends to both pods, as evenly as the machine lets it, until it is told to stop. Returns how many to each.
fn stream(fabric: &Fabric, stop: &AtomicBool) -> Result<u64> {
    let targets = [Pod::Remote, Pod::Client].map(|pod| SocketAddr::new(fabric.address(pod), PORT));
    fabric.inside(Pod::Plain, || -> Result<u64> {
        let socket = UdpSocket::bind(SocketAddr::new(fabric.address(Pod::Plain), 0))?;
        let (start, mut bursts) = (Instant::now(), 0u32);
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..BURST / 2 {
                for target in targets {
                    socket.send_to(&[7; 18], target)?;
                }
            }
            bursts += 1;
            let next = start + Duration::from_millis(1) * bursts;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(u64::from(bursts) * (BURST / 2) as u64)
    })?
}

fn nothing_is_lost(v4: bool) -> Result<()> {
    let fabric = Fabric::new(v4)?;
    let desired = [0, 1].map(|node| Desired { fast_udp: true, ..fabric.stated(node) });
    for (node, desired) in desired.iter().enumerate() {
        fabric.with_datapath(node, |datapath| Ok(datapath.apply(desired).map(drop)?))?;
    }
    for pod in [Pod::Client, Pod::Remote] {
        fabric.ping(Pod::Plain, pod)?;
    }
    let listen = |pod| fabric.inside(pod, || UdpSocket::bind(SocketAddr::new(fabric.address(pod), PORT)));
    let sockets = [listen(Pod::Remote)??, listen(Pod::Client)??];
    let (stop, before) = (AtomicBool::new(false), links(&fabric)?);
    let start = Instant::now();
    let sent = thread::scope(|scope| -> Result<u64> {
        let sender = scope.spawn(|| stream(&fabric, &stop));
        let replaced = (0..3).flat_map(|_| [0, 1]).try_for_each(|node| {
            fabric.replace_agent(node, &desired[node], || {
                // Nobody is there for a while.
                let (there, end) = (number_of(&fabric)?, Instant::now() + Duration::from_secs(20));
                while number_of(&fabric)? < there + 5000 {
                    ensure!(Instant::now() < end, "no packets flow without an agent");
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        });
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("the sender does not panic")?;
        replaced.map(|()| sent)
    })?;
    let rate = 2 * sent * 1000 / u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    println!("{} packets, {rate} a second", 2 * sent);
    // What waits in a socket counts when it is read.
    for socket in &sockets {
        socket.set_nonblocking(true)?;
        while socket.recv(&mut [0; 64]).is_ok() {}
    }
    let after = links(&fabric)?;
    let moved: Vec<u64> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
    // Neighbours ask for each other now and then: links may count more.
    let lost =
        moved[0] < 2 * sent || moved[1] < sent || moved[2] < sent || moved[3] != sent || moved[4] != sent;
    ensure!(
        !lost,
        "sent {sent} to each; node a in {}, node a out {}, node b in {}, received {} and {}\n{}",
        moved[0],
        moved[1],
        moved[2],
        moved[3],
        moved[4],
        fabric.counters()
    );
    for reason in [Reason::ToNode, Reason::ToPod] {
        ensure!(fabric.count(reason) >= sent, "the fast path was left\n{}", fabric.counters());
    }
    Ok(())
}

/// What the receiver on the other node has.
fn number_of(fabric: &Fabric) -> Result<u64> {
    received(fabric, Pod::Remote)
}

#[test]
fn a_stream_loses_nothing_while_agents_come_and_go() -> Result<()> {
    nothing_is_lost(true)?;
    nothing_is_lost(false)
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
