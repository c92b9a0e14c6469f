//! The two address families of the host's side.

use std::{hash::Hash, net::IpAddr};

use coil_packet::{Addr, IcmpError, Rewrite};

/// A family of the host's addresses.
pub trait HostAddr: Addr + Rewrite + IcmpError + Into<IpAddr> + Hash {
    /// The address; panics when it is of the other family.
    fn of(addr: IpAddr) -> Self;
}

impl HostAddr for [u8; 4] {
    fn of(addr: IpAddr) -> Self {
        let IpAddr::V4(addr) = addr else { panic!("{addr} is not IPv4") };
        addr.octets()
    }
}

impl HostAddr for [u8; 16] {
    fn of(addr: IpAddr) -> Self {
        let IpAddr::V6(addr) = addr else { panic!("{addr} is not IPv6") };
        addr.octets()
    }
}
