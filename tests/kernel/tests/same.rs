//! Whatever a pod sends, the eBPF path brings it to the same place with the same bytes as the kernel: random packets
//! through both, compared frame by frame. The fabric is that of `tests/journey.rs`.

#![expect(clippy::cast_possible_truncation, reason = "small random numbers, and constants of the C library")]

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use coil_agent::datapath::Desired;
use coil_kernel_tests::{
    Fabric, Pod,
    ear::{is_from, octets, open, receive, send},
};
use coil_packet::Reason;

/// Packets of one run.
const PACKETS: usize = 3000;
const PATIENCE: Duration = Duration::from_secs(20);
/// Who listens.
const EARS: [Pod; 4] = [Pod::Client, Pod::Remote, Pod::Gateway, Pod::World];
/// MAC addresses of the sender's link, see `Fabric`.
const HOST: [u8; 6] = [2, 0, 0, 0, 1, Pod::Plain as u8];
const OWN: [u8; 6] = [2, 0, 0, 0, 2, Pod::Plain as u8];
/// What the last packets say.
const LAST: &[u8] = b"this was the last";

/// Small numbers without a crate for them; the seed is printed by a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap_or(0)]
    }

    fn byte(&mut self) -> u8 {
        self.below(256).to_be_bytes()[7]
    }
}

