//! A UDP client that compares what comes back.

use std::{io, net::SocketAddr, os::fd::AsRawFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{ControlMessage, MsgFlags, SetSockOpt as _, sendmsg, sockopt},
};
use tokio::{io::Interest, net::UdpSocket, time};

use super::{data, unspecified};

pub(super) async fn echo(
    to: SocketAddr,
    count: usize,
    segments: usize,
    times: usize,
    pause: Duration,
    limit: Duration,
    spare: Option<usize>,
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
        // Without a number all are sent, and the lost are counted.
        let is_over = spare.is_some_and(|spare| lost.len() > spare);
        ensure!(!is_over, "{to}: {} of {turn} datagrams were lost: {lost:?}", lost.len());
        time::sleep(pause).await;
    }
    let is_over = lost.len() > spare.unwrap_or_default();
    ensure!(!is_over, "{to}: {} of {times} datagrams were lost: {lost:?}", lost.len());
    let lost = if lost.is_empty() { "all".to_owned() } else { format!("all but {}", lost.len()) };
    Ok(format!("{times} datagrams of {count} bytes sent, {lost} came back equal"))
}

/// Bytes of an `i32`.
const LEN_OF_NUMBER: libc::socklen_t = 4;

/// Sets a number of a socket that `nix` has no name for.
fn set_number(socket: &UdpSocket, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len = LEN_OF_NUMBER;
    // SAFETY: the kernel reads so many bytes, of a number that outlives the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

/// Reads one.
fn number(socket: &UdpSocket, level: i32, option: i32) -> io::Result<i32> {
    let mut value = 0_i32;
    let mut len = LEN_OF_NUMBER;
    // SAFETY: the kernel writes at most so many bytes, to a number that outlives the call.
    let done =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) };
    Errno::result(done).map_err(io::Error::from)?;
    Ok(value)
}

/// Sends a datagram that nobody may divide, whatever this host knows of the path, and waits for what becomes of it.
pub(super) async fn whole(to: SocketAddr, count: usize, limit: Duration) -> Result<String> {
    let socket = UdpSocket::bind(unspecified(to)).await.context("cannot make a UDP socket")?;
    let kept_whole = if to.is_ipv4() {
        sockopt::Ipv4RecvErr.set(&socket, &true)?;
        set_number(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    } else {
        sockopt::Ipv6RecvErr.set(&socket, &true)?;
        set_number(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    };
    kept_whole.context("cannot forbid fragments")?;
    socket.connect(to).await.with_context(|| format!("{to}: no route"))?;
    let data = data::bytes(count, 1);
    let exchanged = time::timeout(limit, exchange(&socket, &data, count)).await;
    match exchanged.with_context(|| format!("{to}: no answer to {count} bytes, and no error"))? {
        Ok(()) => Ok(format!("{count} bytes came back equal")),
        Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {
            let (level, option) = if to.is_ipv4() {
                (libc::IPPROTO_IP, libc::IP_MTU)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_MTU)
            };
            let mtu = number(&socket, level, option);
            Ok(format!("{count} bytes are too many: the MTU is {}", mtu.context("no MTU")?))
        }
        Err(error) => Err(error).with_context(|| to.to_string()),
    }
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
