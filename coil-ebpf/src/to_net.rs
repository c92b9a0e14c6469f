//! TC egress of an uplink: what the kernel sends out.

use aya_ebpf::{macros::classifier, programs::TcContext};
use coil_packet::{Decision, Path, Reason, path};

use crate::{
    run::{self, Hook},
    skb::Buffer,
    tables::{Kernel, Side},
};

/// The program's entry.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
pub(crate) fn to_net(ctx: TcContext) -> i32 {
    run::by_family::<ToNet>(&Buffer::new(&ctx))
}

struct ToNet;

impl Hook for ToNet {
    const PATH: Path = Path::ToNet;

    #[inline(always)]
    fn decide<A: Side>(skb: &Buffer, tables: &mut Kernel, decision: &mut Decision<A>) -> Reason {
        path::to_net(skb, tables, decision)
    }
}
