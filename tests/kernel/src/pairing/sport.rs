//! From which port a client's FOU comes.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use coil_kernel_tests::{
    Pod,
    ear::{is_from, open, receive},
    traffic::PATIENCE,
};

use crate::place::{COMMON, Place};

/// Flows, and datagrams of each.
const FLOWS: usize = 16;
const EACH: usize = 3;
/// Where nobody listens.
const PORT: u16 = 9009;
const SAYS: &[u8] = b"from flow ";
const PROTOCOL: u8 = 17;

/// The outer source port of a datagram of ours, and its flow.
fn read(frame: &[u8], v4: bool) -> Option<(u16, Vec<u8>)> {
    let (protocol, at) = if v4 { (frame.get(23)?, 34) } else { (frame.get(20)?, 54) };
    let number = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let begins = frame.windows(SAYS.len()).position(|part| part == SAYS)?;
    let is_fou = *protocol == PROTOCOL && number(at + 2)? == COMMON.port;
    is_fou.then_some((number(at)?, frame.get(begins..)?.to_vec()))
}

/// One port for all flows, or one for each, which it keeps.
pub(crate) fn sport(place: &Place) -> Result<()> {
    let fabric = &place.fabric;
    let (client, world) = (fabric.address(Pod::Client), fabric.address(Pod::World));
    let ear = fabric.on_node(0, open)??;
    fabric.inside(Pod::Client, || -> Result<()> {
        for flow in 0..FLOWS {
            let socket = UdpSocket::bind(SocketAddr::new(client, 0))?;
            let says = [SAYS, flow.to_string().as_bytes()].concat();
            for _ in 0..EACH {
                socket.send_to(&says, SocketAddr::new(world, PORT))?;
            }
        }
        Ok(())
    })??;
    let (mut ports, mut heard) = (BTreeMap::<Vec<u8>, Vec<u16>>::new(), 0);
    let end = Instant::now() + PATIENCE;
    while heard < FLOWS * EACH {
        match receive(&ear).filter(|frame| is_from(frame, client)) {
            Some(frame) => {
                if let Some((port, flow)) = read(&frame, place.pair.v4) {
                    heard += 1;
                    ports.entry(flow).or_default().push(port);
                }
            }
            None => {
                ensure!(Instant::now() < end, "{heard} of {} datagrams left the node", FLOWS * EACH);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    let keeps = ports.values().all(|ports| ports.iter().all(|port| *port == ports[0]));
    ensure!(ports.len() == FLOWS && keeps, "flows changed their ports: {ports:?}");
    let mut different: Vec<u16> = ports.into_values().map(|ports| ports[0]).collect();
    different.sort_unstable();
    different.dedup();
    if place.pair.sport_auto {
        ensure!(different.len() > FLOWS / 2, "{FLOWS} flows share the ports {different:?}");
    } else {
        ensure!(different == [COMMON.port], "the ports are {different:?}");
    }
    Ok(())
}
