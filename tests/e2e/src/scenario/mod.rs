//! The scenarios: what Coil v2's own end-to-end tests ask, and a little more.

mod control;
mod egress;
mod ipam;
mod network;

use std::pin::Pin;

use anyhow::Result;

use crate::cluster::Cluster;

/// What became of a scenario that did not fail.
pub(crate) enum Outcome {
    Passed,
    /// The cluster lacks what it is about.
    NotHere(&'static str),
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<Outcome>> + 'a>>;

/// One scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: for<'a> fn(&'a Cluster) -> Running<'a>,
}

/// Writes [`ALL`]: a name, what is seen, and the function that looks.
macro_rules! scenarios {
    ($($name:literal, $what:literal, $run:path;)*) => {
        /// All of them, in order.
        pub(crate) const ALL: &[Scenario] = &[$(
            Scenario { name: $name, what: $what, run: |cluster| Box::pin($run(cluster)) },
        )*];
    };
}

scenarios! {
    "ready", "Coil's pods are ready", control::ready;
    "traffic", "pods reach each other on a node and between nodes", network::traffic;
    "metrics", "every program has metrics", control::metrics;
    "datapath", "every node forwards as --datapath says", control::datapath;
    "leases", "each controller has a leader", control::leases;
    "blocks", "pods take blocks, table 119 has them, coild's restart keeps them, and they come back", ipam::blocks;
    "pools", "pools come and go, and wrong ones are refused", ipam::pools;
    "orphan", "a block without a node is collected", ipam::orphan;
    "egress", "clients leave through gateways, from a fixed port", egress::fixed_port;
    "egress-auto-port", "the same from ports of flows", egress::auto_port;
    "originating-only", "a client is reached from outside", egress::originating_only;
    "certificates", "lost webhook certificates are made anew", control::certificates;
}
