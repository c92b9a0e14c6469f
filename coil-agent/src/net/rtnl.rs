//! Requests to the kernel's rtnetlink, one by one, with an error that says what was being done.

use std::{io, sync::Arc, time::Duration};

use coil_netns::{NetNs, NetNsError};
use futures::StreamExt;
use rtnetlink::{
    Handle,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
        NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
};

/// How often a dump that a change interrupted is tried again, the pause doubling from 1 ms.
const DUMP_ATTEMPTS: u32 = 8;

/// The kernel refused, or could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {source}")]
pub struct RtnlError {
    doing: String,
    source: io::Error,
}

impl RtnlError {
    pub(super) fn new(doing: impl Into<String>, source: io::Error) -> Self {
        Self { doing: doing.into(), source }
    }

    /// Whether what should be changed or removed does not exist.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        use nix::libc::{EADDRNOTAVAIL, ENODEV, ENOENT, ENXIO, ESRCH};
        matches!(self.source.raw_os_error(), Some(EADDRNOTAVAIL | ENODEV | ENOENT | ENXIO | ESRCH))
    }

    /// Whether no route leads to what was asked for.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        use nix::libc::{EHOSTUNREACH, ENETUNREACH};
        matches!(self.source.raw_os_error(), Some(EHOSTUNREACH | ENETUNREACH))
    }

    /// Whether what should be made exists.
    #[must_use]
    pub fn is_existing(&self) -> bool {
        self.source.raw_os_error() == Some(nix::libc::EEXIST)
    }
}

/// What a request does when the object exists, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Change or remove what is there.
    Change,
    /// Make it; it must not exist.
    Create,
    /// Make it, or put it in the place of what exists.
    Replace,
}

impl Mode {
    pub(crate) fn flags(self) -> u16 {
        match self {
            Self::Change => 0,
            Self::Create => NLM_F_CREATE | NLM_F_EXCL,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

/// A netlink socket in one network namespace. Clones share it; the last one closes it.
#[derive(Clone, Debug)]
pub struct Rtnl {
    handle: Handle,
    /// The kernel serves one dump at a time on a socket, and refuses a second one (EBUSY).
    dumping: Arc<tokio::sync::Mutex<()>>,
}

impl Rtnl {
    /// Opens a socket in the thread's own namespace. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When there are no more sockets to have.
    pub fn open() -> Result<Self, RtnlError> {
        // Strict checking makes the kernel filter dumps by table and by link.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .map_err(|e| RtnlError::new("open a netlink socket", e))?;
        tokio::spawn(connection);
        Ok(Self { handle, dumping: Arc::default() })
    }

    /// Opens a socket in another namespace. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn open_in(ns: &NetNs) -> Result<Result<Self, RtnlError>, NetNsError> {
        let runtime = tokio::runtime::Handle::current();
        ns.run(|| {
            let _context = runtime.enter();
            Self::open()
        })
    }

    /// Sends one request and waits for the kernel's acknowledgement.
    pub(crate) async fn change(
        &self,
        message: RouteNetlinkMessage,
        mode: Mode,
        doing: impl FnOnce() -> String + Send,
    ) -> Result<(), RtnlError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | mode.flags();
        match self.answers(request).await {
            Ok(_) => Ok(()),
            Err(e) => Err(RtnlError::new(doing(), e)),
        }
    }

    /// Asks for one object.
    pub(super) async fn get(&self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST;
        let (found, _) = self.answers(request).await?;
        found.into_iter().next().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    /// Asks for all objects; again, when they changed during the answer.
    pub(crate) async fn dump(
        &self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, RtnlError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let _one_at_a_time = self.dumping.lock().await;
        for attempt in 0..DUMP_ATTEMPTS {
            let (found, interrupted) =
                self.answers(request.clone()).await.map_err(|e| RtnlError::new(format!("list {what}"), e))?;
            if !interrupted {
                return Ok(found);
            }
            tokio::time::sleep(Duration::from_millis(1 << attempt)).await;
        }
        let busy = io::Error::new(io::ErrorKind::Interrupted, "they changed during each of several attempts");
        Err(RtnlError::new(format!("list {what}"), busy))
    }

    async fn answers(
        &self,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        let mut answers = self.handle.clone().request(request).map_err(|_| closed())?;
        let (mut found, mut interrupted) = (Vec::new(), false);
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok((found, interrupted))
    }
}
