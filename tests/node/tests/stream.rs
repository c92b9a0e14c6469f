//! 50,000 packets a second from pod to pod while the built coild is killed, is away, and starts again: none is lost.

use std::{
    net::UdpSocket,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use coil_node_tests::{Cluster, Pair, Programs, place::run};
use coil_traffic::paced::{Sent, Stream, at_full_rate, received_here};

const PORT: u16 = 7000;
/// How long the last packets may take.
const PATIENCE: Duration = Duration::from_secs(10);

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
    pair.inside(1, || received_here(!pair.addresses[1].contains(':')))?
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

fn coild_comes_and_goes(namespace: &str) -> Result<Sent> {
    Cluster::run(Programs::beside_tests()?, &["--fast-udp"], async |mut cluster| {
        let pair = Pair::new(&cluster, namespace).await?;
        pair.pings(&cluster, (true, 0), "the start").await?;
        let receiver = pair.inside(1, || UdpSocket::bind((pair.addresses[1].as_str(), PORT)))??;
        let sender = pair.inside(0, || UdpSocket::bind((pair.addresses[0].as_str(), 0)))??;
        sender.connect((pair.addresses[1].as_str(), PORT))?;
        let (before, by_stack) = (links(&pair)?, Pair::seen()?);
        let stream = Arc::new(Stream::default());
        let sending = thread::spawn({
            let stream = stream.clone();
            move || stream.run(|_| sender.send(&[7; 18]).map(drop))
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
        stream.stop();
        let sent = sending.join().expect("the sender does not panic")?;
        happened?;
        receiver.set_nonblocking(true)?;
        // The last may wait for a processor on their way, and what waits in a socket counts when it is read.
        let (end, packets) = (Instant::now() + PATIENCE, sent.packets);
        let moved = loop {
            while receiver.recv(&mut [0; 64]).is_ok() {}
            let after = links(&pair)?;
            let moved = [after[0] - before[0], after[1] - before[1]];
            if moved[1] >= packets || Instant::now() > end {
                break moved;
            }
            thread::sleep(Duration::from_millis(5));
        };
        ensure!(
            moved[0] >= packets && moved[1] == packets,
            "sent {packets}; the node took {}, {} came",
            moved[0],
            moved[1]
        );
        let left = Pair::seen()? - by_stack;
        ensure!(left < packets / 10, "the fast path was left: {left}");
        Ok(sent)
    })
}

#[test]
fn a_stream_outlives_coild() -> Result<()> {
    ["v4", "v6"].into_iter().try_for_each(|pool| at_full_rate(|| coild_comes_and_goes(pool)).map(drop))
}
