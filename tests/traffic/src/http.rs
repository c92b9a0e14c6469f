//! An HTTP client for one GET, by address.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{tcp, within};

pub(super) async fn get(url: &str, contains: &[String], unrepeated: bool, limit: Duration) -> Result<String> {
    let (to, path) = parse(url)?;
    let mut stream = within(limit, "connect", to, TcpStream::connect(to)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    within(limit, "send the request", to, stream.write_all(request.as_bytes())).await?;
    let mut answer = Vec::new();
    within(limit, "read the answer", to, stream.read_to_end(&mut answer)).await?;
    if unrepeated {
        let repeated = tcp::repeated(&stream).with_context(|| format!("{to}: the kernel does not say"))?;
        ensure!(repeated == 0, "{to}: {repeated} segments had to be sent again");
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("{to}: the answer is not HTTP"))?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "{url}: {status}\n{body}");
    for word in contains {
        ensure!(body.contains(word), "{url}: there is no {word:?}");
    }
    Ok(if contains.is_empty() { body.to_owned() } else { format!("{contains:?} are there") })
}

fn parse(url: &str) -> Result<(SocketAddr, String)> {
    let describe = || format!("{url:?}: write http://ADDRESS[:PORT]/PATH");
    let rest = url.strip_prefix("http://").with_context(describe)?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let to =
        host.parse().or_else(|_| bare.parse().map(|ip| SocketAddr::new(ip, 80))).with_context(describe)?;
    Ok((to, format!("/{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, to, path) in [
            ("http://198.51.100.9", "198.51.100.9:80", "/"),
            ("http://198.51.100.9:8080/a/b", "198.51.100.9:8080", "/a/b"),
            ("http://[2001:db8:9::9]/x", "[2001:db8:9::9]:80", "/x"),
            ("http://[2001:db8:9::9]:81/", "[2001:db8:9::9]:81", "/"),
        ] {
            assert_eq!(parse(url).unwrap(), (to.parse().unwrap(), path.to_owned()));
        }
        assert!(parse("https://198.51.100.9").unwrap_err().to_string().contains("write http://"));
        assert!(parse("http://name/").is_err());
    }
}