fn sum(bytes: &[u8], mut sum: u32) -> u16 {
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// An IP packet with as right an outside as `random` wants.
fn packet(random: &mut Random, from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let ttl = random.one(&[64, 64, 64, 64, 255, 2, 1, 0]);
    let mut frame = [&HOST[..], &OWN[..]].concat();
    if from.is_ipv4() {
        frame.extend([8, 0]);
        let options = if random.below(12) == 0 { 4 * (1 + random.below(10)) as usize } else { 0 };
        let fragment: u16 = random.one(&[0x4000, 0x4000, 0x4000, 0, 0, 0x2000, 0x0004, 0x8000]);
        let len = u16::try_from(20 + options + payload.len()).unwrap_or(0);
        let mut header = vec![0x45 + (options / 4) as u8, random.byte()];
        header.extend(len.to_be_bytes());
        header.extend([random.byte(), random.byte()]);
        header.extend(fragment.to_be_bytes());
        header.extend([ttl, protocol, 0, 0]);
        header.extend(octets(from));
        header.extend(octets(to));
        header.extend(std::iter::repeat_n(1, options));
        let check = sum(&header, u32::from(random.below(40) == 0));
        header[10..12].copy_from_slice(&check.to_be_bytes());
        frame.extend(header);
    } else {
        frame.extend([0x86, 0xdd]);
        let extension = random.below(12) == 0;
        let len = u16::try_from(payload.len() + usize::from(extension) * 8).unwrap_or(0);
        frame.extend([0x60 | random.byte() & 15, random.byte(), 0, 0]);
        frame.extend(len.to_be_bytes());
        // Destination options with nothing but padding.
        frame.extend([if extension { 60 } else { protocol }, ttl]);
        frame.extend(octets(from));
        frame.extend(octets(to));
        if extension {
            frame.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
        }
    }
    frame.extend(payload);
    frame
}

/// TCP, UDP, ICMP echo or something else, of few connections, so that many packets meet a flow.
fn random_packet(random: &mut Random, from: IpAddr, to: IpAddr) -> Vec<u8> {
    let ports = [40000 + random.below(6) as u16, 80 + random.below(3) as u16].map(u16::to_be_bytes).concat();
    let data: Vec<u8> = (0..random.one(&[0, 1, 18, 100, 700, 1300])).map(|_| random.byte()).collect();
    let v4 = from.is_ipv4();
    let (protocol, mut payload, at) = match random.below(10) {
        0..=4 => {
            // SYN often, then ACK, FIN, RST and nonsense.
            let flags = random.one(&[2, 2, 2, 16, 16, 24, 17, 4, 18, 0, 255]);
            let mut tcp = ports;
            tcp.extend([0, 0, 0, random.byte(), 0, 0, 0, random.byte(), 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            (6, tcp, Some(16))
        }
        5 | 6 => {
            let mut udp = ports;
            udp.extend(u16::try_from(8 + data.len()).unwrap_or(0).to_be_bytes());
            udp.extend([0, 0]);
            (17, udp, Some(6))
        }
        7 | 8 => {
            let kind = if v4 { random.one(&[8, 8, 0]) } else { random.one(&[128, 128, 129]) };
            (if v4 { 1 } else { 58 }, vec![kind, 0, 0, 0, 0, random.byte() & 3, 0, 1], Some(2))
        }
        _ => (random.one(&[47, 50, 132, 253]), vec![], None),
    };
    payload.extend(data);
    if let Some(at) = at {
        // A pseudo header, but for ICMP of IPv4; now and then wrong.
        let mut start = u32::from(random.below(30) == 0);
        if protocol != 1 {
            let pseudo = [octets(from), octets(to)].concat();
            start +=
                u32::from(!sum(&pseudo, 0)) + u32::from(protocol) + u32::try_from(payload.len()).unwrap_or(0);
        }
        let check = sum(&payload, start);
        payload[at..at + 2].copy_from_slice(&check.to_be_bytes());
    }
    let mut frame = packet(random, from, to, protocol, &payload);
    if random.below(25) == 0 {
        let len = 14 + usize::try_from(random.below(frame.len() as u64 - 14)).unwrap_or(0);
        frame.truncate(len);
    }
    frame
}

/// Frames by who got them.
type Heard = BTreeMap<&'static str, Vec<Vec<u8>>>;

/// Sends the packets of a seed, and says what of them came where.
fn run(fabric: &Fabric, seed: u64) -> Result<Heard> {
    let ears: Vec<_> =
        EARS.into_iter().map(|pod| Ok((pod, fabric.inside(pod, open)??))).collect::<Result<_>>()?;
    let from = fabric.address(Pod::Plain);
    let mut random = Random(seed);
    let targets = EARS.map(|pod| fabric.address(pod));
    fabric.inside(Pod::Plain, || -> Result<()> {
        let socket = open()?;
        for _ in 0..PACKETS {
            let to = random.one(&targets);
            send(&socket, &random_packet(&mut random, from, to))?;
        }
        // Of a protocol that is never fast, with time to live: it comes through, behind all others.
        for to in targets {
            send(&socket, &plain(from, to, LAST))?;
        }
        Ok(())
    })??;
    let mut heard = Heard::new();
    for (pod, socket) in ears {
        let name = name(pod);
        let end = Instant::now() + PATIENCE;
        let frames = heard.entry(name).or_default();
        loop {
            match receive(&socket) {
                Some(frame) if !is_from(&frame, from) => {}
                Some(frame) if frame.ends_with(LAST) => break,
                Some(frame) => frames.push(frame),
                None if Instant::now() > end => bail!("{name} never got the last packet"),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        // What the kernel takes may be overtaken by what it does not.
        frames.sort();
    }
    Ok(heard)
}

/// A packet of an experimental protocol (RFC 3692).
fn plain(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len() + if from.is_ipv4() { 20 } else { 0 }).unwrap_or(0).to_be_bytes();
    let mut header = if from.is_ipv4() {
        [&[0x45, 0][..], &len, &[0, 0, 0x40, 0, 64, 253, 0, 0]].concat()
    } else {
        [&[0x60, 0, 0, 0][..], &len, &[253, 64]].concat()
    };
    header.extend([octets(from), octets(to)].concat());
    if from.is_ipv4() {
        let check = sum(&header, 0);
        header[10..12].copy_from_slice(&check.to_be_bytes());
    }
    let kind = if from.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    [&HOST[..], &OWN, &kind, &header, payload].concat()
}

const fn name(pod: Pod) -> &'static str {
    match pod {
        Pod::Client => "the pod on this node",
        Pod::Remote => "the pod on the other node",
        Pod::Gateway => "the gateway",
        _ => "the world",
    }
}

fn same(v4: bool) -> Result<()> {
    let fabric = Fabric::new(v4)?;
    for node in [0, 1] {
        let by_kernel = Desired { forward: false, ..fabric.stated(node) };
        fabric.with_datapath(node, |datapath| Ok(datapath.apply(&by_kernel).map(drop)?))?;
    }
    // Neighbours are known, both ways.
    fabric.ping(Pod::Plain, Pod::Client)?;
    fabric.ping(Pod::Plain, Pod::Remote)?;
    fabric.ping(Pod::Plain, Pod::Gateway)?;
    for round in 0..4u64 {
        let seed = 0x9e37_79b9_7f4a_7c15 ^ round << 7;
        let mut runs = vec![];
        for fast in [false, true] {
            for node in [0, 1] {
                let desired = Desired { forward: fast, fast_udp: true, ..fabric.stated(node) };
                fabric.with_datapath(node, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;
            }
            runs.push(run(&fabric, seed)?);
        }
        for (who, by_kernel) in &runs[0] {
            let by_ebpf = runs[1].get(who).context("the same ears")?;
            let first =
                (0..by_kernel.len().max(by_ebpf.len())).find(|n| by_kernel.get(*n) != by_ebpf.get(*n));
            ensure!(
                first.is_none(),
                "seed {seed:#x}: {who} got {} frames by the kernel and {} by eBPF; the first that differs:\n{:02x?}\n{:02x?}\n{}",
                by_kernel.len(),
                by_ebpf.len(),
                first.and_then(|n| by_kernel.get(n)),
                first.and_then(|n| by_ebpf.get(n)),
                fabric.counters()
            );
            ensure!(by_kernel.len() > 100, "{who} got {} frames only", by_kernel.len());
        }
    }
    for reason in [Reason::ToPod, Reason::ToNode, Reason::NotFastKind, Reason::LastHop, Reason::Malformed] {
        ensure!(fabric.count(reason) > 20, "too few packets were {}\n{}", reason.name(), fabric.counters());
    }
    Ok(())
}

#[test]
fn ipv4_ends_the_same() -> Result<()> {
    same(true)
}

#[test]
fn ipv6_ends_the_same() -> Result<()> {
    same(false)
}
