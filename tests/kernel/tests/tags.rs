//! A tag that names no VLAN is none: the kernel routes what is behind it, and so a client may not get out by it without its
//! gateway. The fabric is that of `tests/journey.rs`.

use std::{
    net::{IpAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use coil_cases::wire::{self, Ip};
use coil_kernel_tests::{Fabric, Pod, traffic::PATIENCE};
use nix::libc;

const PORT: u16 = 7000;
/// How long nothing may come for it to be nothing.
const QUIET: Duration = Duration::from_millis(500);
/// Ether types of a tag, and of the tag of a provider.
const TAG: [u8; 2] = [0x81, 0];
const PROVIDER: [u8; 2] = [0x88, 0xa8];

/// Sends a frame as it is from a pod's link, as whoever has CAP_NET_RAW can.
fn send(fabric: &Fabric, pod: Pod, frame: &[u8]) -> Result<()> {
    fabric.inside(pod, || -> Result<()> {
        // SAFETY: no memory is passed; the descriptor is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)) };
        let ifindex = nix::net::if_::if_nametoindex("eth0")?;
        // SAFETY: all zeros is a socket address.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = u16::try_from(libc::AF_PACKET)?;
        to.sll_ifindex = i32::try_from(ifindex)?;
        let len = libc::socklen_t::try_from(size_of_val(&to))?;
        // SAFETY: frame and address are valid for their lengths.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                len,
            )
        };
        ensure!(usize::try_from(sent) == Ok(frame.len()), "{}", std::io::Error::last_os_error());
        Ok(())
    })?
}

/// Tags by their types and VLANs, between the addresses and the packet.
fn tagged(frame: &[u8], tags: &[([u8; 2], u16)]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let tags = tags.iter().flat_map(|(kind, vlan)| [*kind, vlan.to_be_bytes()].concat());
    [addresses.to_vec(), tags.collect(), rest.to_vec()].concat()
}

/// Who the world sees a datagram from; none when it does not come in time.
fn seen(fabric: &Fabric, tags: &[([u8; 2], u16)], text: &str, wait: Duration) -> Result<Option<IpAddr>> {
    let world = fabric.address(Pod::World);
    let receiver = fabric.inside(Pod::World, || UdpSocket::bind((world, PORT)))??;
    receiver.set_read_timeout(Some(wait))?;
    let packet = wire::udp(Ip::new(fabric.address(Pod::Client), world), 40000, PORT, text.as_bytes());
    let (host, own) = fabric.macs(Pod::Client);
    send(fabric, Pod::Client, &tagged(&wire::ethernet(host, own, &packet), tags))?;
    let mut buffer = [0; 100];
    loop {
        match receiver.recv_from(&mut buffer) {
            Ok((len, from)) if &buffer[..len] == text.as_bytes() => return Ok(Some(from.ip())),
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
    }
}

fn tags(v4: bool) -> Result<()> {
    let fabric = Fabric::new(v4)?;
    // The world knows the way back to anybody, and the switch lets everything through: what gets out is seen.
    fabric.ping(Pod::Client, Pod::World).context("the start")?;
    let gateway = Some(fabric.address(Pod::Gateway));
    let priority = 5 << 13;
    for (what, tags) in [
        ("no tag", &[][..]),
        ("a priority", &[(TAG, priority)]),
        ("no priority", &[(TAG, 0)]),
        ("a provider's tag", &[(PROVIDER, priority)]),
        ("two tags", &[(PROVIDER, 0), (TAG, priority)]),
    ] {
        let from = seen(&fabric, tags, what, PATIENCE)?;
        ensure!(from == gateway, "{what}: the world saw {from:?}\n{}", fabric.counters());
    }
    // More of them, or a VLAN that is not there, lead nowhere.
    for (what, tags) in [
        ("three tags", &[(PROVIDER, 0), (TAG, 0), (TAG, 0)][..]),
        ("a VLAN", &[(TAG, 7)]),
        ("a VLAN in a priority", &[(TAG, 0), (TAG, 7)]),
    ] {
        let from = seen(&fabric, tags, what, QUIET)?;
        ensure!(from.is_none(), "{what}: the world saw {from:?}\n{}", fabric.counters());
    }
    Ok(())
}

#[test]
fn a_client_does_not_get_out_by_a_tag() -> Result<()> {
    tags(true)?;
    tags(false)
}
