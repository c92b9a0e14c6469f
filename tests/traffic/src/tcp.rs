//! TCP clients that check what comes back.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::future::join_all;
use nix::libc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time,
};

use super::{
    data::{self, Checksum},
    within,
};

pub(super) async fn send(to: SocketAddr, count: usize, limit: Duration) -> Result<String> {
    let mut stream = within(limit, "connect", to, TcpStream::connect(to)).await?;
    let data = data::bytes(count, 1);
    let mut sum = Checksum::default();
    sum.add(&data);
    let began = Instant::now();
    within(limit, "send", to, stream.write_all(&data)).await?;
    within(limit, "end the stream", to, stream.shutdown()).await?;
    let mut answer = String::new();
    within(limit, "read the checksum", to, stream.read_to_string(&mut answer)).await?;
    let expected = format!("{count} {sum}");
    ensure!(answer == expected, "{to}: sent {expected:?} (bytes, checksum), received {answer:?}");
    Ok(format!("{count} bytes in {:.3} s, checksum {sum} on both sides", began.elapsed().as_secs_f64()))
}

/// [`echo`] on several connections at once. The error counts those that failed, and has the first's.
pub(super) async fn echo_on_all(
    connections: usize,
    to: SocketAddr,
    count: usize,
    (times, until): (usize, Option<&Path>),
    pause: Duration,
    limit: Duration,
) -> Result<String> {
    let each = (0..connections).map(|_| echo(to, count, (times, until), pause, limit));
    let (said, failed): (Vec<_>, Vec<_>) = join_all(each).await.into_iter().partition(Result::is_ok);
    let failures = failed.len();
    match failed.into_iter().find_map(Result::err) {
        Some(first) if connections == 1 => Err(first),
        Some(first) => Err(first.context(format!("{failures} of {connections} connections failed"))),
        None => Ok(said.into_iter().flatten().collect::<Vec<_>>().join("\n")),
    }
}

/// Has bytes echoed so many times, and on until a file is there: the last turn begins after that.
pub(super) async fn echo(
    to: SocketAddr,
    count: usize,
    (times, until): (usize, Option<&Path>),
    pause: Duration,
    limit: Duration,
) -> Result<String> {
    let stream = within(limit, "connect", to, TcpStream::connect(to)).await?;
    let local = stream.local_addr()?;
    let (mut read, mut write) = stream.into_split();
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    let (mut turn, mut is_last) = (0, false);
    while !is_last {
        turn += 1;
        is_last = turn >= times && until.is_none_or(Path::exists);
        let turn_began = Instant::now();
        let data = data::bytes(count, turn as u64);
        let mut back = vec![0; count];
        // Both at once: neither side's buffers hold it all.
        let both = async { tokio::try_join!(write.write_all(&data), read.read_exact(&mut back)).map(drop) };
        within(limit, &format!("have {count} bytes echoed, turn {turn}"), to, both).await?;
        ensure!(back == data, "{to}: what came back is not what was sent, turn {turn}");
        longest = longest.max(turn_began.elapsed());
        time::sleep(pause).await;
    }
    Ok(format!(
        "{count} bytes echoed {turn} times, all equal, in {:.3} s; slowest turn {:.3} s; from {local}",
        began.elapsed().as_secs_f64(),
        longest.as_secs_f64()
    ))
}

/// How many segments of a connection its own kernel sent again, those that open it among them (TCP_INFO).
pub(super) fn repeated(stream: &TcpStream) -> io::Result<u32> {
    // SAFETY: all zeros is a state of a connection.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    let (socket, into) = (stream.as_raw_fd(), (&raw mut info).cast());
    // SAFETY: the memory is valid for the length given, and what the kernel leaves is zero.
    let done = unsafe { libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut len) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info.tcpi_total_retrans)
}

/// The address that the server sees.
pub(super) async fn whoami(to: SocketAddr, from: Option<IpAddr>, limit: Duration) -> Result<String> {
    let connect = async {
        let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(from) = from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        socket.connect(to).await
    };
    let mut stream = within(limit, "connect", to, connect).await?;
    let mut answer = String::new();
    within(limit, "read the answer", to, stream.read_to_string(&mut answer)).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_sent_again_where_somebody_answers() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
        assert_eq!(repeated(&stream).unwrap(), 0);
    }
}
