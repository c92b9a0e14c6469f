//! FOU of a pod that is no client of the gateway.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
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

/// How many packets were dropped as nobody's.
fn dropped(place: &Place) -> Result<u64> {
    if place.pair.gateway {
        return Ok(place.fabric.count(Reason::FouForged));
    }
    let family = if place.pair.v4 { "ip" } else { "ip6" };
    let output = place.fabric.inside(Pod::Gateway, || {
        Command::new("nft").args(["list", "chain", family, "coil", "forward"]).output()
    })?;
    let listed =
        String::from_utf8_lossy(&output.context("cannot run nft (package nftables)")?.stdout).into_owned();
    let rule = listed.lines().find(|line| line.contains("coil_ipip"));
    let rule = rule.with_context(|| format!("no rule against strangers: {listed}"))?;
    let count = rule.split("packets ").nth(1).and_then(|text| text.split(' ').next()?.parse().ok());
    count.with_context(|| format!("no count in {rule}"))
}

/// It is dropped and counted, and nothing of it gets out.
pub(crate) fn forged(place: &Place) -> Result<()> {
    let [forger, gateway, world] =
        [Pod::Remote, Pod::Gateway, Pod::World].map(|pod| place.fabric.address(pod));
    let ear = place.fabric.inside(Pod::World, open)??;
    let before = dropped(place)?;
    let packet = wire::udp(Ip::new(forger, world), 4444, 9009, SAYS);
    place.fabric.inside(Pod::Remote, || -> Result<()> {
        let socket = UdpSocket::bind(SocketAddr::new(forger, 0))?;
        for _ in 0..TIMES {
            socket.send_to(&packet, SocketAddr::new(gateway, COMMON.port))?;
        }
        Ok(())
    })??;
    let end = Instant::now() + PATIENCE;
    loop {
        let now = dropped(place)? - before;
        if now >= TIMES {
            break;
        }
        ensure!(Instant::now() < end, "{now} of {TIMES} forged packets were dropped");
        std::thread::sleep(Duration::from_millis(20));
    }
    while let Some(frame) = receive(&ear) {
        ensure!(!frame.windows(SAYS.len()).any(|part| part == SAYS), "the world got {frame:02x?}");
    }
    Ok(())
}
