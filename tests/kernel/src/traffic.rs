//! Clients and servers inside pods.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use crate::{Fabric, Pod};

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Serves one TCP connection: the peer's address in a line, then an echo of `size` bytes.
fn serve(listener: &TcpListener, size: usize) -> Result<()> {
    let (mut stream, peer) = listener.accept()?;
    patient(&stream)?;
    writeln!(stream, "{}", peer.ip())?;
    let mut data = vec![0; size];
    stream.read_exact(&mut data)?;
    stream.write_all(&data)?;
    Ok(())
}

/// Takes a port. A process that another test is just starting may hold the last server's socket for a
/// moment, between fork and exec.
fn take<T>(server: SocketAddr, bind: impl Fn(SocketAddr) -> std::io::Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match bind(server) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            taken => return taken.with_context(|| format!("listen on {server}")),
        }
    }
}

/// Takes a port of a pod.
fn listen<T: Send>(
    fabric: &Fabric,
    pod: Pod,
    port: u16,
    bind: impl Fn(SocketAddr) -> std::io::Result<T> + Sync,
) -> Result<T> {
    let server = SocketAddr::new(fabric.address(pod), port);
    fabric.inside(pod, || take(server, &bind))?
}

fn patient(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(())
}

/// Reads the line that a server says first.
fn line(stream: &mut TcpStream) -> Result<String> {
    let mut seen = String::new();
    while !seen.ends_with('\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("read the address that the server saw")?;
        seen.push(byte[0].into());
    }
    Ok(seen.trim().to_owned())
}

/// Sends `size` bytes to a server and reads them back; the answer is the address that the server saw.
///
/// # Errors
/// When it fails, or other bytes come back.
pub fn echo(server: SocketAddr, size: usize) -> Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).context("connect")?;
    patient(&stream)?;
    let seen = line(&mut stream)?;
    let data: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251).to_le_bytes()[0]).collect();
    let mut back = vec![0; size];
    let mut reader = stream.try_clone()?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| stream.write_all(&data));
        let read = reader.read_exact(&mut back);
        sender.join().expect("the sender does not panic").context("send")?;
        read.context("receive")
    })?;
    ensure!(back == data, "the bytes that came back differ");
    Ok(seen.parse()?)
}

/// One TCP connection from `from` to a server in `to`; the answer is the address that the server saw.
///
/// # Errors
/// When it fails, with the fabric's counters.
pub fn tcp(fabric: &Fabric, from: Pod, to: Pod, port: u16, size: usize) -> Result<IpAddr> {
    let server = SocketAddr::new(fabric.address(to), port);
    tcp_via(fabric, from, server, to, port, size)
}

/// The same, to `target`, which stands for the server in `to`.
///
/// # Errors
/// When it fails, with the fabric's counters.
pub fn tcp_via(
    fabric: &Fabric,
    from: Pod,
    target: SocketAddr,
    to: Pod,
    port: u16,
    size: usize,
) -> Result<IpAddr> {
    let listener = listen(fabric, to, port, TcpListener::bind)?;
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&listener, size));
        let seen = fabric
            .inside(from, || echo(target, size))?
            .with_context(|| format!("{from:?} to {to:?} by {target}, {size} bytes\n{}", fabric.counters()));
        if seen.is_err() {
            // The server must not wait for ever.
            let server = SocketAddr::new(fabric.address(to), port);
            let _ = fabric.inside(to, || TcpStream::connect_timeout(&server, PATIENCE));
        }
        let served = serving.join().expect("the server does not panic");
        let seen = seen?;
        served?;
        Ok(seen)
    })
}

/// One datagram there and back.
///
/// # Errors
/// When none comes back, with the fabric's counters.
pub fn udp(fabric: &Fabric, from: Pod, to: Pod, size: usize) -> Result<IpAddr> {
    udp_via(fabric, from, SocketAddr::new(fabric.address(to), 53), to, 53, size)
}

/// The same, to `target`, which stands for the server in `to`. The answer must come from `target`.
///
/// # Errors
/// When none comes back, with the fabric's counters.
pub fn udp_via(
    fabric: &Fabric,
    from: Pod,
    target: SocketAddr,
    to: Pod,
    port: u16,
    size: usize,
) -> Result<IpAddr> {
    let socket = listen(fabric, to, port, UdpSocket::bind)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        let serving = scope.spawn(move || -> Result<IpAddr> {
            let mut data = [0; 16384];
            let (len, peer) = socket.recv_from(&mut data)?;
            socket.send_to(&data[..len], peer)?;
            Ok(peer.ip())
        });
        fabric.inside(from, || -> Result<()> {
            let client = UdpSocket::bind(SocketAddr::new(fabric.address(from), 0))?;
            // From a connected socket the kernel takes answers of the target alone.
            client.connect(target)?;
            client.set_read_timeout(Some(PATIENCE))?;
            client.send(&vec![5; size])?;
            let mut data = [0; 16384];
            let len = client.recv(&mut data).with_context(|| {
                format!("{from:?} to {to:?} by {target}: no answer to {size} bytes\n{}", fabric.counters())
            })?;
            ensure!(data[..len] == vec![5; size], "the datagram came back changed");
            Ok(())
        })??;
        serving.join().expect("the server does not panic")
    })
}

