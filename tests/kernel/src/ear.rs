//! Frames of an eth0 as they are, heard and sent.

#![expect(clippy::cast_possible_truncation, reason = "constants of the C library, and sizes of its types")]

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Result, ensure};
use nix::libc;

/// A packet socket on the eth0 of this network namespace.
///
/// # Errors
/// Without root, or without an eth0.
pub fn open() -> Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: the call takes numbers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
    ensure!(fd >= 0, "no packet socket: {}", io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let room: libc::c_int = 64 << 20;
    // SAFETY: the option is an integer, valid for the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const room).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    ensure!(done == 0, "no room for packets: {}", io::Error::last_os_error());
    // SAFETY: integers; zero is a value of each.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = nix::net::if_::if_nametoindex("eth0")?.cast_signed();
    // SAFETY: the address is valid for its size.
    let done = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
    };
    ensure!(done == 0, "cannot listen on eth0: {}", io::Error::last_os_error());
    Ok(socket)
}

/// The next frame, if there is one.
#[must_use]
pub fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut frame = vec![0; 4096];
    // SAFETY: the buffer is valid for its length.
    let len =
        unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), libc::MSG_DONTWAIT) };
    frame.truncate(usize::try_from(len).ok()?);
    Some(frame)
}

/// Sends a frame.
///
/// # Errors
/// When the kernel refuses it.
pub fn send(socket: &OwnedFd, frame: &[u8]) -> Result<()> {
    // SAFETY: the frame is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    ensure!(
        sent == frame.len().cast_signed(),
        "cannot send {} bytes: {}",
        frame.len(),
        io::Error::last_os_error()
    );
    Ok(())
}

/// The bytes of an address.
#[must_use]
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// True for a frame with an IP packet from an address.
#[must_use]
pub fn is_from(frame: &[u8], from: IpAddr) -> bool {
    has(frame, from, if from.is_ipv4() { 26 } else { 22 })
}

/// True for a frame with an IP packet to an address.
#[must_use]
pub fn is_to(frame: &[u8], to: IpAddr) -> bool {
    has(frame, to, if to.is_ipv4() { 30 } else { 38 })
}

fn has(frame: &[u8], address: IpAddr, at: usize) -> bool {
    let kind = if address.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    let octets = octets(address);
    frame.get(12..14) == Some(&kind[..]) && frame.get(at..at + octets.len()) == Some(&octets[..])
}
