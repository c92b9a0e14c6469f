//! Several requests to rtnetlink in one system call, from a thread that may block.
//!
//! A request that changes something waits for the kernel's one lock of all network configuration. On
//! the threads that serve everybody that would stop what has nothing to do with it, so what a
//! pod needs is sent from here, on a thread of its own.

use std::io;

use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::rtnl::{Mode, RtnlError};

/// An answer of the kernel is never longer: it fills a page, or 32 KiB for a dump.
const ANSWER_MAX: usize = 1 << 16;

/// A request, and what it does, for an error's message.
#[derive(Debug)]
pub(super) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    doing: String,
}

impl Request {
    /// Changes something.
    pub(super) fn change(message: RouteNetlinkMessage, mode: Mode, doing: impl Into<String>) -> Self {
        Self { message, flags: mode.flags(), doing: doing.into() }
    }

    /// Asks for one object.
    pub(super) fn get(message: RouteNetlinkMessage, doing: impl Into<String>) -> Self {
        Self { message, flags: 0, doing: doing.into() }
    }
}

/// What became of one request: the object that was asked for, if any.
pub(super) type Answer = Result<Option<RouteNetlinkMessage>, RtnlError>;

/// A socket in the network namespace of the thread that opened it.
pub(super) struct Wire {
    socket: Socket,
    sequence: u32,
}

/// Requests in one message.
const BATCH: usize = 64;

impl Wire {
    /// Opens a socket in the calling thread's namespace.
    pub(super) fn open() -> Result<Self, RtnlError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // An error need not carry the whole request back.
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|e| RtnlError::new("open a netlink socket", e))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all requests and reads all answers. The kernel goes on after a request that failed: none
    /// may depend on one before it, unless it can only fail then too.
    pub(super) fn ask(&mut self, requests: Vec<Request>) -> Result<Vec<Answer>, RtnlError> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            answers.extend(self.ask_some(requests.by_ref().take(BATCH).collect())?);
        }
        Ok(answers)
    }

    /// The kernel answers while it reads, into a buffer that holds some two hundred answers.
    fn ask_some(&mut self, requests: Vec<Request>) -> Result<Vec<Answer>, RtnlError> {
        let first = self.sequence.wrapping_add(1);
        let (mut bytes, mut doings) = (Vec::new(), Vec::with_capacity(requests.len()));
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::from(request.message);
            message.header.flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = bytes.len();
            // Messages stand at multiples of four bytes.
            bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[start..]);
            doings.push(request.doing);
        }
        let failed = |e| RtnlError::new("talk to the kernel over netlink", e);
        self.socket.send(&bytes, 0).map_err(failed)?;
        let mut answers: Vec<Option<io::Result<()>>> = doings.iter().map(|_| None).collect();
        let mut objects: Vec<Option<RouteNetlinkMessage>> = doings.iter().map(|_| None).collect();
        while answers.iter().any(Option::is_none) {
            for message in self.receive().map_err(failed)? {
                let place = message.header.sequence_number.wrapping_sub(first) as usize;
                match message.payload {
                    NetlinkPayload::Error(e) if place < answers.len() => {
                        answers[place] = Some(if e.code.is_some() { Err(e.to_io()) } else { Ok(()) });
                    }
                    NetlinkPayload::InnerMessage(object) if place < objects.len() => {
                        objects[place] = Some(object);
                    }
                    _ => {}
                }
            }
        }
        let answers = answers.into_iter().zip(objects).zip(doings);
        Ok(answers
            .map(|((answer, object), doing)| match answer {
                Some(Err(e)) => Err(RtnlError::new(doing, e)),
                _ => Ok(object),
            })
            .collect())
    }

    /// Sends changes that do not depend on each other; the first failure is the error.
    pub(super) fn change(&mut self, requests: Vec<Request>) -> Result<(), RtnlError> {
        self.ask(requests)?.into_iter().try_for_each(|answer| answer.map(drop))
    }

    /// Sends three requests.
    pub(super) fn three(&mut self, requests: [Request; 3]) -> Result<[Answer; 3], RtnlError> {
        let missing =
            |_| RtnlError::new("talk to the kernel over netlink", io::ErrorKind::UnexpectedEof.into());
        self.ask(requests.into())?.try_into().map_err(missing)
    }

    /// Sends one request.
    pub(super) fn one(&mut self, request: Request) -> Answer {
        self.ask(vec![request])?.pop().unwrap_or(Ok(None))
    }

    /// The messages of one datagram. The kernel has answered when the system call that asks returns.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut bytes = Vec::with_capacity(ANSWER_MAX);
        self.socket.recv(&mut bytes, libc::MSG_DONTWAIT)?;
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        while rest.len() >= 16 {
            let broken = |e| io::Error::new(io::ErrorKind::InvalidData, format!("{e}"));
            let length = NetlinkBuffer::new_checked(rest).map_err(broken)?.length() as usize;
            messages.push(NetlinkMessage::deserialize(&rest[..length]).map_err(broken)?);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}