/// A server of [`echo`], for one connection, in any network namespace.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    thread: thread::JoinHandle<Result<()>>,
}

impl Server {
    /// Starts it.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(ns: &coil_netns::NetNs, address: SocketAddr, size: usize) -> Result<Self> {
        let listener = ns.run(|| take(address, TcpListener::bind))??;
        let thread = thread::spawn(move || serve(&listener, size));
        Ok(Self { address, thread })
    }

    /// Waits for its end, which comes with that of the connection.
    ///
    /// # Errors
    /// When the connection failed.
    pub fn finish(self) -> Result<()> {
        self.thread.join().expect("the server does not panic")
    }
}

/// A server that echoes lines on any number of connections, until it is dropped.
pub struct Lines {
    /// Where it listens.
    pub address: SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Lines {
    /// Starts it in a pod.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(fabric: &Fabric, pod: Pod, port: u16) -> Result<Self> {
        let address = SocketAddr::new(fabric.address(pod), port);
        let listener = listen(fabric, pod, port, TcpListener::bind)?;
        listener.set_nonblocking(true)?;
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut connections: Vec<TcpStream> = vec![];
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    let _ = stream.set_nonblocking(true);
                    connections.push(stream);
                }
                for stream in &mut connections {
                    let mut data = [0; 512];
                    if let Ok(len @ 1..) = stream.read(&mut data) {
                        let _ = stream.write_all(&data[..len]);
                    }
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection that stays open.
pub struct Talk(TcpStream);

impl Talk {
    /// Connects from a port of `pod`, which may have other connections from that port.
    ///
    /// # Errors
    /// When it cannot, within [`PATIENCE`].
    pub fn open(fabric: &Fabric, pod: Pod, port: u16, target: SocketAddr) -> Result<Self> {
        let local = SocketAddr::new(fabric.address(pod), port);
        let stream = fabric.inside(pod, || connect_from(local, target))??;
        patient(&stream)?;
        Ok(Self(stream))
    }

    /// Sends a line and waits for its echo.
    ///
    /// # Errors
    /// When none comes, or another.
    pub fn say(&mut self, word: &str) -> Result<()> {
        self.0.write_all(word.as_bytes()).context("send")?;
        let mut back = vec![0; word.len()];
        self.0.read_exact(&mut back).with_context(|| format!("wait for the echo of {word:?}"))?;
        ensure!(back == word.as_bytes(), "said {word:?}, heard {:?}", String::from_utf8_lossy(&back));
        Ok(())
    }

    /// Breaks the connection off.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn reset(self) -> Result<()> {
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.0, sockopt::Linger, &at_once).context("cannot break a connection off")
    }

    /// Ends the connection from this side.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn close(self) -> Result<()> {
        self.0.shutdown(Shutdown::Both)?;
        Ok(())
    }
}

fn connect_from(local: SocketAddr, target: SocketAddr) -> Result<TcpStream> {
    let family = if local.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    // A connection attempt that hangs fails with EINPROGRESS after this time.
    let patience = i64::try_from(PATIENCE.as_secs())?;
    setsockopt(&fd, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(patience, 0))?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(local)).with_context(|| format!("bind {local}"))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(target))
        .with_context(|| format!("connect from {local} to {target}"))?;
    Ok(TcpStream::from(fd))
}

/// Sends `count` datagrams as one burst, which the kernel cuts as late as it can (`UDP_SEGMENT`); the answer is how many
/// of them came, and from where.
///
/// # Errors
/// When one that came is not as it was sent, or the sockets fail.
pub fn burst(fabric: &Fabric, from: Pod, to: Pod, count: u8, size: u16) -> Result<(u8, Option<IpAddr>)> {
    let target = SocketAddr::new(fabric.address(to), 54);
    let server = fabric.inside(to, || take(target, UdpSocket::bind))??;
    fabric.inside(from, || -> Result<()> {
        let client = UdpSocket::bind(SocketAddr::new(fabric.address(from), 0))?;
        client.connect(target)?;
        setsockopt(&client, sockopt::UdpGsoSegment, &i32::from(size))?;
        let data: Vec<u8> = (0..count).flat_map(|n| vec![n; usize::from(size)]).collect();
        client.send(&data)?;
        // Alone, behind all of them.
        setsockopt(&client, sockopt::UdpGsoSegment, &0)?;
        client.send(b"last")?;
        Ok(())
    })??;
    server.set_read_timeout(Some(PATIENCE))?;
    let (mut came, mut sender) = (0, None);
    loop {
        let mut data = [0; 2048];
        let (len, peer) = server.recv_from(&mut data)?;
        if data[..len] == *b"last" {
            return Ok((came, sender));
        }
        ensure!(
            len == usize::from(size) && data[..len].iter().all(|byte| *byte == came),
            "datagram {came}: {len} bytes"
        );
        came += 1;
        sender = Some(peer.ip());
    }
}
