//! What is in the tables before a frame comes.

use std::net::IpAddr;

use coil_packet::flow::{self, Phase};

/// Something that is in a table before the frame comes.
#[derive(Clone, Copy, Debug)]
pub enum Given {
    /// A flow, seen just now.
    Flow(Flow),
    /// What a first fragment said.
    Frag {
        /// IP protocol.
        protocol: u8,
        /// Source and destination.
        ends: (IpAddr, IpAddr),
        /// Identification.
        id: u32,
        /// Source and destination port.
        ports: (u16, u16),
    },
    /// The gateway of a flow.
    Pin {
        /// IP protocol.
        protocol: u8,
        /// The client and its port.
        client: (IpAddr, u16),
        /// The remote and its port.
        remote: (IpAddr, u16),
        /// The Egress.
        egress: u32,
        /// The gateway.
        gateway: IpAddr,
    },
    /// The gateway of a client.
    Affinity {
        /// The client.
        client: IpAddr,
        /// The Egress.
        egress: u32,
        /// The gateway.
        gateway: IpAddr,
        /// Seconds since it was used.
        idle: u32,
    },
    /// A translation.
    Nat {
        /// IP protocol.
        protocol: u8,
        /// The gateway and its port.
        gateway: (IpAddr, u16),
        /// The client and its port.
        client: (IpAddr, u16),
        /// The remote and its port.
        remote: (IpAddr, u16),
        /// Seconds since it was used.
        idle: u32,
    },
}

impl From<Flow> for Given {
    fn from(flow: Flow) -> Self {
        Self::Flow(flow)
    }
}

/// A flow in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol.
    pub protocol: u8,
    /// One end.
    pub one: (IpAddr, u16),
    /// The other end.
    pub other: (IpAddr, u16),
    /// [`coil_packet::flow::FAST`] or [`coil_packet::flow::KERNEL`].
    pub state: u8,
    /// How far it has come.
    pub phase: Phase,
}

impl Flow {
    /// A fast flow in use.
    #[must_use]
    pub const fn fast(protocol: u8, one: (IpAddr, u16), other: (IpAddr, u16)) -> Self {
        Self { protocol, one, other, state: flow::FAST, phase: Phase::Open }
    }

    /// A flow of the kernel, in use.
    #[must_use]
    pub const fn kernel(protocol: u8, one: (IpAddr, u16), other: (IpAddr, u16)) -> Self {
        Self { state: flow::KERNEL, ..Self::fast(protocol, one, other) }
    }

    /// In another phase.
    #[must_use]
    pub const fn phase(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }
}
