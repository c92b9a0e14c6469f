//! The bpf system call, as much of it as the probe asks for, and a few instructions to ask with.
//!
//! No loader library stands between: one that works around what a kernel lacks would answer for it.
//! Offsets into the call's argument are those of `union bpf_attr` in the kernel's `linux/bpf.h`.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::libc;

const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;
const SCHED_CLS: u32 = 3;

/// Map types, as the kernel numbers them.
pub(crate) const LPM_TRIE: u32 = 11;
pub(crate) const RINGBUF: u32 = 27;
/// Attach type of a TCX link on the way in.
pub(crate) const TCX_INGRESS: u32 = 46;

/// The argument of one call: at least as large as any kernel's, zero where nothing is said.
struct Attr([u8; 160]);

impl Attr {
    fn new() -> Self {
        Self([0; 160])
    }

    fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    /// A pointer and what it points to: the caller keeps the buffer until the call is over.
    fn ptr<T>(mut self, offset: usize, buffer: *const T) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&(buffer as u64).to_ne_bytes());
        self
    }

    fn call(&mut self, command: libc::c_int) -> io::Result<libc::c_int> {
        // SAFETY: the pointer and the length are of one live array, and the buffers that it points to
        // outlive this call, since every function below holds them until it returns.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        libc::c_int::try_from(done).ok().filter(|done| *done >= 0).ok_or_else(io::Error::last_os_error)
    }

    fn open(&mut self, command: libc::c_int) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the kernel just made this descriptor for us, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// One instruction: opcode, destination and source register, offset, immediate value.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Insn {
    op: u8,
    registers: u8,
    offset: i16,
    imm: i32,
}

const fn insn(op: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Insn {
    Insn { op, registers: src << 4 | dst, offset, imm }
}

/// `r<dst> = imm`, sign-extended to 64 bits.
pub(crate) const fn set(dst: u8, imm: i32) -> Insn {
    insn(0xb7, dst, 0, 0, imm)
}

/// `r<dst> = r<src>`
pub(crate) const fn copy(dst: u8, src: u8) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}

/// `r<dst> += imm`
pub(crate) const fn add(dst: u8, imm: i32) -> Insn {
    insn(0x07, dst, 0, 0, imm)
}

/// `*(u64 *)(r10 + offset) = imm`
pub(crate) const fn store(offset: i16, imm: i32) -> Insn {
    insn(0x7a, 10, 0, offset, imm)
}

/// `*(u32 *)(r10 + offset) = imm`
pub(crate) const fn store32(offset: i16, imm: i32) -> Insn {
    insn(0x62, 10, 0, offset, imm)
}

/// `*(u8 *)(r10 + offset) = imm`
pub(crate) const fn store8(offset: i16, imm: i32) -> Insn {
    insn(0x72, 10, 0, offset, imm)
}

/// `r<src> = atomic_xchg((u64 *)(r10 + offset), r<src>)`
pub(crate) const fn exchange(src: u8, offset: i16) -> Insn {
    insn(0xdb, 10, src, offset, 0xe1)
}

/// Calls a helper by its number.
pub(crate) const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}

/// Ends the program with r0.
pub(crate) const fn exit() -> Insn {
    insn(0x95, 0, 0, 0, 0)
}

/// Why the verifier refused a program.
pub(crate) struct Refused {
    pub(crate) error: io::Error,
    /// What the verifier wrote.
    pub(crate) log: String,
}

/// Loads a TC program.
pub(crate) fn load(program: &[Insn]) -> Result<OwnedFd, Refused> {
    let mut log = vec![0u8; 1 << 16];
    let license = c"GPL";
    let loaded = Attr::new()
        .u32(0, SCHED_CLS)
        .u32(4, u32::try_from(program.len()).unwrap_or(u32::MAX))
        .ptr(8, program.as_ptr())
        .ptr(16, license.as_ptr())
        .u32(24, 1)
        .u32(28, 1 << 16)
        .ptr(32, log.as_mut_ptr())
        .open(PROG_LOAD);
    loaded.map_err(|error| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
        Refused { error, log: String::from_utf8_lossy(&log[..end]).into_owned() }
    })
}

/// Runs a program once on a packet (Ethernet header first); `ifindex` is the device it came in by.
pub(crate) fn test_run(program: &OwnedFd, packet: &[u8], ifindex: Option<u32>) -> io::Result<i32> {
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    // struct __sk_buff as of 5.10; `ifindex` is its eleventh word.
    let mut context = [0u8; 176];
    context[40..44].copy_from_slice(&ifindex.unwrap_or(0).to_ne_bytes());
    let mut attr =
        Attr::new().u32(0, program.as_raw_fd().cast_unsigned()).u32(8, size(packet)).ptr(16, packet.as_ptr());
    if ifindex.is_some() {
        attr = attr.u32(40, size(&context)).ptr(48, context.as_ptr());
    }
    attr.call(PROG_TEST_RUN)?;
    let [a, b, c, d] = [attr.0[4], attr.0[5], attr.0[6], attr.0[7]];
    Ok(i32::from_ne_bytes([a, b, c, d]))
}

/// Makes a map without flags or, for a trie, with the flag that it must have.
pub(crate) fn map(kind: u32, key: u32, value: u32, entries: u32) -> io::Result<OwnedFd> {
    const NO_PREALLOC: u32 = 1;
    let flags = if kind == LPM_TRIE { NO_PREALLOC } else { 0 };
    Attr::new().u32(0, kind).u32(4, key).u32(8, value).u32(12, entries).u32(16, flags).open(MAP_CREATE)
}

/// Attaches a program to a device with a link.
pub(crate) fn link(program: &OwnedFd, ifindex: u32, attach: u32) -> io::Result<OwnedFd> {
    Attr::new().u32(0, program.as_raw_fd().cast_unsigned()).u32(4, ifindex).u32(8, attach).open(LINK_CREATE)
}
