//! A gateway pod's namespace: its own ports, and the socket where coil-egress asks how it stands.

use std::{
    ops::RangeInclusive,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::Arc,
    time::Duration,
};

use coil_api::gateway::{GatewayStatus, SOCKET};
use coil_netns::{NetNs, NetNsError};
use tokio::{io::AsyncWriteExt, task::JoinHandle};
use tracing::{debug, warn};

use crate::net::{RtnlError, sysctl};

/// What the pod's own sockets and, beside the programs, the kernel's masquerading use; the programs translate to ports
/// below.
pub const OWN_PORTS: RangeInclusive<u16> = coil_packet::nat::LAST_PORT + 1..=u16::MAX;

/// Until the socket is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The pod's namespace cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// It cannot be entered.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// A setting cannot be written.
    #[error(transparent)]
    Setting(#[from] RtnlError),
    /// The socket cannot be made.
    #[error("cannot listen on the abstract socket {SOCKET} of the gateway pod: {0}")]
    Socket(#[from] std::io::Error),
}

/// Tells how a gateway pod stands now.
pub type StatusOf = Arc<dyn Fn() -> GatewayStatus + Send + Sync>;

/// A gateway pod's namespace that is ready. The socket goes with it.
#[derive(Debug)]
pub struct GatewayPod {
    server: JoinHandle<()>,
}

impl Drop for GatewayPod {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl GatewayPod {
    /// Prepares the namespace and serves the socket. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the namespace is gone, or another coild serves the socket.
    pub fn prepare(ns: &NetNs, status: StatusOf) -> Result<Self, GatewayError> {
        let listener = ns.run(|| {
            let ports = format!("{} {}", OWN_PORTS.start(), OWN_PORTS.end());
            sysctl::set("ipv4/ip_local_port_range", &ports)?;
            let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(SOCKET)?)?;
            listener.set_nonblocking(true)?;
            Ok::<_, GatewayError>(listener)
        })??;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Such as no free descriptor, of which there will be one again.
                        warn!(error = %e, "coil-egress in a gateway cannot be answered yet");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                };
                let status = status.clone();
                tokio::spawn(async move {
                    // It looks into the pod's namespace, on a thread that may wait.
                    let status = tokio::task::spawn_blocking(move || status()).await;
                    // Numbers, strings and addresses are always JSON.
                    let answer = status.ok().and_then(|status| serde_json::to_vec(&status).ok());
                    let answer = answer.unwrap_or_default();
                    if let Err(e) = stream.write_all(&answer).await {
                        debug!(error = %e, "coil-egress went away before the answer");
                    }
                });
            }
        });
        Ok(Self { server })
    }
}
