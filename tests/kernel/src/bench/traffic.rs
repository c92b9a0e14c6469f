//! What is sent, and how much of it arrives. Sender and receiver share one core, with a priority that lets nobody
//! else have it for the moment of a measurement.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    ops::Range,
    os::fd::AsRawFd as _,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::place::End;

/// Bytes of a small datagram.
const SMALL: usize = 18;
/// Datagrams of one system call.
const BATCH: u8 = 32;
const PORT: u16 = 7000;
/// How long anything may take that is over in a moment when all is well.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the machine has nothing else to do.
static ALONE: AtomicBool = AtomicBool::new(false);

/// Says that the machine has nothing else to do. Before 6.5 the kernel may leave what arrives to a thread of its own, which would
/// wait for whoever has a core for itself.
pub(crate) fn nobody_else_is_here() {
    ALONE.store(true, Ordering::Relaxed);
}

/// Gives this thread the core of the measurement for itself and those like it.
fn have_the_core() -> Result<()> {
    let mut cpus = CpuSet::new();
    // The last one: the first has the machine's interrupts.
    cpus.set(thread::available_parallelism()?.get() - 1)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot choose a core")?;
    if ALONE.load(Ordering::Relaxed) {
        return Ok(());
    }
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: the parameter is valid for the call.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    ensure!(done == 0, "cannot have a core alone: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Small datagrams a second that arrive.
pub(crate) fn udp(from: &End, to: &End, time: Duration) -> Result<f64> {
    let target = SocketAddr::new(to.address, PORT);
    // Nobody reads: what a full socket turns away has arrived, and costs the same everywhere.
    let socket = to.space.run(|| UdpSocket::bind(target))??;
    let before = to.space.run(arrived)??;
    let taken = from.space.run(|| -> Result<Duration> {
        have_the_core()?;
        let socket = UdpSocket::bind(SocketAddr::new(from.address, 0))?;
        socket.connect(target)?;
        let (start, mut buffer) = (Instant::now(), Batch::new());
        while start.elapsed() < time {
            buffer.send(&socket)?;
        }
        Ok(start.elapsed())
    })??;
    let after = to.space.run(arrived)??;
    drop(socket);
    Ok((after - before) as f64 / taken.as_secs_f64())
}

/// Datagrams of one system call.
struct Batch {
    payload: [u8; SMALL],
}

impl Batch {
    const fn new() -> Self {
        Self { payload: [7; SMALL] }
    }

    fn send(&mut self, socket: &UdpSocket) -> Result<()> {
        let mut part = libc::iovec { iov_base: self.payload.as_mut_ptr().cast(), iov_len: SMALL };
        // SAFETY: integers and pointers; zero is a value of each.
        let mut messages: [libc::mmsghdr; BATCH as usize] = unsafe { std::mem::zeroed() };
        for message in &mut messages {
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: messages, their one part and its bytes live longer than the call.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH.into(), 0) };
        match std::io::Error::last_os_error() {
            _ if sent > 0 => Ok(()),
            full if full.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            error => Err(error).context("cannot send datagrams"),
        }
    }
}

/// Flows that begin with a datagram each: sockets of a client, and what they send to.
pub(crate) struct Flows {
    sockets: Vec<UdpSocket>,
    to: IpAddr,
}

/// Ports of the remote that each socket sends to.
const PORTS_OF_SOCKET: u32 = 50_000;
const FIRST_SOCKET: u16 = 20_000;
const FIRST_REMOTE: u16 = 10_000;
const SOCKETS: u16 = 20;

impl Flows {
    pub(crate) fn new(from: &End, to: IpAddr) -> Result<Self> {
        let bind = |n| UdpSocket::bind(SocketAddr::new(from.address, FIRST_SOCKET + n));
        let sockets = from.space.run(|| (0..SOCKETS).map(bind).collect::<Result<_, _>>())??;
        Ok(Self { sockets, to })
    }

    /// Begins the flows with these numbers, of a million; the answer is how long that took.
    pub(crate) fn begin(&mut self, from: &End, numbers: Range<u32>) -> Result<Duration> {
        let (sockets, to) = (&self.sockets, self.to);
        from.space.run(|| -> Result<Duration> {
            have_the_core()?;
            let start = Instant::now();
            for number in numbers {
                let socket = sockets.get((number / PORTS_OF_SOCKET) as usize).context("no more sockets")?;
                let port = FIRST_REMOTE + u16::try_from(number % PORTS_OF_SOCKET)?;
                match socket.send_to(&[7; SMALL], SocketAddr::new(to, port)) {
                    Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error.into()),
                    _ => {}
                }
            }
            Ok(start.elapsed())
        })?
    }
}

