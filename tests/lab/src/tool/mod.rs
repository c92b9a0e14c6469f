//! The traffic tools of demo and tests: servers and clients that compare what they get.
//!
//! They are part of `coil-lab`, so that a lab needs nothing else installed.

mod data;
mod http;
pub(crate) mod serve;
mod tcp;
mod udp;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Traffic tools for pods, nodes and the world.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Tool {
    /// Serve a TCP sink on PORT (answers each connection with length and checksum) and TCP and
    /// UDP echo on PORT+1
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
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Have bytes echoed over one TCP connection, again and again, and compare each
    TcpEcho {
        /// ADDRESS:PORT
        to: SocketAddr,
        /// How many bytes each time
        #[arg(long, default_value_t = 1 << 20)]
        bytes: usize,
        /// How often
        #[arg(long, default_value_t = 20)]
        times: usize,
        /// Milliseconds between two times
        #[arg(long, default_value_t = 0)]
        pause: u64,
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Have UDP datagrams echoed, compare each, count the lost
    UdpEcho {
        /// ADDRESS:PORT
        to: SocketAddr,
        /// Bytes of a datagram
        #[arg(long, default_value_t = 1000)]
        bytes: usize,
        /// How many
        #[arg(long, default_value_t = 20)]
        times: usize,
        /// Milliseconds between two
        #[arg(long, default_value_t = 0)]
        pause: u64,
        #[command(flatten)]
        timeout: Timeout,
    },
    /// Fetch a URL (http, an address for a host) and print the body
    HttpGet {
        /// http://ADDRESS[:PORT]/PATH
        url: String,
        #[command(flatten)]
        timeout: Timeout,
    },
}

/// How long a tool waits for its peer.
#[derive(Debug, clap::Args)]
pub(crate) struct Timeout {
    /// Seconds to wait for the peer each time
    #[arg(long, default_value_t = 10)]
    timeout: u64,
}

impl Timeout {
    fn get(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// Runs a tool to its end.
pub(crate) fn main(tool: Tool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match tool {
            Tool::Serve { port } => serve::sink_and_echo(port).await,
            Tool::TcpSend { to, bytes, timeout } => tcp::send(to, bytes, timeout.get()).await,
            Tool::TcpEcho { to, bytes, times, pause, timeout } => {
                tcp::echo(to, bytes, times, Duration::from_millis(pause), timeout.get()).await
            }
            Tool::UdpEcho { to, bytes, times, pause, timeout } => {
                udp::echo(to, bytes, times, Duration::from_millis(pause), timeout.get()).await
            }
            Tool::HttpGet { url, timeout } => http::get(&url, timeout.get()).await,
        }
    })
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
