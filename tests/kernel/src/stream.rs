//! A stream of 50,000 packets a second of which none may be lost, whatever happens to agents and programs meanwhile.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use coil_traffic::paced::{Sent, Stream, received_here};

use crate::{Fabric, Pod};

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
    fabric.inside(pod, || received_here(fabric.is_v4()))?
}

/// Sends to both pods in turn, until the stream shall end.
fn send(fabric: &Fabric, stream: &Stream) -> Result<Sent> {
    let targets = [Pod::Remote, Pod::Client].map(|pod| SocketAddr::new(fabric.address(pod), PORT));
    fabric.inside(Pod::Plain, || -> Result<Sent> {
        let socket = UdpSocket::bind(SocketAddr::new(fabric.address(Pod::Plain), 0))?;
        let one = |number: u64| {
            let target = targets[usize::from(!number.is_multiple_of(2))];
            socket.send_to(&[7; 18], target).map(drop)
        };
        Ok(stream.run(one)?)
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
/// again: in the counters of the nodes' links and in those of the receivers. Half of them went to each.
///
/// # Errors
/// When one is lost, or what `meanwhile` fails with.
pub fn unbroken(fabric: &Fabric, meanwhile: impl FnOnce() -> Result<()>) -> Result<Sent> {
    // Neighbours are known.
    for pod in [Pod::Client, Pod::Remote] {
        fabric.ping(Pod::Plain, pod)?;
    }
    let listen = |pod| fabric.inside(pod, || UdpSocket::bind(SocketAddr::new(fabric.address(pod), PORT)));
    let sockets = [listen(Pod::Remote)??, listen(Pod::Client)??];
    let (stream, before) = (Stream::default(), links(fabric)?);
    let whole = thread::scope(|scope| -> Result<Sent> {
        let sender = scope.spawn(|| send(fabric, &stream));
        let happened = meanwhile();
        stream.stop();
        let sent = sender.join().expect("the sender does not panic")?;
        happened.map(|()| sent)
    })?;
    let sent = whole.packets / 2;
    for socket in &sockets {
        socket.set_nonblocking(true)?;
    }
    // The last may wait for a processor on their way, and what waits in a socket counts when it is read.
    let end = Instant::now() + PATIENCE;
    let moved = loop {
        for socket in &sockets {
            while socket.recv(&mut [0; 64]).is_ok() {}
        }
        let after = links(fabric)?;
        let moved: Vec<u64> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
        if (moved[3] >= sent && moved[4] >= sent) || Instant::now() > end {
            break moved;
        }
        thread::sleep(Duration::from_millis(5));
    };
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
    Ok(whole)
}
