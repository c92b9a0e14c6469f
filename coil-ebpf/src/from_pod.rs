//! TC ingress of the host side of a pod's veth.

use aya_ebpf::{macros::classifier, programs::TcContext};
use coil_packet::{Decision, Outlet, Path, Reason, path};

use crate::{
    maps,
    run::{self, Hook},
    skb::Buffer,
    tables::{Kernel, Side},
};

/// The program's entry.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
pub(crate) fn from_pod(ctx: TcContext) -> i32 {
    run::by_family::<FromPod>(&Buffer::new(&ctx))
}

struct FromPod;

impl Hook for FromPod {
    const PATH: Path = Path::FromPod;

    /// What a program translated in a gateway's name and left to the stack comes in here, marked. What is not for this
    /// link is no router's business.
    #[inline(always)]
    fn concerns(skb: &Buffer) -> bool {
        !skb.take_mark(maps::config().mark) && skb.is_for_us()
    }

    #[inline(always)]
    fn knows<A: Side>(
        skb: &Buffer,
        tables: &mut Kernel,
        decision: &mut Decision<A>,
        outlet: &mut impl Outlet<A>,
    ) -> bool {
        path::known_from_pod(skb, skb.ifindex(), tables, decision, outlet)
    }

    #[inline(always)]
    fn decide<A: Side>(skb: &Buffer, tables: &mut Kernel, decision: &mut Decision<A>) -> Reason {
        path::decide_from_pod(skb, skb.ifindex(), tables, decision)
    }
}
