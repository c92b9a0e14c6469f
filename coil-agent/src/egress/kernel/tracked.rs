//! What connection tracking has in a gateway pod, in the calling thread's network namespace.

use crate::datapath::conntrack;

/// Above so many entries all pass for flows in use: to look at each, twice a second, would cost more than it tells.
const MOST_LOOKED_AT: u64 = 10_000;

/// Entries of connection tracking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tracked {
    /// All of them: clients' flows, the FOU that these came in, and what the pod itself has open.
    pub entries: u64,
    /// Most that there can be; 0 when that is not known.
    pub limit: u64,
    /// Those that are masqueraded and not over.
    pub in_use: u64,
}

/// Counts them. Where the kernel does not list them, all pass for flows in use.
#[must_use]
pub fn tracked() -> Tracked {
    let number = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse().ok()
    };
    let entries = number("nf_conntrack_count").unwrap_or_default();
    let in_use = match entries {
        0 => 0,
        1..=MOST_LOOKED_AT => conntrack::masqueraded().unwrap_or(entries),
        _ => entries,
    };
    Tracked { entries, limit: number("nf_conntrack_max").unwrap_or_default(), in_use }
}
