//! Queues and filters of others on pods' links: bandwidth limits, other datapaths.

use std::{collections::BTreeSet, io};

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::datapath::{
    filter,
    netlink::{DUMP, REQUEST, exchange, find as attribute, message, text},
};

/// `RTM_GETQDISC`, `RTM_GETTFILTER`; length of `struct tcmsg`; `TCA_KIND`.
const GET_QDISC: u16 = 38;
const GET_FILTER: u16 = 46;
const TCMSG: usize = 20;
const KIND: u16 = 1;

/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and that of egress.
const SIDES: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

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
        for side in SIDES {
            let header = [[0; 4], link.to_ne_bytes(), [0; 4], side.to_ne_bytes(), [0; 4]].concat();
            let done = exchange(NETLINK_ROUTE, &message(GET_FILTER, REQUEST | DUMP, &header, &[]), |body| {
                // The upper half of `tcm_info` is the priority.
                let priority = word(body, 16).map(|info| info >> 16);
                if word(body, 8) != Some(0) && priority != Some(u32::from(filter::PRIORITY)) {
                    foreign.insert(*link);
                }
            });
            match done {
                // The link is gone, or has no such qdisc.
                Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::EINVAL)) => {}
                done => done?,
            }
        }
    }
    Ok(foreign)
}

fn word(body: &[u8], at: usize) -> Option<u32> {
    body.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}
