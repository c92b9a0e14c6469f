//! A UDP client that compares what comes back.

use std::{io, net::SocketAddr, os::fd::AsRawFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::{io::Interest, net::UdpSocket, time};

use super::{data, unspecified};

pub(super) async fn echo(
    to: SocketAddr,
    count: usize,
    segments: usize,
    times: usize,
    pause: Duration,
    limit: Duration,
) -> Result<String> {
    let socket = UdpSocket::bind(unspecified(to)).await.context("cannot make a UDP socket")?;
    socket.connect(to).await.with_context(|| format!("{to}: no route"))?;
    let mut lost = Vec::new();
    for turn in 1..=times {
        let data = data::bytes(count * segments, turn as u64);
        match time::timeout(limit, exchange(&socket, &data, count)).await {
            Ok(exchanged) => exchanged.with_context(|| format!("{to}: datagram {turn}"))?,
            Err(_) => lost.push(turn),
        }
        ensure!(lost.len() < times, "{to}: none of {times} datagrams came back");
        time::sleep(pause).await;
    }
    ensure!(lost.is_empty(), "{to}: {} of {times} datagrams were lost: {lost:?}", lost.len());
    Ok(format!("{times} datagrams of {count} bytes sent, all came back equal"))
}

/// Sends a datagram from each of some ports that are free, one after the other.
pub(super) async fn from_ports(to: SocketAddr, first: u16, ports: u16) -> Result<String> {
    let mut sent = 0;
    for port in first..first.saturating_add(ports) {
        let own = SocketAddr::new(unspecified(to).ip(), port);
        let Ok(socket) = UdpSocket::bind(own).await else { continue };
        // The error of an earlier one's answer is nobody's here.
        socket.send_to(b"one of many", to).await.with_context(|| format!("cannot send to {to}"))?;
        sent += 1;
    }
    Ok(format!("{sent} datagrams sent to {to}"))
}

/// Sends datagrams of `count` bytes in one call, and waits until each came back.
async fn exchange(socket: &UdpSocket, data: &[u8], count: usize) -> io::Result<()> {
    if data.len() == count {
        socket.send(data).await?;
    } else {
        let size = u16::try_from(count).map_err(io::Error::other)?;
        let segments = [ControlMessage::UdpGsoSegments(&size)];
        let send = || {
            sendmsg::<()>(socket.as_raw_fd(), &[io::IoSlice::new(data)], &segments, MsgFlags::empty(), None)
                .map_err(io::Error::from)
        };
        socket.async_io(Interest::WRITABLE, send).await?;
    }
    let mut missing: Vec<&[u8]> = data.chunks(count).collect();
    let mut back = vec![0; count + 1];
    while !missing.is_empty() {
        let received = socket.recv(&mut back).await?;
        // A late answer to an earlier datagram is another seed's.
        if let Some(found) = missing.iter().position(|sent| **sent == back[..received]) {
            missing.swap_remove(found);
        }
    }
    Ok(())
}
