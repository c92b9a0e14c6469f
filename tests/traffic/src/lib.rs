//! The traffic tools of the tests: servers, and clients that compare what they get.
//!
//! The lab has them in `coil-lab tool`, the end-to-end tests in an image of their own.

mod data;
mod forge;
mod http;
pub mod machine;
mod node;
pub mod paced;
pub mod serve;
mod tcp;
mod udp;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Where `coil-traffic` leaves what it says: the termination message of a pod.
pub const RESULT: &str = "/run/coil-traffic-result";

/// Traffic tools for pods, nodes and the world.
#[derive(Debug, clap::Subcommand)]
pub enum Tool {
    /// Serve a TCP sink on PORT (answers each connection with length and checksum), TCP and UDP
    /// echo on PORT+1, and on PORT+2 the address of who connects
    Serve {
        /// First of the two ports
        port: u16,
    },
    /// Send bytes to the sink of `serve` and compare the checksum it answers
    TcpSend {
        /// ADDRESS:PORT
        to: SocketAddr,
        /// How many bytes
        #[arg(long, default_value_t = 10 << 20)]
        bytes: usize,
        /// How long to wait
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Have bytes echoed over TCP connections, again and again, and compare each
    TcpEcho {
        /// ADDRESS:PORT
        to: SocketAddr,
        /// How many connections at once
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// How many bytes each time
        #[arg(long, default_value_t = 1 << 20)]
        bytes: usize,
        /// How often
        #[arg(long, default_value_t = 20)]
        times: usize,
        /// More often, until this file is there
        #[arg(long)]
        until: Option<PathBuf>,
        /// Milliseconds between two times
        #[arg(long, default_value_t = 0)]
        pause: u64,
        /// How long to wait
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Have UDP datagrams echoed, compare each, count the lost
    UdpEcho {
        /// ADDRESS:PORT
        to: SocketAddr,
        /// End when more than this many are lost, and forgive these; without it all are sent, and all must come back
        #[arg(long)]
        lost: Option<usize>,
        /// Bytes of a datagram
        #[arg(long, default_value_t = 1000)]
        bytes: usize,
        /// Hand the kernel this many at once, as QUIC does (UDP_SEGMENT)
        #[arg(long, default_value_t = 1)]
        segments: usize,
        /// How many
        #[arg(long, default_value_t = 20)]
        times: usize,
        /// Milliseconds between two
        #[arg(long, default_value_t = 0)]
        pause: u64,
        /// How long to wait
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Have a UDP datagram echoed that nobody may divide, or say which MTU refused it
    UdpWhole {
        /// ADDRESS:PORT
        to: SocketAddr,
        /// Bytes of the datagram
        #[arg(long)]
        bytes: usize,
        /// How long to wait
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Send a datagram from each of many ports; nobody has to answer
    UdpPorts {
        /// ADDRESS:PORT
        to: SocketAddr,
        /// The first port
        #[arg(long, default_value_t = 1024)]
        first: u16,
        /// How many ports
        #[arg(long)]
        ports: u16,
    },
    /// Send FOU as a forger would: a datagram in a datagram
    Fou {
        /// ADDRESS:PORT
        to: SocketAddr,
        /// The address to come from, which need not be this host's
        #[arg(long)]
        from: Option<IpAddr>,
        /// Where the datagram inside comes from, ADDRESS:PORT
        #[arg(long)]
        inner: SocketAddr,
        /// Where it goes to, ADDRESS:PORT
        #[arg(long)]
        target: SocketAddr,
        /// How many
        #[arg(long, default_value_t = 5)]
        times: usize,
    },
    /// As `serve`, on addresses that the node has only meanwhile
    World {
        /// First of the three ports
        port: u16,
        /// The addresses
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
    /// All that `serve` offers, one after the other; print the address that it sees
    Visit {
        /// The server's address
        address: IpAddr,
        /// First of its three ports
        port: u16,
        /// How often a megabyte is echoed
        #[arg(long, default_value_t = 5)]
        times: usize,
        /// How long to wait
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Have routes to addresses by way of other nodes, until SIGTERM
    Route {
        /// The addresses
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
        /// The next hops, one of each family
        #[arg(long, required = true, value_delimiter = ',')]
        via: Vec<IpAddr>,
    },
    /// Ask `serve` for the address that it sees
    Whoami {
        /// ADDRESS:PORT
        to: SocketAddr,
        /// The address to come from
        #[arg(long)]
        from: Option<IpAddr>,
        /// How long to wait
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Print the destinations of a routing table
    Routes {
        /// Number of the table
        table: u32,
    },
    /// Print the names of all links
    Links,
    /// Fetch a URL (http, an address for a host) and print the body
    HttpGet {
        /// http://ADDRESS[:PORT]/PATH
        url: String,
        /// Fail unless the body has this word; repeatable. Then the body is not printed
        #[arg(long)]
        contains: Vec<String>,
        /// Fail if anything had to be sent twice: tells a loss from a slow machine
        #[arg(long)]
        unrepeated: bool,
        /// How long to wait
        #[command(flatten)]
        timeout: Timeout,
    },
}

/// How long a tool waits for its peer.
#[derive(Debug, clap::Args)]
pub struct Timeout {
    /// Seconds to wait for the peer each time; ten times as many where the machine is emulated
    #[arg(long, default_value_t = 10)]
    timeout: u64,
}

impl Timeout {
    fn get(&self) -> Duration {
        machine::patience(Duration::from_secs(self.timeout))
    }
}

/// Runs a tool to its end; what it has to say.
///
/// # Errors
/// When what comes back is not what was sent, or nothing does.
pub fn run(tool: Tool) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match tool {
            Tool::Serve { port } => serve::all(&[[0_u16; 8].into()], port).await.map(|()| String::new()),
            Tool::World { port, addresses } => {
                let served = node::with_addresses(&addresses, serve::all(&addresses, port)).await;
                served.map(|()| String::new())
            }
            Tool::TcpSend { to, bytes, timeout } => tcp::send(to, bytes, timeout.get()).await,
            Tool::TcpEcho { to, connections, bytes, times, until, pause, timeout } => {
                let (pause, turns) = (Duration::from_millis(pause), (times, until.as_deref()));
                tcp::echo_on_all(connections, to, bytes, turns, pause, timeout.get()).await
            }
            Tool::UdpEcho { to, lost, bytes, segments, times, pause, timeout } => {
                let pause = Duration::from_millis(pause);
                udp::echo(to, bytes, segments, times, pause, timeout.get(), lost).await
            }
            Tool::UdpWhole { to, bytes, timeout } => udp::whole(to, bytes, timeout.get()).await,
            Tool::UdpPorts { to, first, ports } => udp::from_ports(to, first, ports).await,
            Tool::Fou { to, from, inner, target, times } => forge::send(to, from, inner, target, times).await,
            Tool::Visit { address, port, times, timeout } => visit(address, port, times, timeout.get()).await,
            Tool::Route { addresses, via } => {
                node::with_routes(&addresses, &via).await.map(|()| String::new())
            }
            Tool::Whoami { to, from, timeout } => tcp::whoami(to, from, timeout.get()).await,
            Tool::HttpGet { url, contains, unrepeated, timeout } => {
                http::get(&url, &contains, unrepeated, timeout.get()).await
            }
            Tool::Routes { table } => node::routes(table).await,
            Tool::Links => node::links().await,
        }
    })
}

/// The size of what is echoed on a visit.
const MEGABYTE: usize = 1 << 20;

async fn visit(address: IpAddr, port: u16, times: usize, limit: Duration) -> Result<String> {
    let at = |more| SocketAddr::new(address, port.saturating_add(more));
    // TCP first: it waits while routers hear of a new pod.
    let seen = tcp::whoami(at(2), None, limit).await?;
    tcp::send(at(0), MEGABYTE, limit).await?;
    tcp::echo(at(1), MEGABYTE, (times, None), Duration::ZERO, limit).await?;
    udp::echo(at(1), 1000, 1, 20, Duration::ZERO, limit, None).await?;
    Ok(seen)
}

/// The part of a future's life that a tool waits for.
async fn within<T>(
    limit: Duration,
    what: &str,
    to: SocketAddr,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .with_context(|| format!("{to}: cannot {what}: no answer within {limit:?}"))?
        .with_context(|| format!("{to}: cannot {what}"))
}

/// The address that any local one is written as, in the family of a peer.
fn unspecified(peer: SocketAddr) -> SocketAddr {
    let any: IpAddr = if peer.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    SocketAddr::new(any, 0)
}
