//! Waiting for changes of links, neighbours, routes and routing rules.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Numbers of `enum rtnetlink_groups`: links, neighbours, IPv4 routes and rules, IPv6 routes and rules.
const GROUPS: [u32; 6] = [1, 3, 7, 8, 11, 19];

/// What changes in one network namespace.
pub struct NetworkChanges {
    socket: Socket,
    buffer: Vec<u8>,
}

impl NetworkChanges {
    /// Listens in this thread's network namespace.
    ///
    /// # Errors
    /// When there are no more sockets to have.
    pub fn listen() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let groups = GROUPS.iter().fold(0, |groups, number| groups | 1 << (number - 1));
        socket.bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, buffer: Vec::with_capacity(1 << 16) })
    }

    /// Waits until something has changed. Blocks this thread.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn wait(&mut self) -> io::Result<()> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, 0) {
            // More changes than the socket holds are changes, too.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(()),
            done => done.map(drop),
        }
    }
}
