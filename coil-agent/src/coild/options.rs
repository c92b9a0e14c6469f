//! coild's flags.

use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};
use coil_api::{
    flags::{GoDuration, ListenAddr, parse_bool},
    names::{
        DEFAULT_EGRESS_PORT, DEFAULT_EXPORT_TABLE, DEFAULT_POD_RULE_PRIORITY, DEFAULT_POD_TABLE,
        DEFAULT_PROTOCOL, DEFAULT_SOCKET, ENV_NODE_NAME,
    },
};
use ipnet::IpNet;

use crate::datapath::LogLevel;

/// The node agent of Coil: addresses, pod networks, and the egress datapath
#[derive(Debug, Clone, Parser)]
#[command(name = "coild", version)]
pub struct Options {
    /// Name of this node in the API
    #[arg(long, env = ENV_NODE_NAME, default_value = "", hide_default_value = true)]
    pub node_name: String,
    /// Detach every eBPF program of Coil, remove every pin, and end; for a node that Coil leaves. Pods stay connected
    #[arg(long)]
    pub cleanup: bool,
    /// Where to serve /metrics
    #[arg(long, default_value = ":9384")]
    pub metrics_addr: ListenAddr,
    /// Where to serve /healthz and /readyz
    #[arg(long, default_value = ":9385")]
    pub health_addr: ListenAddr,
    /// Routing table of the routes to pods
    #[arg(long, default_value_t = DEFAULT_POD_TABLE)]
    pub pod_table_id: u32,
    /// Priority of the rules that look up that table
    #[arg(long, default_value_t = DEFAULT_POD_RULE_PRIORITY)]
    pub pod_rule_prio: u32,
    /// Routing table of this node's address blocks
    #[arg(long, default_value_t = DEFAULT_EXPORT_TABLE)]
    pub export_table_id: u32,
    /// Route protocol that marks coild's routes
    #[arg(long, default_value_t = DEFAULT_PROTOCOL)]
    pub protocol_id: u8,
    /// UNIX socket for the coil plugin
    #[arg(long, default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// UDP port of the encapsulation
    #[arg(long, default_value_t = DEFAULT_EGRESS_PORT)]
    pub egress_port: u16,
    /// How often blocks without pods are returned
    #[arg(long, default_value = "5m")]
    pub addressblock_gc_interval: GoDuration,
    /// What moves packets: eBPF beside the kernel, the kernel alone, or eBPF where it is possible
    #[arg(long, value_enum, default_value = "auto")]
    pub datapath: Mode,
    /// Links to other nodes and the world; found from addresses and default routes when not given
    #[arg(long, value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Further ranges that belong to the cluster, so never leave through a gateway
    #[arg(long, value_delimiter = ',')]
    pub in_cluster_cidrs: Vec<IpNet>,
    /// UDP between pods takes the fast path too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", action = ArgAction::Set, value_parser = parse_bool)]
    pub fast_udp: bool,
    /// Every packet passes the host's stack, to and from gateways too, for whoever looks at them there
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", action = ArgAction::Set, value_parser = parse_bool)]
    pub host_stack: bool,
    /// What a debug build of the eBPF programs tells of its packets in this log
    #[arg(long, value_enum)]
    pub ebpf_log: Option<LogLevel>,
    /// The bit of packets' marks that Coil's own packets carry between two of its programs
    #[arg(long, default_value = "0x2000")]
    pub mark: Mark,
    /// Give pods addresses and connect them; without it coil comes after a plugin that does so
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "true", action = ArgAction::Set, value_parser = parse_bool)]
    pub enable_ipam: bool,
    /// Serve clients and gateways of Egresses; without it their annotations and objects mean nothing
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "true", action = ArgAction::Set, value_parser = parse_bool)]
    pub enable_egress: bool,
    /// Name the links of pods as Calico does, for its network policies
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", action = ArgAction::Set, value_parser = parse_bool)]
    pub compat_calico: bool,
    /// Take over pods whose routes are in the main table, where Coil 2.0.1 had them
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", action = ArgAction::Set, value_parser = parse_bool)]
    pub register_from_main: bool,
    /// Empty the table of address blocks when coild ends because its Node was deleted
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", action = ArgAction::Set, value_parser = parse_bool)]
    pub clear_routes_on_shutdown: bool,
    /// Let only what clients begin themselves go through their Egresses, unless an Egress says otherwise;
    /// connections that came in are answered the way they came
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", action = ArgAction::Set, value_parser = parse_bool)]
    pub enable_originating_only: bool,
    /// Most ports that one client may have of this node's gateways; 0 for no limit
    #[arg(long, default_value_t = DEFAULT_QUOTA)]
    pub egress_quota: u32,
    #[command(flatten)]
    not_here: NotHere,
}

/// Ports that one client may have by default: an eighth of all translations of a node.
const DEFAULT_QUOTA: u32 = 125_000;

/// One bit of packets' marks. The default is none of kube-proxy's (0xc000), Cilium's (0x0f00) and
/// Calico's (0xffff0000).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(pub u32);

