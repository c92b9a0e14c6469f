//! The one place where map types are declared plain old data for aya.

use super::{
    Config, Counter, FlowKey, FlowValue, GatewayKey, GatewayValue, Maglev, NatKey, NatRevKey, NatRevValue,
    NatValue, PodValue, PolicyKey, PoolValue, UplinkValue,
};

macro_rules! aya_pod {
    ($($what:ty),+ $(,)?) => {$(
        // SAFETY: the type is bytemuck::Pod: no padding, any bytes are a value.
        unsafe impl aya::Pod for $what where $what: bytemuck::Pod {}
    )+};
}

aya_pod! {
    Config, Counter, PodValue, PoolValue, UplinkValue, GatewayValue, FlowValue, NatValue,
    PolicyKey<[u8; 4]>, GatewayKey<[u8; 4]>, Maglev<[u8; 4]>, FlowKey<[u8; 4]>, NatKey<[u8; 4]>,
    NatRevKey<[u8; 4]>, NatRevValue<[u8; 4]>,
    PolicyKey<[u8; 16]>, GatewayKey<[u8; 16]>, Maglev<[u8; 16]>, FlowKey<[u8; 16]>, NatKey<[u8; 16]>,
    NatRevKey<[u8; 16]>, NatRevValue<[u8; 16]>,
}
