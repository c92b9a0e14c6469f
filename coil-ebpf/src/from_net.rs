//! TC ingress of an uplink.

use aya_ebpf::{macros::classifier, programs::TcContext};
use coil_packet::{Decision, Outlet, Path, Reason, path};

use crate::{
    run::{self, Hook},
    skb::Buffer,
    tables::{Kernel, Side},
};

/// The program's entry.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
pub(crate) fn from_net(ctx: TcContext) -> i32 {
    run::by_family::<FromNet>(&Buffer::new(&ctx))
}

struct FromNet;

impl Hook for FromNet {
    const PATH: Path = Path::FromNet;

    #[inline(always)]
    fn concerns(skb: &Buffer) -> bool {
        skb.is_for_us()
    }

    #[inline(always)]
    fn knows<A: Side>(
        skb: &Buffer,
        tables: &mut Kernel,
        decision: &mut Decision<A>,
        outlet: &mut impl Outlet<A>,
    ) -> bool {
        path::known_from_net(skb, skb.ifindex(), tables, decision, outlet)
    }

    #[inline(always)]
    fn decide<A: Side>(skb: &Buffer, tables: &mut Kernel, decision: &mut Decision<A>) -> Reason {
        path::decide_from_net(skb, tables, decision)
    }
}
