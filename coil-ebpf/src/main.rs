//! Coil's TC programs.
//!
//! ```text
//! from_pod ─┐                                    ┌─ skb.rs     (BPF helpers on the packet)
//! from_net ─┼─► run.rs ──► coil_packet::path ────┤
//! to_pod   ─┤   (count, apply, send)             └─ tables.rs  (maps.rs, kernel FIB)
//! to_net   ─┘
//! ```
//!
//! What is decided stands in `coil-packet`, tested on the host; this crate only connects it with
//! the kernel. Return codes: -1 leaves the packet to the next program or the stack (`TCX_NEXT`,
//! `TC_ACT_UNSPEC`), 2 drops, 7 redirects.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod from_net;
mod from_pod;
#[cfg(feature = "log")]
mod log;
mod maps;
mod run;
mod skb;
mod tables;
mod to_net;
mod to_pod;

/// Makes the helpers that the kernel keeps for GPL-compatible programs available.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The host target exists for lints only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
