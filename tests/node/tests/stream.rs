//! 50,000 packets a second from pod to pod while the built coild is killed, is away, and starts again: none is lost.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use coil_node_tests::{Cluster, Pair, Programs, place::run};

/// Packets a millisecond.
const BURST: u64 = 50;
const PORT: u16 = 7000;

/// Packets that the node's links to the two pods have received and sent, as the kernel counts them.
fn links(pair: &Pair) -> Result<[u64; 2]> {
    let count = |address: &str, side: &str| -> Result<u64> {
        let route = run(&format!("ip route get {address}"))?;
        let link = route.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next()).context("a route")?;
        let text = run(&format!("ip -s -j link show dev {link}"))?;
        let side = text.split(&format!("\"{side}\":{{")).nth(1).context("statistics")?;
        let packets = side.split("\"packets\":").nth(1).context("packets")?;
        Ok(packets.chars().take_while(char::is_ascii_digit).collect::<String>().parse()?)
    };
    // What `bpf_redirect_peer` hands over is received by the pod's side, not sent by the node's.
    Ok([count(&pair.addresses[0], "rx")?, arrived(pair)?])
}

/// Datagrams that came to the second pod's socket, read or not.
fn arrived(pair: &Pair) -> Result<u64> {
    pair.inside(1, || -> Result<u64> {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
        let pairs = names.split_whitespace().zip(values.split_whitespace());
        let wanted = pairs.filter(|(name, _)| matches!(*name, "InDatagrams" | "RcvbufErrors"));
        Ok(wanted.filter_map(|(_, value)| value.parse::<u64>().ok()).sum())
    })?
}

/// Waits until 10,000 more packets have come.
async fn flows_on(cluster: &Cluster, pair: &Pair, when: &str) -> Result<()> {
    let wanted = arrived(pair)? + 10_000;
    let check = async || {
        let there = arrived(pair)?;
        Ok((there < wanted).then(|| format!("{there} packets of {wanted}")))
    };
    cluster.wait_for(&format!("the stream to flow {when}"), check).await
}

#[test]
fn a_stream_outlives_coild() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &["--fast-udp"], async |mut cluster| {
        let pair = Pair::new(&cluster).await?;
        pair.pings(&cluster, (true, 0), "the start").await?;
        let receiver = pair.inside(1, || UdpSocket::bind(("0.0.0.0", PORT)))??;
        let sender = pair.inside(0, || UdpSocket::bind(("0.0.0.0", 0)))??;
        sender.connect((pair.addresses[1].as_str(), PORT))?;
        let (before, by_stack) = (links(&pair)?, Pair::seen()?);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sending = thread::spawn({
            let (stop, sent) = (stop.clone(), sent.clone());
            move || -> std::io::Result<()> {
                let (start, mut bursts) = (Instant::now(), 0u32);
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..BURST {
                        sender.send(&[7; 18])?;
                    }
                    sent.fetch_add(BURST, Ordering::Relaxed);
                    bursts += 1;
                    let next = start + Duration::from_millis(1) * bursts;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                Ok(())
            }
        });
        let happened = async {
            flows_on(&cluster, &pair, "at first").await?;
            for _ in 0..2 {
                cluster.kill_coild()?;
                flows_on(&cluster, &pair, "without coild").await?;
                cluster.start_coild().await?;
                flows_on(&cluster, &pair, "with another coild").await?;
            }
            cluster.stop_coild()?;
            cluster.start_coild().await?;
            flows_on(&cluster, &pair, "after an orderly end").await
        }
        .await;
        stop.store(true, Ordering::Relaxed);
        sending.join().expect("the sender does not panic")?;
        happened?;
        // What waits in a socket counts when it is read.
        receiver.set_nonblocking(true)?;
        while receiver.recv(&mut [0; 64]).is_ok() {}
        let (after, sent) = (links(&pair)?, sent.load(Ordering::Relaxed));
        let moved = [after[0] - before[0], after[1] - before[1]];
        ensure!(
            moved[0] >= sent && moved[1] == sent,
            "sent {sent}; the node took {}, {} came",
            moved[0],
            moved[1]
        );
        ensure!(Pair::seen()? - by_stack < sent / 10, "the fast path was left: {}", Pair::seen()? - by_stack);
        Ok(())
    })
}
