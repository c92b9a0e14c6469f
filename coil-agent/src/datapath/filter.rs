//! Programs on pods' links: a filter of the link's clsact qdisc.
//!
//! A filter costs a tenth of a millisecond. A TCX link, which uplinks have, makes the kernel wait for
//! all CPUs (`tcx_entry_sync` in kernel/bpf/tcx.c: 8 to 16 ms at 250 Hz) at its making and at its end,
//! with the lock of all network configuration held: every pod that starts or ends would wait for every
//! other. A filter too works on while no agent runs, and gets a new program without losing a packet.

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use nix::libc;

/// Before a filter whose maker asked for no place (49152), with room for others in front.
pub(super) const PRIORITY: u16 = 50;
/// By it an agent finds the filter of an earlier one.
const HANDLE: TcHandle = TcHandle::new(0, 0xc011);

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
