//! FOU that nobody should believe: of a pod that is no client of the gateway, of a client in another's name, and of a pod that is
//! no gateway of the client.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use coil_agent::egress::kernel::{nft, peers};
use coil_cases::wire::{self, Ip};
use coil_kernel_tests::{
    Pod,
    ear::{open, receive},
    traffic::PATIENCE,
};
use coil_packet::Reason;

use crate::place::{COMMON, Place};

const TIMES: u64 = 3;
const SAYS: &[u8] = b"forged";
/// Where the client waits for a reply that nobody may send.
const PORT: u16 = 9010;

/// Where it is counted that nobody believed it.
#[derive(Clone, Copy)]
enum Counter {
    Programs(Reason),
    Gateway,
    Client,
}

impl Counter {
    fn read(self, place: &Place) -> Result<u64> {
        Ok(match self {
            Self::Programs(reason) => place.fabric.count(reason),
            Self::Gateway => {
                let own = place.fabric.address(Pod::Gateway);
                place.fabric.inside(Pod::Gateway, || nft::counts(own))??.forged.packets
            }
            Self::Client => {
                let v6 = !place.pair.v4;
                place.fabric.inside(Pod::Client, || peers::dropped(v6))??.packets
            }
        })
    }
}

/// From a pod that is nobody's client to the gateway.
pub(crate) fn forged(place: &Place) -> Result<()> {
    let counter = if place.pair.gateway { Counter::Programs(Reason::FouForged) } else { Counter::Gateway };
    let stranger = place.fabric.address(Pod::Remote);
    to_gateway(place, Pod::Remote, stranger, counter)
}

/// From a client to the gateway, as another client, and as a pod that is none. Where the programs send a client's FOU, its own
/// does not come that far.
pub(crate) fn forged_inner(place: &Place) -> Result<()> {
    let counter = match (place.pair.client, place.pair.gateway) {
        (true, _) => Counter::Programs(Reason::FouForged),
        (false, true) => Counter::Programs(Reason::FouInner),
        (false, false) => Counter::Gateway,
    };
    for other in [Pod::Plain, Pod::Remote] {
        to_gateway(place, Pod::Client, place.fabric.address(other), counter)?;
    }
    Ok(())
}

/// It is dropped and counted, and nothing of it gets out.
fn to_gateway(place: &Place, from: Pod, inner: IpAddr, counter: Counter) -> Result<()> {
    let ear = place.fabric.inside(Pod::World, open)??;
    let packet = wire::udp(Ip::new(inner, place.fabric.address(Pod::World)), 4444, 9009, SAYS);
    dropped(place, [from, Pod::Gateway], &packet, counter)?;
    while let Some(frame) = receive(&ear) {
        ensure!(!frame.windows(SAYS.len()).any(|part| part == SAYS), "the world got {frame:02x?}");
    }
    Ok(())
}

/// From a pod that is no gateway to a client, as a reply of the world: it is dropped and counted, and nothing of it gets to
/// whoever waits for one.
pub(crate) fn forged_reply(place: &Place) -> Result<()> {
    let counter = if place.pair.client { Counter::Programs(Reason::FouNotGateway) } else { Counter::Client };
    let [client, world] = [Pod::Client, Pod::World].map(|pod| place.fabric.address(pod));
    let waiting = place.fabric.inside(Pod::Client, || UdpSocket::bind(SocketAddr::new(client, PORT)))??;
    waiting.set_nonblocking(true)?;
    let packet = wire::udp(Ip::new(world, client), 53, PORT, SAYS);
    dropped(place, [Pod::Remote, Pod::Client], &packet, counter)?;
    match waiting.recv(&mut [0; 64]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        got => anyhow::bail!("the client's socket got {got:?}"),
    }
}

/// A pod sends it in FOU to another; each time it is dropped and counted.
fn dropped(place: &Place, [from, to]: [Pod; 2], packet: &[u8], counter: Counter) -> Result<()> {
    let [own, to] = [from, to].map(|pod| place.fabric.address(pod));
    let before = counter.read(place)?;
    place.fabric.inside(from, || -> Result<()> {
        let socket = UdpSocket::bind(SocketAddr::new(own, 0))?;
        for _ in 0..TIMES {
            socket.send_to(packet, SocketAddr::new(to, COMMON.port))?;
        }
        Ok(())
    })??;
    let end = Instant::now() + PATIENCE;
    loop {
        let now = counter.read(place)? - before;
        if now >= TIMES {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{now} of {TIMES} forged packets from {own} to {to} were dropped");
        std::thread::sleep(Duration::from_millis(20));
    }
}
