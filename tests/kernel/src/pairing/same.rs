//! Whatever a client sends, the world gets the same from a gateway by the programs and from one by the kernel: byte for
//! byte, but for ports and identifications, checksums that follow from those, and the hop that a gateway pod by the kernel
//! is.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use coil_cases::wire::{self, Ip, tcp};
use coil_kernel_tests::{
    Pod,
    ear::{is_from, open, receive, send},
    traffic::PATIENCE,
};

use crate::{Pair, place::Place};

/// What the last packet says.
const LAST: &[u8] = b"this was the last";
/// Where nobody listens.
const REMOTE_PORT: u16 = 9009;
const ETHERNET: usize = 14;

/// Each packet begins a flow of its own.
fn packets(client: IpAddr, world: IpAddr) -> Vec<Vec<u8>> {
    let plain = Ip::new(client, world);
    let headers = [plain, plain.tos(0xb9), plain.tos(2), plain.tos(3), plain.ttl(255), plain.ttl(9)];
    let mut packets = Vec::new();
    let mut port = 40_000;
    let mut next = || {
        port += 1;
        port
    };
    for (n, header) in headers.into_iter().enumerate() {
        let data: Vec<u8> = (0..n * 97).map(|byte| byte.to_le_bytes()[0]).collect();
        packets.push(wire::udp(header, next(), REMOTE_PORT, &data));
        packets.push(wire::tcp(header, next(), REMOTE_PORT, tcp::SYN, b""));
        packets.push(wire::tcp(header, next(), REMOTE_PORT, tcp::ACK, &data));
        packets.push(wire::echo(header, false, next()));
    }
    if client.is_ipv4() {
        packets.push(wire::udp_unsummed(plain, next(), REMOTE_PORT, b"without a checksum"));
    }
    // The ends of connections that are not known.
    packets.push(wire::tcp(plain, next(), REMOTE_PORT, tcp::FIN | tcp::ACK, b""));
    packets.push(wire::tcp(plain, next(), REMOTE_PORT, tcp::RST, b""));
    // What the programs leave to the gateway's kernel.
    packets.push(wire::ip(plain, 253, b"an experiment"));
    packets.push(wire::udp(plain, next(), REMOTE_PORT, &[7; 1300]));
    packets
}

/// A frame without what may differ.
fn bare(frame: &[u8], v4: bool, by_kernel: bool) -> Vec<u8> {
    let mut packet = frame.get(ETHERNET..).unwrap_or_default().to_vec();
    let (header, limit, protocol) = if v4 { (20, 8, 9) } else { (40, 7, 6) };
    if packet.len() < header {
        return packet;
    }
    if v4 {
        // Identification and checksum.
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    // What the programs do not translate, a gateway's kernel does in any case.
    let by_kernel = by_kernel || !matches!(packet[protocol], 1 | 6 | 17 | 58);
    packet[limit] += u8::from(by_kernel);
    // Where they begin, and how long they are: a port, a checksum, or both beside each other.
    let free: &[(usize, usize)] = match packet[protocol] {
        6 => &[(0, 2), (16, 2)],
        17 => &[(0, 2), (6, 2)],
        1 | 58 => &[(2, 4)],
        _ => &[],
    };
    for (at, len) in free {
        if let Some(bytes) = packet.get_mut(header + at..header + at + len) {
            bytes.fill(0);
        }
    }
    packet
}

/// What the world gets of the packets.
fn heard(v4: bool, gateway: bool) -> Result<Vec<Vec<u8>>> {
    let place = Place::new(Pair { v4, client: true, gateway, sport_auto: false })?;
    let fabric = &place.fabric;
    let [client, world, from] = [Pod::Client, Pod::World, Pod::Gateway].map(|pod| fabric.address(pod));
    // Neighbours are known, both ways.
    fabric.ping(Pod::Client, Pod::World)?;
    let ear = fabric.inside(Pod::World, open)??;
    let [host, own] = [1, 2].map(|side| [2, 0, 0, 0, side, Pod::Client as u8]);
    let mut packets = packets(client, world);
    packets.push(wire::udp(Ip::new(client, world), 50_000, REMOTE_PORT, LAST));
    let own_socket = fabric.inside(Pod::Client, open)??;
    for packet in &packets {
        send(&own_socket, &wire::ethernet(host, own, packet))?;
    }
    let (mut frames, end) = (Vec::new(), Instant::now() + PATIENCE);
    loop {
        match receive(&ear) {
            Some(frame) if !is_from(&frame, from) => {}
            Some(frame) => {
                if let Some(wrong) = wire::bad_checksum(&frame) {
                    bail!("{wrong} in {frame:02x?}");
                }
                let last = frame.ends_with(LAST);
                frames.push(bare(&frame, v4, !gateway));
                if last {
                    break;
                }
            }
            None if Instant::now() > end => bail!("the last packet never came\n{}", place.state()),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    ensure!(frames.len() > packets.len() / 2, "{} of {} packets came", frames.len(), packets.len());
    frames.sort();
    Ok(frames)
}

/// Both gateways get the same packets, one after the other.
pub(crate) fn same(v4: bool) -> Result<()> {
    let by_kernel = heard(v4, false).context("by the kernel")?;
    let by_programs = heard(v4, true).context("by the programs")?;
    let only = |these: &[Vec<u8>], others: &[Vec<u8>]| {
        let lone = these.iter().filter(|frame| !others.contains(frame));
        lone.map(|frame| format!("\n  {frame:02x?}")).collect::<String>()
    };
    ensure!(
        by_kernel == by_programs,
        "{} packets by the kernel, alone:{}\n{} by the programs, alone:{}",
        by_kernel.len(),
        only(&by_kernel, &by_programs),
        by_programs.len(),
        only(&by_programs, &by_kernel)
    );
    Ok(())
}
