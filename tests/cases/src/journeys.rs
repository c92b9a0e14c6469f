//! Packets from a client to the world and back, one after the other on tables that stay: what one hop writes is what
//! the next one needs.
//!
//! ```text
//! out:   client ── from_pod ── FOU ── from_net ── world         (or from_pod alone, where the gateway is on the node)
//! back:  world ── from_net ── FOU ── from_net ── client
//! ```
//!
//! The one node of all cases is the client's node at first, then the gateway's: what left it as the client's comes to it
//! as that of the other node's client.

mod fragments;
mod whole;

use std::net::IpAddr;

use coil_packet::Reason;

use crate::{
    Case, Given, Net,
    wire::{self, Ip},
    world::CLIENT,
};

/// What happens one after the other.
#[derive(Clone, Debug)]
pub struct Journey {
    /// What it shows.
    pub name: String,
    /// Its family's addresses.
    pub net: Net,
    /// What the tables hold at first.
    pub given: Vec<Given>,
    /// Each packet, and what becomes of it.
    steps: Vec<Case>,
    /// The flow whose port the gateway chooses: the steps are of some port, until the first packet out says which.
    chosen: Option<whole::Flow>,
}

impl Journey {
    /// Goes all the way, or to the step that goes wrong, which the answer names. `run` runs a step, and answers with
    /// the frame afterwards, or says what is wrong.
    ///
    /// # Errors
    /// What is wrong with which step.
    pub fn take(&self, mut run: impl FnMut(&Case) -> Result<Vec<u8>, String>) -> Result<(), String> {
        let (mut steps, mut chosen) = (self.steps.clone(), self.chosen);
        for n in 0..self.steps.len() {
            let wrong = |what| format!("{}, step {n}, {}: {what}", self.name, self.steps[n].name);
            let frame = run(&steps[n]).map_err(wrong)?;
            if let Some(flow) = chosen
                && steps[n].reason == Reason::Out
            {
                steps = flow.steps(flow.port_of(&frame).map_err(wrong)?);
                chosen = None;
            }
            if let Some(difference) = steps[n].difference(&frame) {
                return Err(wrong(difference));
            }
        }
        Ok(())
    }
}

/// All of both families.
#[must_use]
pub fn all() -> Vec<Journey> {
    let of_family = |net| [fragments::of_family(net), whole::of_family(net)].concat();
    [Net::v4(), Net::v6()].into_iter().flat_map(of_family).collect()
}

/// One node's part of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    /// From the client to a gateway of another node.
    Tunnel,
    /// The same where clients keep their gateway: any fragment finds it.
    AffineTunnel,
    /// Out of the tunnel, into the world.
    Out,
    /// From a client to a gateway of its node, into the world.
    LocalOut,
    /// From the world to another node's client.
    Back,
    /// From the world to a client of this node.
    LocalBack,
    /// Out of the tunnel, to the client.
    Home,
}

/// The hops of what a client sends, and of what comes back.
type Way = [&'static [Hop]; 2];

const FAR: Way = [&[Hop::Tunnel, Hop::Out], &[Hop::Back, Hop::Home]];
const AFFINE: Way = [&[Hop::AffineTunnel, Hop::Out], &[Hop::Back, Hop::Home]];
const NEAR: Way = [&[Hop::LocalOut], &[Hop::LocalBack]];

/// Where a packet is.
#[derive(Clone, Copy)]
struct Place {
    /// Who talks to the remote, as the packet has it here: the client or its gateway.
    here: IpAddr,
    /// Its port, or the identifier of its echo.
    port: u16,
    remote: IpAddr,
    ttl: u8,
}

impl Place {
    const fn out(self) -> Ip {
        Ip::new(self.here, self.remote).ttl(self.ttl)
    }

    const fn home(self) -> Ip {
        Ip::new(self.remote, self.here).ttl(self.ttl)
    }
}

impl Hop {
    /// The reason of what passes.
    const fn passes(self) -> Reason {
        match self {
            Self::Tunnel | Self::AffineTunnel => Reason::ToGateway,
            Self::Out | Self::LocalOut => Reason::Out,
            Self::Back => Reason::ReplyToNode,
            Self::LocalBack => Reason::ReplyToPod,
            Self::Home => Reason::Decapsulated,
        }
    }

    const fn is_back(self) -> bool {
        matches!(self, Self::Back | Self::LocalBack | Self::Home)
    }

    /// A packet on this hop, as `packet` makes it for a place; `own` is the client's port, and `lent` the gateway's. It
    /// passes if that is the reason.
    fn case(
        self,
        name: String,
        net: Net,
        reason: Reason,
        [own, lent]: [u16; 2],
        packet: &dyn Fn(Place) -> Vec<u8>,
    ) -> Case {
        let at = |here, port, remote, ttl| packet(Place { here, port, remote, ttl });
        let fou = |from, to, inner: &[u8]| wire::fou((from, to), 0, 5555, inner);
        let world = if self == Self::AffineTunnel { net.world_affine } else { net.world };
        let local = net.world_local;
        let (before, after) = match self {
            Self::Tunnel | Self::AffineTunnel => {
                let inner = at(net.client, own, world, 64);
                (inner.clone(), fou(net.client, net.remote_gateway, &inner))
            }
            Self::LocalOut => (at(net.client, own, local, 64), at(net.gateway, lent, local, 63)),
            Self::Out => {
                let inner = at(net.remote_client, own, local, 64);
                (fou(net.remote_client, net.gateway, &inner), at(net.gateway, lent, local, 63))
            }
            Self::Back => {
                let inner = at(net.remote_client, own, local, 59);
                (at(net.gateway, lent, local, 60), fou(net.gateway, net.remote_client, &inner))
            }
            Self::LocalBack => (at(net.gateway, lent, local, 60), at(net.client, own, local, 59)),
            Self::Home => {
                let inner = at(net.client, own, world, 59);
                (fou(net.remote_gateway, net.client, &inner), inner)
            }
        };
        let case = match self {
            Self::Tunnel | Self::AffineTunnel | Self::LocalOut => {
                Case::from_pod(name, net, CLIENT, before, reason)
            }
            _ => Case::from_net(name, net, before, reason),
        };
        match self {
            _ if reason != self.passes() => case,
            Self::LocalBack | Self::Home => case.hands_over(CLIENT, &after),
            _ => case.sends(&after),
        }
    }
}
