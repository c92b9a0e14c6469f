//! The command line.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Parser;
use ipnet::IpNet;

/// Every scenario, as `--require` calls it.
const ALL: &str = "all";
/// The scenario of `--datapath`.
pub(crate) const DATAPATH: &str = "datapath";

/// End-to-end tests of a running cluster with Coil installed
///
/// Needed: two nodes or more, and the image of the traffic tool on them (`cargo xtask image --e2e`).
#[derive(Debug, Parser)]
#[command(name = "cargo xtask e2e", bin_name = "cargo xtask e2e")]
pub(crate) struct Options {
    /// How to reach the cluster [default: KUBECONFIG, as kubectl does]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Only this scenario; repeatable
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// These must be possible here: without what they are about they fail; `all` for all of them
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) require: Vec<String>,
    /// What every node's coild must forward by
    #[arg(long, value_name = "MODE", value_parser = ["ebpf", "kernel"])]
    pub(crate) datapath: Option<String>,
    /// Write the results for machines, too
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    /// Print the names of the scenarios
    #[arg(long)]
    pub(crate) list: bool,
    /// Image of the traffic tool
    #[arg(long, default_value = "coil-e2e:dev")]
    pub(crate) image: String,
    /// Addresses that no pool has: they become a pool of the tests. Those of families that the nodes have are used. If
    /// kube-proxy has a cluster CIDR, it must hold them
    #[arg(long, value_delimiter = ',', default_values = ["10.101.0.0/24", "fd02:0:0:1::/120"])]
    pub(crate) pool: Vec<IpNet>,
    /// Addresses that stand for the world: a node gets them while egress is tested
    #[arg(long, value_delimiter = ',', default_values = ["9.9.9.9", "2606:4700:4700::9999"])]
    pub(crate) world: Vec<IpAddr>,
    /// Seconds that something may take that takes a few
    #[arg(long, default_value_t = 120)]
    limit: u64,
}

impl Options {
    /// Whether a scenario is to be run.
    pub(crate) fn chooses(&self, name: &str) -> bool {
        self.only.is_empty()
            || self.only.iter().any(|only| only == name)
            || (name == DATAPATH && self.datapath.is_some())
    }

    /// Whether a scenario fails where it is not possible.
    pub(crate) fn requires(&self, name: &str) -> bool {
        self.require.iter().any(|required| required == name || required == ALL)
            || (name == DATAPATH && self.datapath.is_some())
    }

    /// A name that is given and means no scenario.
    pub(crate) fn unknown(&self, mut known: impl FnMut(&str) -> bool) -> Option<&str> {
        let all = self.require.iter().filter(|name| *name != ALL).chain(&self.only);
        all.map(String::as_str).find(|name| !known(name))
    }

    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        Options::try_parse_from([&["e2e"], words].concat()).unwrap()
    }

    #[test]
    fn what_is_required_and_what_is_chosen() {
        let given = options(&["--require", "egress,leases", "--only", "ready"]);
        assert!(given.requires("egress") && given.requires("leases") && !given.requires("ready"));
        assert!(given.chooses("ready") && !given.chooses("egress") && !given.chooses(DATAPATH));
        assert_eq!(given.unknown(|name| ["egress", "ready"].contains(&name)), Some("leases"));
        let all = options(&["--require", "all", "--datapath", "ebpf", "--only", "ready"]);
        assert!(all.requires("egress") && all.chooses(DATAPATH) && all.requires(DATAPATH));
        assert_eq!(all.unknown(|name| name == "ready"), None);
        assert!(Options::try_parse_from(["e2e", "--datapath", "magic"]).is_err());
    }
}
