//! Command-line values as Coil v2's manifests write them: Go's durations, listen addresses and
//! booleans, and the logging flags of its framework.
//!
//! With clap, a boolean that takes `--flag`, `--flag=true` and `--flag=false` is
//! `#[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
//! default_value = "false", action = clap::ArgAction::Set, value_parser = flags::parse_bool)]`.

use std::{
    ffi::OsString,
    fmt,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    str::FromStr,
    time::Duration,
};

/// A flag's value that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Not a duration.
    #[error("{0:?} is not a duration such as 30s, 5m or 1h30m")]
    Duration(String),
    /// Not a listen address.
    #[error("{0:?} is not an address to listen on such as :9384, 127.0.0.1:9384 or [::1]:9384")]
    Listen(String),
    /// Not a boolean.
    #[error("{0:?} is neither true nor false")]
    Bool(String),
}

/// A duration in Go's notation: `300ms`, `1.5h`, `1h30m`, `0`. Never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

const UNITS: [(&str, f64); 7] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

impl FromStr for GoDuration {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        let bad = || FlagError::Duration(text.to_owned());
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if rest.is_empty() {
            return Err(bad());
        }
        let mut seconds = 0.0;
        while !rest.is_empty() {
            let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let (value, tail) = rest.split_at(number);
            let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit);
            let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
            seconds += value.parse::<f64>().map_err(|_| bad())? * scale;
            rest = tail;
        }
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for GoDuration {
    /// As the flags' help shows it; parses back to the same value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        for (value, unit) in [(h, "h"), (m, "m"), (s, "s")] {
            if value > 0 {
                write!(f, "{value}{unit}")?;
            }
        }
        match self.0.subsec_nanos() {
            0 => Ok(()),
            n if n % 1_000_000 == 0 => write!(f, "{}ms", n / 1_000_000),
            n => write!(f, "{n}ns"),
        }
    }
}

/// An address to listen on. `:9384` is every address of the machine, IPv6 and IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddr {
    /// None for every address.
    pub host: Option<IpAddr>,
    /// TCP port; 0 lets the kernel choose.
    pub port: u16,
}

impl FromStr for ListenAddr {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        let bad = || FlagError::Listen(text.to_owned());
        if let Some(port) = text.strip_prefix(':') {
            return Ok(Self { host: None, port: port.parse().map_err(|_| bad())? });
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| bad())?;
            return Ok(Self { host: Some(Ipv4Addr::LOCALHOST.into()), port });
        }
        let address: SocketAddr = text.parse().map_err(|_| bad())?;
        Ok(Self { host: Some(address.ip()), port: address.port() })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Some(host) => SocketAddr::new(host, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

impl ListenAddr {
    /// Opens a listening socket, ready for an asynchronous runtime. Without a host it takes both
    /// families, or IPv4 alone on a machine without IPv6.
    ///
    /// # Errors
    /// What the kernel says; the caller names the flag.
    pub fn bind(&self) -> std::io::Result<TcpListener> {
        let open = |host: IpAddr| TcpListener::bind(SocketAddr::new(host, self.port));
        let listener = match self.host {
            Some(host) => open(host)?,
            None => match open(Ipv6Addr::UNSPECIFIED.into()) {
                Err(e) if matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::AddrNotAvailable) => {
                    open(Ipv4Addr::UNSPECIFIED.into())?
                }
                // EAFNOSUPPORT has no kind of its own.
                Err(e) if e.raw_os_error() == Some(97) => open(Ipv4Addr::UNSPECIFIED.into())?,
                other => other?,
            },
        };
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

/// A boolean as Go's flag packages read it.
///
/// # Errors
/// When it is none of their spellings.
pub fn parse_bool(text: &str) -> Result<bool, FlagError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(FlagError::Bool(text.to_owned())),
    }
}

/// Takes the `--zap-*` flags of Coil v2's manifests out of a command line. Returns the rest, and
/// what was taken out, for a warning.
pub fn strip_zap(args: impl IntoIterator<Item = OsString>) -> (Vec<OsString>, Vec<String>) {
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str().filter(|a| a.starts_with("--zap-")) else {
            let end = arg == "--";
            kept.push(arg);
            if end {
                break;
            }
            continue;
        };
        dropped.push(text.to_owned());
        // All but --zap-devel have a value, which may be the next word.
        if !text.contains('=') && text != "--zap-devel" {
            dropped.extend(args.next().map(|v| v.to_string_lossy().into_owned()));
        }
    }
    kept.extend(args);
    (kept, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("0", 0),
            ("1m0.5s", 60_500),
            ("+2s", 2000),
        ] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!(parsed.0, Duration::from_millis(millis), "{text}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed), "{text}");
        }
        for text in ["", "5", "m", "-5m", "5 m", "5x", "1..5s", "1h-3m", "+"] {
            assert!(text.parse::<GoDuration>().unwrap_err().to_string().contains(text), "{text}");
        }
        assert_eq!(GoDuration(Duration::from_secs(3600)).to_string(), "1h");
    }

    #[test]
    fn listen_addresses() {
        for text in [":9386", "127.0.0.1:80", "[::1]:80"] {
            assert_eq!(text.parse::<ListenAddr>().unwrap().to_string(), text);
        }
        assert_eq!("localhost:1".parse::<ListenAddr>().unwrap().to_string(), "127.0.0.1:1");
        for text in ["9386", ":", ":70000", "::1:80", "host:80", ""] {
            assert!(text.parse::<ListenAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn listening_without_a_host_takes_ipv4_clients() {
        let listener = ListenAddr { host: None, port: 0 }.bind().unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }

    #[test]
    fn booleans() {
        assert_eq!(parse_bool("true"), Ok(true));
        assert_eq!(parse_bool("F"), Ok(false));
        assert!(parse_bool("yes").unwrap_err().to_string().contains("yes"));
    }

    #[test]
    fn zap_flags_go_with_their_values() {
        let args = |s: &str| s.split(' ').map(OsString::from).collect::<Vec<_>>();
        let (kept, dropped) = strip_zap(args(
            "coild --zap-log-level debug --zap-devel --socket /x --zap-stacktrace-level=panic -- --zap-devel",
        ));
        assert_eq!(kept, args("coild --socket /x -- --zap-devel"));
        assert_eq!(dropped, ["--zap-log-level", "debug", "--zap-devel", "--zap-stacktrace-level=panic"]);
    }
}
