//! One question to coild over the abstract socket in the pod's network namespace.

use std::{
    io::{self, Read},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    time::Duration,
};

use coil_api::gateway::GatewayStatus;

/// An answer names all clients, with some hundred bytes each: a node has room for 131,072. Anything longer is no answer.
const LONGEST: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("coild does not serve this pod (socket @{socket}): {source}")]
    Connect {
        /// Name of the abstract socket.
        socket: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer stopped.
    #[error("coild did not answer on @{socket}: {source}")]
    Read {
        /// Name of the abstract socket.
        socket: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer does not end.
    #[error("coild's answer on @{socket} has more than {LONGEST} bytes")]
    Endless {
        /// Name of the abstract socket.
        socket: String,
    },
    /// The answer is not one.
    #[error("coild's answer on @{socket} cannot be understood (another version?): {source}")]
    Answer {
        /// Name of the abstract socket.
        socket: String,
        /// What the parser said.
        source: serde_json::Error,
    },
}

/// Asks for the gateway's status. Blocks while coild sends nothing, for `limit` at most.
///
/// # Errors
/// See [`AskError`].
pub fn ask(socket: &str, limit: Duration) -> Result<GatewayStatus, AskError> {
    let name = || socket.to_owned();
    let stream = SocketAddr::from_abstract_name(socket)
        .and_then(|address| UnixStream::connect_addr(&address))
        .map_err(|source| AskError::Connect { socket: name(), source })?;
    let mut text = Vec::new();
    stream
        .set_read_timeout(Some(limit))
        .and_then(|()| stream.take(LONGEST + 1).read_to_end(&mut text))
        .map_err(|source| AskError::Read { socket: name(), source })?;
    if text.len() as u64 > LONGEST {
        return Err(AskError::Endless { socket: name() });
    }
    serde_json::from_slice(&text).map_err(|source| AskError::Answer { socket: name(), source })
}
