//! Queues, filters and programs of others on links: bandwidth limits, other datapaths, watchers.

use std::{collections::BTreeSet, io};

use aya::programs::{SchedClassifier, TcAttachType};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::datapath::{
    attach::Program,
    filter::{self, TCMSG, word},
    netlink::{DUMP, REQUEST, consistent, exchange, find as attribute, message, text},
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
    let mut foreign = consistent(|| queues(links))?;
    for link in links {
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            if consistent(|| filters(*link, side))? || !programs(*link, side).is_empty() {
                foreign.insert(*link);
            }
        }
    }
    Ok(foreign)
}

/// Says which of the uplinks has a program or a filter of others on the way in: what is handed to a pod at once would pass it
/// by.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn on_uplinks(links: &BTreeSet<u32>) -> io::Result<Option<String>> {
    for link in links {
        let name = nix::net::if_::if_indextoname(*link).map(|name| name.to_string_lossy().into_owned());
        let Ok(name) = name else { continue };
        if let Some(program) = programs(*link, TcAttachType::Ingress).first() {
            return Ok(Some(format!("the uplink {name} has a TCX program of others, {program}")));
        }
        if consistent(|| filters(*link, TcAttachType::Ingress))? {
            return Ok(Some(format!("the uplink {name} has a TC filter of others")));
        }
    }
    Ok(None)
}

/// Links with a queue that holds packets back.
fn queues(links: &BTreeSet<u32>) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    exchange(NETLINK_ROUTE, &message(GET_QDISC, REQUEST | DUMP, &[0; TCMSG], &[]), |body| {
        let (Some(link), Some(list)) = (word(body, 4), body.get(TCMSG..)) else { return };
        let kind = attribute(list, KIND).map(text).unwrap_or_default();
        if links.contains(&link) && !HARMLESS.contains(&kind.as_str()) {
            found.insert(link);
        }
    })?;
    Ok(found)
}

/// Whether somebody else has a filter there.
fn filters(link: u32, side: TcAttachType) -> io::Result<bool> {
    Ok(filter::list(link, side)?.iter().any(|entry| entry.priority != u32::from(filter::PRIORITY)))
}

/// The names of others' TCX programs there; none where the kernel has no TCX, or the link is gone.
pub(in crate::datapath) fn programs(link: u32, side: TcAttachType) -> Vec<String> {
    let Ok(name) = nix::net::if_::if_indextoname(link) else { return vec![] };
    let Ok((_, programs)) = SchedClassifier::query_tcx(name.to_string_lossy().as_ref(), side) else {
        return vec![];
    };
    let names = programs.iter().map(|program| program.name_as_str().unwrap_or("without a name").to_owned());
    names.filter(|name| Program::ALL.iter().all(|ours| ours.name() != name)).collect()
}
