//! What the programs do not translate: a gateway's own kernel does, beside them.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use coil_agent::egress::gateway::OWN_PORTS;
use coil_kernel_tests::{Pod, traffic::PATIENCE};
use nix::{
    libc,
    sys::socket::{SockaddrStorage, bind},
};

use crate::{
    place::Place,
    probes::translated,
    sctp::{self, Packet},
};

/// GRE with nothing in it that anybody knows, ESP of an association that nobody has, and an experimental protocol
/// (RFC 3692). The kernel's NAT drops GRE of fewer than 8 bytes.
const WITHOUT_PORTS: [(i32, &[u8]); 3] = [
    (47, b"\0\0\x88\xb5unknown"),
    (50, b"\x12\x34\x56\x78\0\0\0\x01nobody can read this, and all of it is ciphertext"),
    (253, b"an experiment"),
];
const SCTP: i32 = 132;
/// The client's port is one that the programs lend.
const PORTS: (u16, u16) = (40_000, 9009);

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

/// Waits for a packet that `read` knows; whose it is, and what it says.
fn receive<T>(socket: &UdpSocket, read: impl Fn(&[u8]) -> Option<T>) -> Result<(IpAddr, T)> {
    let mut buffer = [0; 256];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        let packet = buffer.get(..len).unwrap_or_default();
        // IPv4 has its header in front.
        let header =
            if from.is_ipv4() { usize::from(packet.first().map_or(0, |byte| byte & 15)) * 4 } else { 0 };
        if let Some(said) = packet.get(header..).and_then(&read) {
            return Ok((from.ip(), said));
        }
    }
}

/// There and back: what the client sends, what the world answers to what it has read, and what the client reads. The
/// answers are what the world and the client have read.
fn there_and_back<T: Send + 'static>(
    place: &Place,
    protocol: i32,
    request: &[u8],
    read: fn(&[u8]) -> Option<T>,
    answer: fn(&T) -> Vec<u8>,
) -> Result<[T; 2]> {
    let (client, world) = (place.fabric.address(Pod::Client), place.fabric.address(Pod::World));
    let at_world = place.fabric.inside(Pod::World, || open(world, protocol))??;
    let at_client = place.fabric.inside(Pod::Client, || open(client, protocol))??;
    let answering = thread::spawn(move || -> Result<(IpAddr, T)> {
        let (seen, said) = receive(&at_world, read).context("nothing came to the world")?;
        at_world.send_to(&answer(&said), SocketAddr::new(seen, 0))?;
        Ok((seen, said))
    });
    at_client.send_to(request, SocketAddr::new(world, 0))?;
    let (seen, at_world) = answering.join().map_err(|_| anyhow::anyhow!("the world's side panicked"))??;
    translated(place, seen)?;
    let (from, at_client) = receive(&at_client, read).context("nothing came back to the client")?;
    ensure!(from == world, "the answer is from {from}");
    Ok([at_world, at_client])
}

/// Each protocol.
pub(crate) fn other(place: &Place) -> Result<()> {
    for (protocol, payload) in WITHOUT_PORTS {
        let said = there_and_back(place, protocol, payload, |packet| Some(packet.to_vec()), Vec::clone)
            .with_context(|| format!("protocol {protocol}"))?;
        ensure!(said.iter().all(|said| said == payload), "protocol {protocol} arrived as {said:02x?}");
    }
    association(place).context("SCTP")
}

/// The kernel changes ports of SCTP, and the checksum with them. Beside the programs it takes none that they lend.
fn association(place: &Place) -> Result<()> {
    let opens = Packet { source: PORTS.0, destination: PORTS.1, chunk: sctp::OPENS };
    let answer = |opened: &Packet| {
        Packet { source: opened.destination, destination: opened.source, chunk: sctp::ANSWERS }.bytes()
    };
    let [at_world, at_client] = there_and_back(place, SCTP, &opens.bytes(), Packet::read, answer)?;
    ensure!(
        at_world == Packet { source: at_world.source, ..opens },
        "the world got {at_world:?} of {opens:?}"
    );
    ensure!(
        !place.pair.gateway || OWN_PORTS.contains(&at_world.source),
        "the world saw port {}, which the programs may lend",
        at_world.source
    );
    let answers = Packet { source: PORTS.1, destination: PORTS.0, chunk: sctp::ANSWERS };
    ensure!(at_client == answers, "the client got {at_client:?} of {answers:?}");
    Ok(())
}
