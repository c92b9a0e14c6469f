//! A UDP client that compares what comes back.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{net::UdpSocket, time};

use super::{data, unspecified};

pub(super) async fn echo(
    to: SocketAddr,
    count: usize,
    times: usize,
    pause: Duration,
    limit: Duration,
) -> Result<String> {
    let socket = UdpSocket::bind(unspecified(to)).await.context("cannot make a UDP socket")?;
    socket.connect(to).await.with_context(|| format!("{to}: no route"))?;
    let mut lost = Vec::new();
    for turn in 1..=times {
        let data = data::bytes(count, turn as u64);
        match time::timeout(limit, exchange(&socket, &data)).await {
            Ok(exchanged) => exchanged.with_context(|| format!("{to}: datagram {turn}"))?,
            Err(_) => lost.push(turn),
        }
        ensure!(lost.len() < times, "{to}: none of {times} datagrams came back");
        time::sleep(pause).await;
    }
    ensure!(lost.is_empty(), "{to}: {} of {times} datagrams were lost: {lost:?}", lost.len());
    Ok(format!("{times} datagrams of {count} bytes sent, all came back equal"))
}

async fn exchange(socket: &UdpSocket, data: &[u8]) -> std::io::Result<()> {
    socket.send(data).await?;
    let mut back = vec![0; data.len() + 1];
    loop {
        let received = socket.recv(&mut back).await?;
        // A late answer to an earlier datagram is another seed's.
        if back[..received] == *data {
            return Ok(());
        }
    }
}
