//! Whatever a client and the world send each other, both get the same through a gateway by the programs and through one
//! by the kernel, byte for byte. What the world gets may differ in ports and identifications, and in checksums that
//! follow from those; what the client gets, in identifications that the kernel gives to fragments of IPv6. A gateway pod
//! by the kernel is a hop. The world gets nothing in the client's own name.
//!
//! The world's end is an address where nobody answers, and the pods' kernels answer it nothing: all that is heard was
//! sent here.

mod bare;
mod packets;

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bare::Side;
use coil_agent::egress::kernel::nft;
use coil_cases::wire;
use coil_kernel_tests::{
    Pod,
    ear::{is_from, is_to, open, receive, send},
    traffic::PATIENCE,
};

use crate::{Pair, place::Place};

const ETHERNET: usize = 14;

/// Who sends and who is asked.
struct Ends {
    v4: bool,
    client: IpAddr,
    gateway: IpAddr,
    /// In the world, without anybody.
    remote: IpAddr,
    /// A router of the world.
    router: IpAddr,
}

/// A gateway between the two ends.
struct Between {
    place: Place,
    ends: Ends,
    /// Of the client, and of the world.
    ears: [OwnedFd; 2],
}

/// What is sent to one side, and which side that is.
type Round = (&'static str, Side, fn(&Ends) -> Vec<Vec<u8>>);

/// One after the other.
const ROUNDS: [Round; 3] = [
    ("what the world gets", Side::World, packets::there),
    ("what the client gets", Side::Client, packets::back),
    ("what the world gets about what the client got", Side::World, packets::about),
];

impl Between {
    fn new(v4: bool, gateway: bool) -> Result<Self> {
        let place = Place::new(Pair { v4, client: true, gateway, sport_auto: false })?;
        let fabric = &place.fabric;
        // Neighbours are known, both ways.
        fabric.ping(Pod::Client, Pod::World)?;
        let remote: IpAddr =
            if v4 { [198, 51, 100, 77].into() } else { [0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x77].into() };
        let [client, gateway] = [Pod::Client, Pod::Gateway].map(|pod| fabric.address(pod));
        let ends = Ends { v4, client, gateway, remote, router: place.far_address() };
        fabric.ip_in(Pod::World, &format!("route add blackhole {remote}"))?;
        let family = if v4 { "ip" } else { "ip6" };
        let silence = format!(
            "add table {family} silence; add chain {family} silence c {{ type filter hook input priority 0; }}; \
             add rule {family} silence c {family} saddr {{ {remote}, {} }} drop",
            ends.router
        );
        for pod in [Pod::Client, Pod::Gateway] {
            let output = fabric.inside(pod, || Command::new("nft").arg(&silence).output())?;
            let output = output.context("cannot run nft (package nftables)")?;
            ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
        }
        let ears = [fabric.inside(Pod::Client, open)??, fabric.inside(Pod::World, open)??];
        Ok(Self { place, ends, ears })
    }

    /// MAC addresses for a frame from the world to the gateway: those of the last frame the other way.
    fn world_macs(&self, heard: &[u8]) -> Result<[[u8; 6]; 2]> {
        let [to, from] =
            [heard.first_chunk().copied(), heard.get(6..).and_then(|rest| rest.first_chunk().copied())];
        from.zip(to).map(|(from, to)| [from, to]).context("a frame")
    }

    /// Sends packets to a side; what comes there.
    fn pass(&self, side: Side, macs: [[u8; 6]; 2], packets: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let Ends { client, gateway, remote, router, .. } = self.ends;
        let [client_ear, world_ear] = &self.ears;
        let (from, to, senders) = match side {
            Side::World => (client_ear, world_ear, [gateway; 2]),
            Side::Client => (world_ear, client_ear, [remote, router]),
        };
        let last = match side {
            Side::World => packets::last(client, remote),
            Side::Client => packets::last(remote, gateway),
        };
        for packet in packets.iter().chain([&last]) {
            send(from, &wire::ethernet(macs[0], macs[1], packet))?;
        }
        let (mut frames, end) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            match receive(to) {
                // In FOU, to the gateway, it may come by.
                Some(frame) if side == Side::World && is_from(&frame, client) && is_to(&frame, remote) => {
                    bail!("it got out in the client's own name: {frame:02x?}");
                }
                Some(frame) if !senders.iter().any(|sender| is_from(&frame, *sender)) => {}
                Some(frame) => {
                    if let Some(wrong) = wire::bad_checksum(&frame) {
                        bail!("{wrong} in {frame:02x?}");
                    }
                    let is_last = frame.ends_with(packets::LAST);
                    frames.push(frame);
                    if is_last {
                        return Ok(frames);
                    }
                }
                None if Instant::now() > end => bail!("the last packet never came\n{}", self.place.state()),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Packets that the gateway's kernel dropped as of no known connection.
    fn invalid(&self) -> Result<u64> {
        let like = self.ends.gateway;
        Ok(self.place.fabric.inside(Pod::Gateway, || nft::counts(like))??.invalid.packets)
    }

    /// What each round's side gets.
    fn heard(&self, by_kernel: bool) -> Result<Vec<Vec<Vec<u8>>>> {
        let mut heard = vec![];
        let client_macs = self.place.fabric.macs(Pod::Client);
        let mut world_macs = None;
        let before = self.invalid()?;
        for (what, side, packets) in ROUNDS {
            let macs = match side {
                Side::World => [client_macs.0, client_macs.1],
                Side::Client => world_macs.context("the world speaks first")?,
            };
            let frames = self.pass(side, macs, &packets(&self.ends)).context(what)?;
            if side == Side::World {
                world_macs = Some(self.world_macs(frames.last().context("the last frame")?)?);
                ensure!(
                    !heard.is_empty() || frames.iter().any(|frame| packets::is_asked(frame, self.ends.v4)),
                    "the client's port is another's, though nobody has it"
                );
            }
            if by_kernel && heard.is_empty() {
                let invalid = self.invalid()? - before;
                ensure!(invalid >= packets::UNKNOWN, "{what}: {invalid} packets were dropped as invalid");
            }
            let mut frames: Vec<_> =
                frames.iter().map(|frame| bare::bare(frame, self.ends.v4, side, by_kernel)).collect();
            frames.sort();
            heard.push(frames);
        }
        Ok(heard)
    }
}

/// Both gateways get the same packets, one after the other.
pub(crate) fn same(v4: bool) -> Result<()> {
    let by_kernel = Between::new(v4, false)?.heard(true).context("by the kernel")?;
    let by_programs = Between::new(v4, true)?.heard(false).context("by the programs")?;
    let only = |these: &[Vec<u8>], others: &[Vec<u8>]| {
        let lone = these.iter().filter(|frame| !others.contains(frame));
        lone.map(|frame| format!("\n  {frame:02x?}")).collect::<String>()
    };
    let mut wrong = String::new();
    for ((what, ..), (kernel, programs)) in ROUNDS.into_iter().zip(by_kernel.iter().zip(&by_programs)) {
        ensure!(kernel.len() > 15, "{what}: {} packets only", kernel.len());
        if kernel != programs {
            wrong += &format!(
                "{what}: {} packets by the kernel, alone:{}\n{} by the programs, alone:{}\n",
                kernel.len(),
                only(kernel, programs),
                programs.len(),
                only(programs, kernel)
            );
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}
