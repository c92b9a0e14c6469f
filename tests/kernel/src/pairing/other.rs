//! What the programs do not translate: a gateway's own kernel does, beside them.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use coil_kernel_tests::{Pod, traffic::PATIENCE};
use nix::{
    libc,
    sys::socket::{SockaddrStorage, bind},
};

use crate::{place::Place, probes::translated};

/// GRE with nothing in it that anybody knows, and an experimental protocol (RFC 3692). The kernel's NAT drops GRE of fewer
/// than 8 bytes.
const PROTOCOLS: [(i32, &[u8]); 2] = [(47, b"\0\0\x88\xb5unknown"), (253, b"an experiment")];

/// A socket for packets of a protocol to and from an address of this network namespace.
fn open(own: IpAddr, protocol: i32) -> Result<UdpSocket> {
    let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: the call takes numbers.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    ensure!(fd >= 0, "no socket for protocol {protocol}: {}", io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Else an answer comes from the address of the link that it leaves by.
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, 0)))
        .context("cannot bind a raw socket")?;
    // It takes and gives the same addresses as one of UDP.
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Waits for a packet with a payload; whose it is.
fn receive(socket: &UdpSocket, payload: &[u8]) -> Result<IpAddr> {
    let mut packet = [0; 256];
    loop {
        let (len, from) = socket.recv_from(&mut packet)?;
        // IPv4 has its header in front.
        if packet.get(..len).is_some_and(|packet| packet.ends_with(payload)) {
            return Ok(from.ip());
        }
    }
}

/// There and back, for each protocol.
pub(crate) fn other(place: &Place) -> Result<()> {
    let (client, world) = (place.fabric.address(Pod::Client), place.fabric.address(Pod::World));
    for (protocol, payload) in PROTOCOLS {
        let at_world = place.fabric.inside(Pod::World, || open(world, protocol))??;
        let at_client = place.fabric.inside(Pod::Client, || open(client, protocol))??;
        let answering = thread::spawn(move || -> Result<IpAddr> {
            let seen = receive(&at_world, payload).context("nothing came to the world")?;
            at_world.send_to(payload, SocketAddr::new(seen, 0))?;
            Ok(seen)
        });
        at_client.send_to(payload, SocketAddr::new(world, 0))?;
        let seen = answering.join().map_err(|_| anyhow::anyhow!("the world's side panicked"))?;
        translated(place, seen.with_context(|| format!("protocol {protocol}"))?)?;
        let from = receive(&at_client, payload)
            .with_context(|| format!("protocol {protocol}: nothing came back to the client"))?;
        ensure!(from == world, "protocol {protocol}: the answer is from {from}");
    }
    Ok(())
}
