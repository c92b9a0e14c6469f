//! The one place where map types are declared plain old data for aya.

use super::{
    AffinityKey, AffinityValue, ClientKey, ClientValue, Config, Counter, FlowKey, FlowValue, FragKey,
    FragValue, GatewayKey, GatewayValue, Lost, Maglev, NatKey, NatRevKey, NatRevValue, NatValue, PinKey,
    PinValue, PodValue, PolicyKey, PoolValue, PortRow, Tally, UplinkValue,
};
use crate::Addr;

macro_rules! aya_pod {
    ($($what:ident),+; $($generic:ident),+) => {
        $(
            // SAFETY: the type is bytemuck::Pod: no padding, any bytes are a value.
            unsafe impl aya::Pod for $what where $what: bytemuck::Pod {}
        )+
        $(
            // SAFETY: as above.
            unsafe impl<A: Addr> aya::Pod for $generic<A> where $generic<A>: bytemuck::Pod {}
        )+
    };
}

aya_pod! {
    Config, Counter, PodValue, PoolValue, UplinkValue, ClientValue, GatewayValue, FlowValue, FragValue, Lost, NatValue,
    PortRow, Tally;
    PolicyKey, GatewayKey, ClientKey, Maglev, FlowKey, FragKey, NatKey, NatRevKey, NatRevValue, PinKey,
    PinValue, AffinityKey, AffinityValue
}
