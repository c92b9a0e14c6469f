//! A stream of 50,000 packets a second of which none may be lost, whatever happens to agents and programs meanwhile.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{Fabric, Pod};

/// Packets a millisecond.
const BURST: usize = 50;
const PORT: u16 = 7000;
/// How long it may take until so many packets have come that something can happen next.
const PATIENCE: Duration = Duration::from_secs(20);

/// Packets that a node's links have received and sent: from the sender's link, over the uplink, to the receivers'.
fn links(fabric: &Fabric) -> Result<[u64; 5]> {
    let count = |node: usize, link: &'static str, what: &'static str| -> Result<u64> {
        let command = || {
            let output = Command::new("ip").args(["-s", "-j", "link", "show", "dev", link]).output()?;
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
fn send(fabric: &Fabric, stop: &AtomicBool) -> Result<u64> {
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

/// Waits until 5,000 more packets have come to the pod on the other node.
///
/// # Errors
/// When they do not.
pub fn flows_on(fabric: &Fabric) -> Result<()> {
    let (there, end) = (received(fabric, Pod::Remote)?, Instant::now() + PATIENCE);
    while received(fabric, Pod::Remote)? < there + 5000 {
        ensure!(Instant::now() < end, "no packets flow\n{}", fabric.counters());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Streams from a pod to one on its own node and one on the other while something happens, and finds every packet
/// again: in the counters of the nodes' links and in those of the receivers. Returns how many were sent to each.
///
/// # Errors
/// When one is lost, or what `meanwhile` fails with.
pub fn unbroken(fabric: &Fabric, meanwhile: impl FnOnce() -> Result<()>) -> Result<u64> {
    // Neighbours are known.
    for pod in [Pod::Client, Pod::Remote] {
        fabric.ping(Pod::Plain, pod)?;
    }
    let listen = |pod| fabric.inside(pod, || UdpSocket::bind(SocketAddr::new(fabric.address(pod), PORT)));
    let sockets = [listen(Pod::Remote)??, listen(Pod::Client)??];
    let (stop, before) = (AtomicBool::new(false), links(fabric)?);
    let start = Instant::now();
    let sent = thread::scope(|scope| -> Result<u64> {
        let sender = scope.spawn(|| send(fabric, &stop));
        let happened = meanwhile();
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("the sender does not panic")?;
        happened.map(|()| sent)
    })?;
    let rate = 2 * sent * 1000 / u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    println!("{} packets, {rate} a second", 2 * sent);
    // What waits in a socket counts when it is read.
    for socket in &sockets {
        socket.set_nonblocking(true)?;
        while socket.recv(&mut [0; 64]).is_ok() {}
    }
    let after = links(fabric)?;
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
    Ok(sent)
}
