//! Programs on pods' links: a filter of the link's clsact qdisc.
//!
//! A filter costs a tenth of a millisecond. A TCX link, which uplinks have, makes the kernel wait for
//! all CPUs (`tcx_entry_sync` in kernel/bpf/tcx.c: 8 to 16 ms at 250 Hz) at its making and at its end,
//! with the lock of all network configuration held: every pod that starts or ends would wait for every
//! other. A filter too works on while no agent runs, and gets a new program without losing a packet.

use std::io;

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use super::netlink::{ACK, DUMP, REQUEST, exchange, find, message};

/// Before a filter whose maker asked for no place (49152), with room for others in front.
pub(super) const PRIORITY: u16 = 50;
/// By it an agent finds the filter of an earlier one.
const HANDLE: TcHandle = TcHandle::new(0, 0xc011);

/// `RTM_DELQDISC`, `RTM_GETTFILTER`; length of `struct tcmsg`.
const DELETE_QDISC: u16 = 37;
const GET_FILTER: u16 = 46;
pub(super) const TCMSG: usize = 20;
/// `TCA_OPTIONS`, and `TCA_BPF_ID` inside.
const OPTIONS: u16 = 2;
const PROGRAM_ID: u16 = 11;
/// `TC_H_CLSACT`, and as a parent its two sides.
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// A filter on a link, whoever made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) priority: u32,
    pub(super) handle: u32,
    /// The id of its program; none when it is another kind of filter.
    pub(super) program: Option<u32>,
}

/// Every link of this network namespace: its index and its name.
pub(super) fn links() -> io::Result<Vec<(u32, String)>> {
    let links = nix::net::if_::if_nameindex()?;
    Ok(links.iter().map(|link| (link.index(), link.name().to_string_lossy().into_owned())).collect())
}

/// The filters on one side of a link; none when the link is gone.
pub(super) fn list(link: u32, side: TcAttachType) -> io::Result<Vec<Entry>> {
    let parent = if matches!(side, TcAttachType::Egress) { EGRESS } else { INGRESS };
    let mut entries = vec![];
    let header = tcmsg(link, 0, parent);
    let done = exchange(NETLINK_ROUTE, &message(GET_FILTER, REQUEST | DUMP, &header, &[]), |body| {
        let (Some(handle), Some(info)) = (word(body, 8), word(body, 16)) else { return };
        // Each priority has an entry of its own, without a handle.
        if handle == 0 {
            return;
        }
        let options = body.get(TCMSG..).and_then(|list| find(list, OPTIONS)).unwrap_or_default();
        let program = find(options, PROGRAM_ID).and_then(|id| word(id, 0));
        // The upper half of `tcm_info` is the priority.
        entries.push(Entry { priority: info >> 16, handle, program });
    });
    match done {
        // The link is gone, or has no such qdisc.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(vec![])
        }
        done => done.map(|()| entries),
    }
}

/// The id of the program in our filter on one side of a link.
pub(super) fn program(link: u32, side: TcAttachType) -> io::Result<Option<u32>> {
    let ours = |entry: &Entry| entry.priority == u32::from(PRIORITY) && entry.handle == u32::from(HANDLE);
    Ok(list(link, side)?.into_iter().find(ours).and_then(|entry| entry.program))
}

/// Removes the link's clsact qdisc unless somebody has a filter there. True when it was removed.
pub(super) fn leave(link: u32) -> io::Result<bool> {
    if !list(link, TcAttachType::Ingress)?.is_empty() || !list(link, TcAttachType::Egress)?.is_empty() {
        return Ok(false);
    }
    let header = tcmsg(link, 0xffff_0000, CLSACT);
    match exchange(NETLINK_ROUTE, &message(DELETE_QDISC, REQUEST | ACK, &header, &[]), |_| ()) {
        Err(e) if is_gone(e.raw_os_error()) => Ok(false),
        done => done.map(|()| true),
    }
}

/// `struct tcmsg`.
fn tcmsg(link: u32, handle: u32, parent: u32) -> Vec<u8> {
    [[0; 4], link.to_ne_bytes(), handle.to_ne_bytes(), parent.to_ne_bytes(), [0; 4]].concat()
}

pub(super) fn word(body: &[u8], at: usize) -> Option<u32> {
    body.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

/// Attaches a program, in place of the one that an earlier agent attached.
pub(super) fn attach(
    code: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
) -> Result<(), ProgramError> {
    match qdisc_add_clsact(interface) {
        Err(e) if errno(&e) != Some(libc::EEXIST) => return Err(e.into()),
        _ => {}
    }
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let attached = code.attach_with_options(interface, side, TcAttachOptions::Netlink(options));
    let id = match attached {
        Err(ProgramError::TcError(e)) if errno(&e) == Some(libc::EEXIST) => {
            code.attach_to_link(filter(interface, side)?)?
        }
        other => other?,
    };
    // It stays when this agent ends.
    std::mem::forget(code.take_link(id)?);
    Ok(())
}

/// Detaches it; fine when it is not there.
pub(super) fn detach(interface: &str, side: TcAttachType) -> Result<(), ProgramError> {
    use aya::programs::Link as _;
    match filter(interface, side).and_then(SchedClassifierLink::detach) {
        Err(ProgramError::NetlinkError(e)) if is_gone(e.raw_os_error()) => Ok(()),
        Err(ProgramError::TcError(e)) if is_gone(errno(&e)) => Ok(()),
        other => other,
    }
}

/// The filter of a link, which may not be there.
fn filter(interface: &str, side: TcAttachType) -> Result<SchedClassifierLink, ProgramError> {
    SchedClassifierLink::attached(interface, side, PRIORITY, HANDLE, None)
        .map_err(|e| TcError::IoError(e).into())
}

fn errno(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(e) => e.raw_os_error(),
        TcError::IoError(e) => e.raw_os_error(),
        _ => None,
    }
}

/// Without a clsact qdisc the kernel says EINVAL.
fn is_gone(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ENOENT | libc::ENODEV | libc::EINVAL))
}
