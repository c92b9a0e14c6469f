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

/// All of them, in order.
pub(crate) const ALL: &[Scenario] = &[
    Scenario { name: "ready", what: "Coil's pods are ready", run: |c| Box::pin(control::ready(c)) },
    Scenario {
        name: "traffic",
        what: "pods reach each other on a node and between nodes",
        run: |c| Box::pin(network::traffic(c)),
    },
    Scenario { name: "metrics", what: "every program has metrics", run: |c| Box::pin(control::metrics(c)) },
    Scenario { name: "leases", what: "each controller has a leader", run: |c| Box::pin(control::leases(c)) },
    Scenario {
        name: "blocks",
        what: "pods take blocks, table 119 has them, coild's restart keeps them, and they come back",
        run: |c| Box::pin(ipam::blocks(c)),
    },
    Scenario {
        name: "pools",
        what: "pools come and go, and wrong ones are refused",
        run: |c| Box::pin(ipam::pools(c)),
    },
    Scenario {
        name: "orphan",
        what: "a block without a node is collected",
        run: |c| Box::pin(ipam::orphan(c)),
    },
    Scenario {
        name: "egress",
        what: "clients leave through gateways, from a fixed port",
        run: |c| Box::pin(egress::fixed_port(c)),
    },
    Scenario {
        name: "egress-auto-port",
        what: "the same from ports of flows",
        run: |c| Box::pin(egress::auto_port(c)),
    },
    Scenario {
        name: "originating-only",
        what: "a client is reached from outside",
        run: |c| Box::pin(egress::originating_only(c)),
    },
    Scenario {
        name: "certificates",
        what: "lost webhook certificates are made anew",
        run: |c| Box::pin(control::certificates(c)),
    },
];
