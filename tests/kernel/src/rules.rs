//! Rules as kube-proxy and the portmap plugin write them, in each of the three ways that a node may have them.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// What the rules are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// `nft`, as kube-proxy's nftables mode does.
    Nft,
    /// `iptables` over nftables.
    IptablesNft,
    /// `iptables` of old.
    IptablesLegacy,
}

impl Writer {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Nft, Self::IptablesNft, Self::IptablesLegacy];
}

/// Where a service is reached.
#[derive(Clone, Copy, Debug)]
pub enum Front {
    /// A cluster IP.
    Cluster(IpAddr),
    /// A port of any node's address, with the client's address replaced by the node's.
    NodePort,
    /// The same with the client's address kept: `externalTrafficPolicy: Local`, and the portmap plugin.
    NodePortLocal,
}

/// One port of a service, with one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Where.
    pub front: Front,
    /// The port there.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Where the pod listens.
    pub endpoint: SocketAddr,
}

/// Writes rules for the services in this network namespace, with the drop of what connection tracking finds
/// invalid.
///
/// # Errors
/// When the tool is missing or refuses them.
pub fn install(writer: Writer, v4: bool, services: &[Service]) -> Result<()> {
    match writer {
        Writer::Nft => feed("nft", &["-f", "-"], &nft(v4, services)),
        Writer::IptablesNft => feed(
            if v4 { "iptables-nft-restore" } else { "ip6tables-nft-restore" },
            &[],
            &iptables(v4, services),
        ),
        Writer::IptablesLegacy => {
            let tool = if v4 { "iptables-legacy-restore" } else { "ip6tables-legacy-restore" };
            feed(tool, &[], &iptables(v4, services))
        }
    }
}

/// Packets that were dropped as invalid in this network namespace.
///
/// # Errors
/// When the tool fails, or shows no such rule.
pub fn invalid(writer: Writer, v4: bool) -> Result<u64> {
    let family = if v4 { "ip" } else { "ip6" };
    let (tool, arguments): (_, &[&str]) = match writer {
        Writer::Nft => ("nft", &["list", "chain", family, "kube-proxy", "filter-forward"]),
        Writer::IptablesNft => {
            (if v4 { "iptables-nft" } else { "ip6tables-nft" }, &["-nvxL", "KUBE-FORWARD"])
        }
        Writer::IptablesLegacy => {
            (if v4 { "iptables-legacy" } else { "ip6tables-legacy" }, &["-nvxL", "KUBE-FORWARD"])
        }
    };
    let output = Command::new(tool).args(arguments).output().with_context(|| format!("cannot run {tool}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.to_lowercase().contains("invalid"));
    let line = line.with_context(|| format!("no rule about INVALID:\n{text}"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let count = match words.iter().position(|word| *word == "packets") {
        Some(at) => words.get(at + 1),
        None => words.first(),
    };
    count.and_then(|count| count.parse().ok()).with_context(|| format!("no counter in {line:?}"))
}

fn feed(tool: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {tool} (packages nftables and iptables)"))?;
    child.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{tool}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn nft(v4: bool, services: &[Service]) -> String {
    let family = if v4 { "ip" } else { "ip6" };
    let mut dispatch = String::new();
    let mut chains = String::new();
    for (number, Service { front, port, protocol, endpoint }) in services.iter().enumerate() {
        let to = match front {
            Front::Cluster(address) => format!("{family} daddr {address}"),
            Front::NodePort | Front::NodePortLocal => "fib daddr type local".to_owned(),
        };
        let masquerade = match front {
            Front::NodePort => "meta mark set mark or 0x4000".to_owned(),
            _ => format!("{family} saddr {} meta mark set mark or 0x4000", endpoint.ip()),
        };
        let _ = writeln!(dispatch, "    {to} meta l4proto {protocol} th dport {port} goto endpoint-{number}");
        let _ = writeln!(
            chains,
            "  chain endpoint-{number} {{\n    {masquerade}\n    meta l4proto {protocol} dnat to {endpoint}\n  }}"
        );
    }
    format!(
        "table {family} kube-proxy {{
{chains}  chain services {{
{dispatch}  }}
  chain nat-prerouting {{
    type nat hook prerouting priority -100
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority 100
    mark and 0x4000 == 0 return
    meta mark set mark xor 0x4000
    masquerade fully-random
  }}
  chain filter-forward {{
    type filter hook forward priority -110
    ct state invalid counter drop
  }}
}}
"
    )
}

fn iptables(v4: bool, services: &[Service]) -> String {
    let whole = if v4 { 32 } else { 128 };
    let mut chains = String::new();
    let mut rules = String::new();
    for (number, Service { front, port, protocol, endpoint }) in services.iter().enumerate() {
        let _ = writeln!(chains, ":KUBE-SEP-{number} - [0:0]");
        let from = match front {
            Front::Cluster(address) => format!("KUBE-SERVICES -d {address}/{whole}"),
            Front::NodePort | Front::NodePortLocal => "KUBE-NODEPORTS".to_owned(),
        };
        let masquerade = match front {
            Front::NodePort => String::new(),
            _ => format!("-s {}/{whole} ", endpoint.ip()),
        };
        let _ = writeln!(rules, "-A {from} -p {protocol} -m {protocol} --dport {port} -j KUBE-SEP-{number}");
        let _ = writeln!(rules, "-A KUBE-SEP-{number} {masquerade}-j KUBE-MARK-MASQ");
        let _ = writeln!(
            rules,
            "-A KUBE-SEP-{number} -p {protocol} -m {protocol} -j DNAT --to-destination {endpoint}"
        );
    }
    format!(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
{chains}-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
{rules}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"
    )
}
