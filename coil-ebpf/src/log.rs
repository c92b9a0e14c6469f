//! What a debug build of a path tells of each of its packets (`cargo xtask build-ebpf --log PROGRAM`). Other builds have
//! nothing of it.
//!
//! How much is told is the value of `coil_log`, which may change while the programs run: 0 nothing, 2 packets that are
//! dropped, 3 those that are sent on, too, 4 all of them.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use aya_log_ebpf::{
    log,
    macro_support::{Argument, IpFormatter, Level},
};
use coil_packet::{Class, Decision, Path, Reason, wire::Packet};

use crate::{skb::Buffer, tables::Side};

#[btf_map(name = "coil_log")]
static LEVEL: Array<u32, 1> = Array::new();

/// Addresses that can be shown.
pub(crate) trait Shown: IpFormatter + Argument {}
impl Shown for [u8; 4] {}
impl Shown for [u8; 16] {}

/// True for a path that this build tells of.
pub(crate) const fn tells_of(path: Path) -> bool {
    match path {
        Path::FromPod => cfg!(feature = "log-from_pod"),
        Path::FromNet => cfg!(feature = "log-from_net"),
        Path::ToPod => cfg!(feature = "log-to_pod"),
        Path::ToNet => cfg!(feature = "log-to_net"),
    }
}

/// Tells of a packet, if its level is wanted now. The numbers are names by the time that a person reads them.
#[inline(always)]
pub(crate) fn packet<A: Side>(skb: &Buffer, path: Path, decision: &Decision<A>, reason: Reason) {
    let level = match reason.class() {
        Class::Drop => Level::Warn,
        Class::Next => Level::Debug,
        Class::Sent | Class::Answered => Level::Info,
    };
    if LEVEL.get(0).is_some_and(|wanted| level as u32 <= *wanted) {
        write(skb, path, &decision.packet, reason, level);
    }
}

#[inline(never)]
fn write<A: Side>(skb: &Buffer, path: Path, packet: &Packet<A>, reason: Reason, level: Level) {
    log!(
        skb,
        level,
        "path={} reason={} protocol={} bytes={} from {:i} port {} to {:i} port {}",
        path as u8,
        reason as u8,
        packet.protocol,
        packet.len,
        packet.src,
        packet.sport,
        packet.dst,
        packet.dport
    );
}
