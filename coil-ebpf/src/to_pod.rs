//! TC egress of the host side of a pod's veth: what the kernel delivers.

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
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    run::by_family::<ToPod>(&Buffer::new(&ctx))
}

struct ToPod;

impl Hook for ToPod {
    const PATH: Path = Path::ToPod;

    #[inline(always)]
    fn decide<A: Side>(skb: &Buffer, tables: &mut Kernel, decision: &mut Decision<A>) -> Reason {
        path::to_pod(skb, skb.ifindex(), tables, decision)
    }
}