impl std::str::FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        match number {
            Ok(mark) if mark.is_power_of_two() => Ok(Self(mark)),
            _ => Err(format!("{text} is not a single bit, such as 0x2000")),
        }
    }
}

/// A choice of datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// eBPF where it is possible.
    Auto,
    /// eBPF, or no start.
    Ebpf,
    /// The kernel alone.
    Kernel,
}

/// Flags of Coil v2 for what this version does not have. Their defaults are accepted.
#[derive(Debug, Clone, Parser)]
struct NotHere {
    #[arg(long, hide = true)]
    backend: Option<String>,
}

/// The flags ask for something that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// It is not in this version.
    #[error("{0} is not supported in this version of coild: remove it")]
    Unsupported(&'static str),
    /// Nobody says which node this is.
    #[error("which node is this? Set --node-name, or {ENV_NODE_NAME} in the environment")]
    NoNode,
    /// Nothing is left to do.
    #[error("--enable-ipam=false and --enable-egress=false leave coild nothing to do: remove one of them")]
    NothingToDo,
}

impl Options {
    /// The flag for which every packet has to pass the host's stack: Calico's policies, and those of another plugin, are
    /// there.
    #[must_use]
    pub const fn by_host_stack(&self) -> Option<&'static str> {
        if self.host_stack {
            Some("--host-stack")
        } else if self.compat_calico {
            Some("--compat-calico")
        } else if self.enable_ipam {
            None
        } else {
            Some("--enable-ipam=false")
        }
    }

    /// Flags that are right and have nothing to do here, for a warning.
    #[must_use]
    pub fn without_effect(&self) -> Option<&'static str> {
        self.not_here
            .backend
            .as_ref()
            .map(|_| "--backend: nftables rules of the same meaning are used in any case")
    }

    /// Refuses what this version cannot do, so that nothing is silently ignored.
    ///
    /// # Errors
    /// Names the first such flag.
    pub fn check(&self) -> Result<(), OptionsError> {
        if self.node_name.is_empty() {
            return Err(OptionsError::NoNode);
        }
        if !self.enable_ipam && !self.enable_egress {
            return Err(OptionsError::NothingToDo);
        }
        let flags = &self.not_here;
        let asked =
            [(flags.backend.as_deref().is_some_and(|b| b != "iptables" && b != "nftables"), "--backend")];
        match asked.into_iter().find(|(asked, _)| *asked) {
            Some((_, flag)) => Err(OptionsError::Unsupported(flag)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(["coild", "--node-name=n"].into_iter().chain(flags.split_whitespace()))
    }

    #[test]
    fn a_manifest_of_coil_v2() {
        let options = parse(
            "--socket /run/coild.sock --compat-calico=false --enable-ipam --enable-egress=true \
            --addressblock-gc-interval 1h30m --backend nftables --metrics-addr :1234 --pod-table-id 116",
        )
        .unwrap();
        options.check().unwrap();
        assert_eq!(options.addressblock_gc_interval.0.as_secs(), 5400);
        assert_eq!((options.datapath, options.egress_port, options.protocol_id), (Mode::Auto, 5555, 30));
        let options =
            parse("--datapath=kernel --in-cluster-cidrs 100.64.0.0/10,fd99::/64 --devices eth0,eth1")
                .unwrap();
        assert_eq!((options.in_cluster_cidrs.len(), options.devices.len()), (2, 2));
        assert!(parse("--in-cluster-cidrs nonsense").is_err());
    }

    #[test]
    fn a_mark_is_one_bit() {
        assert_eq!(parse("").unwrap().mark, Mark(0x2000));
        assert_eq!(parse("--mark=0x80 --fast-udp").unwrap().mark, Mark(128));
        assert!(parse("--fast-udp").unwrap().fast_udp);
        assert_eq!(parse("--fast-udp").unwrap().by_host_stack(), None);
        for flag in ["--host-stack", "--compat-calico", "--enable-ipam=false"] {
            assert_eq!(parse(flag).unwrap().by_host_stack(), Some(flag));
        }
        for wrong in ["0", "0x3000", "x", "-1", "0x100000000"] {
            assert!(parse(&format!("--mark={wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_node_needs_a_name_unless_it_is_left() {
        let options = Options::try_parse_from(["coild", "--node-name="]).unwrap();
        assert_eq!(options.check().unwrap_err(), OptionsError::NoNode);
        assert!(Options::try_parse_from(["coild", "--cleanup"]).unwrap().cleanup);
    }

    #[test]
    fn behind_another_plugin() {
        let options =
            parse("--enable-ipam=false --enable-egress=true --pod-table-id=0 --protocol-id=2").unwrap();
        options.check().unwrap();
        assert!(!options.enable_ipam && options.enable_egress);
        parse("--enable-egress=false").unwrap().check().unwrap();
        let error = parse("--enable-ipam=false --enable-egress=false").unwrap().check().unwrap_err();
        assert_eq!(error, OptionsError::NothingToDo);
    }

    #[test]
    fn what_is_not_here_is_refused() {
        let error = parse("--backend=other").unwrap().check().unwrap_err().to_string();
        assert!(error.contains("--backend"), "{error}");
    }
}
