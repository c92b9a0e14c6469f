//! Queues and filters of others on pods' links: bandwidth limits, other datapaths.

use std::{collections::BTreeSet, io};

use aya::programs::TcAttachType;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::datapath::{
    filter::{self, TCMSG, word},
    netlink::{DUMP, REQUEST, exchange, find as attribute, message, text},
};

/// `RTM_GETQDISC`; `TCA_KIND`.
const GET_QDISC: u16 = 38;
const KIND: u16 = 1;

/// Queues that hold no packet back, and the one that carries filters.
const HARMLESS: [&str; 2] = ["noqueue", "clsact"];

/// Those of the links that carry something of others.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn foreign(links: &BTreeSet<u32>) -> io::Result<BTreeSet<u32>> {
    let mut foreign = BTreeSet::new();
    exchange(NETLINK_ROUTE, &message(GET_QDISC, REQUEST | DUMP, &[0; TCMSG], &[]), |body| {
        let (Some(link), Some(list)) = (word(body, 4), body.get(TCMSG..)) else { return };
        let kind = attribute(list, KIND).map(text).unwrap_or_default();
        if links.contains(&link) && !HARMLESS.contains(&kind.as_str()) {
            foreign.insert(link);
        }
    })?;
    for link in links {
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let of_others = |entry: &filter::Entry| entry.priority != u32::from(filter::PRIORITY);
            if filter::list(*link, side)?.iter().any(of_others) {
                foreign.insert(*link);
            }
        }
    }
    Ok(foreign)
}
