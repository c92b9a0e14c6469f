//! What is tried with each pair.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use coil_kernel_tests::{
    Pod,
    traffic::{self, PATIENCE, Server},
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

use crate::{
    beside::beside,
    forged::{forged, forged_inner, forged_reply},
    other::other,
    place::{FAR_MTU, Place},
    sport::sport,
};

/// A check of a pair.
pub(crate) type Probe = fn(&Place) -> Result<()>;

/// The check of clients with tunnels beside those of the programs.
pub(crate) const BESIDE: &str = "beside";

/// All checks, by name.
pub(crate) const PROBES: [(&str, Probe); 13] = [
    ("tcp", tcp),
    ("udp", udp),
    ("ping", ping),
    ("traceroute", traceroute),
    ("pmtu", pmtu),
    ("fragments", fragments),
    ("sport", sport),
    ("other", other),
    ("forged", forged),
    ("forged-inner", forged_inner),
    ("forged-reply", forged_reply),
    ("incoming", incoming),
    (BESIDE, beside),
];

/// The world sees the gateway, whatever the client sends.
pub(crate) fn translated(place: &Place, seen: IpAddr) -> Result<()> {
    let gateway = place.fabric.address(Pod::Gateway);
    ensure!(seen == gateway, "the world saw {seen}, not the gateway {gateway}");
    Ok(())
}

/// The Egress is originating-only: who comes in from its destinations is answered the way they came, and the client's own
/// connections leave by the gateway beside that.
fn incoming(place: &Place) -> Result<()> {
    let fabric = &place.fabric;
    let (client, world) = (fabric.address(Pod::Client), fabric.address(Pod::World));
    fabric.ip_in(Pod::World, &format!("route add {client} via {} src {world}", fabric.node_address(0)))?;
    let tried = || -> Result<()> {
        let seen = [
            traffic::tcp(fabric, Pod::World, Pod::Client, 8010, 100_000)?,
            traffic::udp(fabric, Pod::World, Pod::Client, 500)?,
        ];
        ensure!(seen == [world; 2], "the client saw {seen:?}, not the world {world}");
        fabric.ping(Pod::World, Pod::Client)?;
        tcp(place)?;
        udp(place)
    };
    let tried = tried();
    fabric.ip_in(Pod::World, &format!("route del {client}"))?;
    tried
}

fn tcp(place: &Place) -> Result<()> {
    for (port, size) in [(8000, 10), (8001, 1 << 20)] {
        translated(place, traffic::tcp(&place.fabric, Pod::Client, Pod::World, port, size)?)?;
    }
    Ok(())
}

fn udp(place: &Place) -> Result<()> {
    // The largest that fits the tunnel.
    let largest = if place.pair.v4 { 1500 - 28 - 28 } else { 1500 - 48 - 48 };
    for size in [1, 999, largest] {
        translated(place, traffic::udp(&place.fabric, Pod::Client, Pod::World, size)?)?;
    }
    Ok(())
}

fn ping(place: &Place) -> Result<()> {
    pings(place, place.fabric.address(Pod::World), &["-c", "5", "-i", "0.2"]).map(drop)
}

/// Sends echo requests; all must be answered.
fn pings(place: &Place, to: IpAddr, options: &[&str]) -> Result<String> {
    let said = ping_said(place, to, options)?;
    ensure!(said.contains(" 0% packet loss"), "ping {} {to}: {said}", options.join(" "));
    Ok(said)
}

fn ping_said(place: &Place, to: IpAddr, options: &[&str]) -> Result<String> {
    let output = place.fabric.inside(Pod::Client, || {
        Command::new("ping").args(options).args(["-n", "-W", "20", &to.to_string()]).output()
    })?;
    let output = output.context("cannot run ping (package iputils-ping)")?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Each hop up to the far host says that it is one, to datagrams and to echo requests.
fn traceroute(place: &Place) -> Result<()> {
    let to = place.far_address();
    let mut hops = vec![];
    for limit in 1..=MOST_HOPS {
        let said = ping_said(place, to, &["-c", "1", "-t", &limit.to_string()])?;
        if said.contains(" 0% packet loss") {
            break;
        }
        let hop = said.lines().find_map(|line| address(line.strip_prefix("From ")?.split(' ').next()?));
        let exceeded = said.contains("Time to live exceeded") || said.contains("Hop limit");
        ensure!(exceeded, "{to} with {limit} hops: {said}");
        hops.push(hop.with_context(|| format!("no address in what ping says: {said}"))?);
    }
    ensure!(
        hops.contains(&place.fabric.router_address()),
        "the world's router is not on the way to {to}: {hops:?}"
    );
    ensure!(hops.len() >= 2 && hops.len() < MOST_HOPS, "the hops to {to} are {hops:?}");
    let errors: Vec<i32> =
        (1..=MOST_HOPS).map(|limit| error_of_datagram(place, to, limit)).collect::<Result<_>>()?;
    let reached = errors.iter().position(|error| *error == libc::ECONNREFUSED);
    ensure!(
        reached == Some(hops.len()) && errors[..hops.len()].iter().all(|error| *error == libc::EHOSTUNREACH),
        "datagrams to a closed port of {to} met the errors {errors:?} by hops, echo requests {hops:?}"
    );
    Ok(())
}

const MOST_HOPS: usize = 8;

/// An address of ping's, which some versions write a colon behind.
fn address(word: &str) -> Option<IpAddr> {
    word.parse().ok().or_else(|| word.strip_suffix(':')?.parse().ok())
}

/// The error of a datagram with so many hops to a port where nobody listens.
fn error_of_datagram(place: &Place, to: IpAddr, hops: usize) -> Result<i32> {
    let own = SocketAddr::new(place.fabric.address(Pod::Client), 0);
    let port = 33434 + u16::try_from(hops)?;
    place.fabric.inside(Pod::Client, || {
        let socket = UdpSocket::bind(own)?;
        let hops = i32::try_from(hops)?;
        if own.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv4Ttl, &hops)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv6Ttl, &hops)?;
        }
        socket.connect(SocketAddr::new(to, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&[1; 20])?;
        match socket.recv(&mut [0; 64]) {
            Ok(_) => bail!("{to}:{port} answered"),
            Err(error) => Ok(error.raw_os_error().unwrap_or_default()),
        }
    })?
}

/// What is too large for the narrow link is told to the client, and then fits.
fn pmtu(place: &Place) -> Result<()> {
    let to = place.far_address();
    let said = ping_said(place, to, &["-c", "1", "-M", "do", "-s", "1350"])?;
    ensure!(
        said.contains(&format!("mtu = {FAR_MTU}")) || said.contains(&format!("mtu={FAR_MTU}")),
        "1350 bytes towards {to}: {said}"
    );
    let server = Server::start(&place.far, SocketAddr::new(to, 9000), 1 << 20)?;
    translated(place, place.fabric.inside(Pod::Client, || traffic::echo(server.address, 1 << 20))??)?;
    server.finish()
}

/// In fragments, there and back.
fn fragments(place: &Place) -> Result<()> {
    let to = place.fabric.address(Pod::World);
    // The world learns from the first that its fragments are too large for the tunnel.
    let said = ping_said(place, to, &["-c", "4", "-i", "0.3", "-s", "4000"])?;
    let answered = said.lines().filter(|line| line.contains(" bytes from ")).count();
    ensure!(answered >= 3, "echo requests of 4000 bytes: {said}");
    translated(place, traffic::udp(&place.fabric, Pod::Client, Pod::World, 4000)?)
}
