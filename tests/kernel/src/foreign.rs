//! A TCX program of somebody else's: it says one verdict of every packet.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};
use aya::programs::TcAttachType;
use nix::libc;

/// `TC_ACT_OK`: no program after it is asked.
pub const OK: i32 = 0;

/// `BPF_PROG_LOAD`, `BPF_LINK_CREATE`; `BPF_PROG_TYPE_SCHED_CLS`; `BPF_TCX_INGRESS` and `_EGRESS`.
const LOAD: libc::c_int = 5;
const LINK: libc::c_int = 28;
const CLASSIFIER: u32 = 3;
const TCX: [u32; 2] = [46, 47];

/// The attachment; it goes with this value.
pub struct Foreign {
    _link: OwnedFd,
}

impl Foreign {
    /// Attaches a program of this verdict behind all others on a link of this thread's network namespace.
    ///
    /// # Errors
    /// Without root, or where the kernel has no TCX.
    pub fn attach(ifindex: u32, side: TcAttachType, verdict: i32) -> Result<Self> {
        let side = TCX[usize::from(matches!(side, TcAttachType::Egress))];
        // r0 = verdict; exit
        let code: [u64; 2] = [0xb7 | u64::from(verdict.cast_unsigned()) << 32, 0x95];
        let (license, mut name) = (c"GPL", [0u8; 16]);
        name[..7].copy_from_slice(b"foreign");
        let mut load = Attribute::default();
        load.put(0, &CLASSIFIER.to_ne_bytes());
        load.put(4, &2u32.to_ne_bytes());
        load.put(8, &(code.as_ptr() as u64).to_ne_bytes());
        load.put(16, &(license.as_ptr() as u64).to_ne_bytes());
        load.put(48, &name);
        let program = load.ask(LOAD).context("cannot load a program")?;
        let mut link = Attribute::default();
        link.put(0, &std::os::fd::AsRawFd::as_raw_fd(&program).to_ne_bytes());
        link.put(4, &ifindex.to_ne_bytes());
        link.put(8, &side.to_ne_bytes());
        Ok(Self { _link: link.ask(LINK).context("cannot attach it")? })
    }
}

/// `union bpf_attr`.
struct Attribute([u8; 128]);

impl Default for Attribute {
    fn default() -> Self {
        Self([0; 128])
    }
}

impl Attribute {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn ask(&mut self, command: libc::c_int) -> io::Result<OwnedFd> {
        // SAFETY: the attribute is of the stated length, and what it points to lives until the call ends.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