/// Datagrams that have come to a socket in this network namespace, read or not.
fn arrived() -> Result<u64> {
    let v4 = fs::read_to_string("/proc/thread-self/net/snmp").context("cannot read the counters of UDP")?;
    let v6 = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
    let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { bail!("no counters of UDP") };
    let pairs = names.split_whitespace().zip(values.split_whitespace());
    let v6 = v6.lines().filter_map(|line| line.strip_prefix("Udp6")?.split_once(char::is_whitespace));
    let wanted = ["InDatagrams", "RcvbufErrors"];
    let count = |(name, value): (&str, &str)| {
        if wanted.contains(&name) { value.trim().parse().unwrap_or(0) } else { 0 }
    };
    Ok(pairs.map(count).sum::<u64>() + v6.map(count).sum::<u64>())
}

/// A TCP server on the measured core, until the client has done its work.
fn with_server<T: Send>(
    from: &End,
    to: &End,
    serve: impl Fn(TcpStream) + Send + Sync,
    client: impl FnOnce(SocketAddr) -> Result<T> + Send,
) -> Result<T> {
    let target = SocketAddr::new(to.address, PORT);
    let listener = to.space.run(|| TcpListener::bind(target))??;
    listener.set_nonblocking(false)?;
    let done = AtomicBool::new(false);
    let failure = Mutex::new(Ok(()));
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = have_the_core() {
                *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Err(error);
            }
            for stream in listener.incoming().flatten() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                serve(stream);
            }
        });
        let result = from.space.run(|| {
            have_the_core()?;
            client(target)
        });
        done.store(true, Ordering::Relaxed);
        // Its last connection tells the server.
        let woken = from.space.run(|| TcpStream::connect_timeout(&target, PATIENCE).map(drop));
        let result = result??;
        woken?.context("the server does not answer any more")?;
        Ok(result)
    })
    .and_then(|result| {
        failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)?;
        Ok(result)
    })
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Gigabits a second of one TCP stream.
pub(crate) fn stream(from: &End, to: &End, time: Duration) -> Result<f64> {
    let swallow = |mut stream: TcpStream| {
        let mut data = vec![0; 1 << 17];
        while stream.read(&mut data).is_ok_and(|len| len > 0) {}
    };
    with_server(from, to, swallow, |target| {
        let mut stream = connect(target)?;
        let data = vec![3; 1 << 17];
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < time {
            sent += stream.write(&data)?;
        }
        // All of it has arrived when the other side has closed, too.
        stream.shutdown(std::net::Shutdown::Write)?;
        let _ = stream.read(&mut [0])?;
        Ok(sent as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64())
    })
}

/// The same with a sender that segments nothing: each packet passes alone.
pub(crate) fn stream_of_packets(from: &End, to: &End, time: Duration) -> Result<f64> {
    let segments = |count: u32| -> Result<()> {
        let output = from.space.run(|| {
            std::process::Command::new("ip")
                .args(["link", "set", "dev", "eth0", "gso_max_segs", &count.to_string()])
                .output()
        })??;
        ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    };
    segments(1)?;
    let measured = stream(from, to, time);
    segments(65535)?;
    measured
}

/// Requests of one byte a second on one connection, each answered by one byte.
pub(crate) fn requests(from: &End, to: &End, time: Duration) -> Result<f64> {
    with_server(from, to, echo, |target| {
        let mut stream = connect(target)?;
        let (start, mut turns) = (Instant::now(), 0u32);
        while start.elapsed() < time {
            turn(&mut stream)?;
            turns += 1;
        }
        Ok(f64::from(turns) / start.elapsed().as_secs_f64())
    })
}

/// Connections a second with one request each.
pub(crate) fn connections(from: &End, to: &End, time: Duration) -> Result<f64> {
    with_server(from, to, echo, |target| {
        let (start, mut turns) = (Instant::now(), 0u32);
        while start.elapsed() < time {
            turn(&mut connect(target)?)?;
            turns += 1;
        }
        Ok(f64::from(turns) / start.elapsed().as_secs_f64())
    })
}

fn turn(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0]).context("no answer")?;
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1) if stream.write_all(&byte).is_ok() => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}
