//! What the kernel must have, and giving it the programs.

use aya::{
    programs::{ProgramError, SchedClassifier, TcAttachType},
    util::KernelVersion,
};

use super::{DatapathError, attach::Hook};

/// `bpf_redirect_peer` and `bpf_redirect_neigh` came with Linux 5.10 (commits 9aa1206e8f48 and b4ab31414970).
pub(super) fn require_kernel() -> Result<Hook, DatapathError> {
    let version = KernelVersion::current().map_err(|error| DatapathError::Load(Box::new(error)))?;
    if version < KernelVersion::new(5, 10, 0) {
        return Err(DatapathError::OldKernel(format!("{version:?}")));
    }
    // TCX came with Linux 6.6 (commit e420bed02507), where it is configured.
    let tcx = SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
    Ok(if tcx { Hook::Tcx } else { Hook::Filter })
}

/// How often the verifier is tried again when a signal interrupted it.
const LOAD_ATTEMPTS: u32 = 5;

/// Loads a program. The verifier gives up with EAGAIN when a signal comes in (`bpf_check` since Linux 5.0).
pub(super) fn load(code: &mut SchedClassifier) -> Result<(), ProgramError> {
    for _ in 1..LOAD_ATTEMPTS {
        match code.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(nix::libc::EAGAIN) => {}
            done => return done,
        }
    }
    code.load()
}
