//! Packet cases and an independent packet serialiser.
//!
//! A [`Case`] is a frame, what the tables hold, and what must become of the frame, byte for byte. The
//! list runs on the host ([`host::run`]) and, by the crate `coil-kernel-tests`, in the kernel.
//! [`journeys`] are cases one after the other on tables that stay, likewise in both places.
//! Frames are made by [`wire`], which shares no code with `coil-packet`.

mod client_errors;
mod egress;
mod errors;
mod family;
mod forward;
mod fou_errors;
mod fragments;
mod gateway;
mod given;
pub mod host;
mod host_stack;
mod ignored;
mod incoming;
pub mod journeys;
mod kernel_clients;
mod mark;
mod memory;
mod nat_errors;
pub mod pcap;
mod pins;
mod queued;
mod services;
mod slow;
mod sums;
mod tunnel;
mod unreadable;
pub mod wire;
pub mod world;

pub use given::{Flow, Given};
pub use world::{Net, Route, World};

use std::borrow::Cow;

use coil_packet::{Path, Reason};

/// A frame and what must become of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows.
    pub name: Cow<'static, str>,
    /// The program.
    pub path: Path,
    /// The addresses, and so the family.
    pub net: Net,
    /// The link on which the frame comes in.
    pub ingress: u32,
    /// The frame.
    pub frame: Vec<u8>,
    /// Flows and translations that are there already.
    pub given: Vec<Given>,
    /// Why.
    pub reason: Reason,
    /// The frame afterwards; unchanged when `None`.
    pub output: Option<Vec<u8>>,
    /// Offsets of output bytes that a hash decides.
    pub free: Vec<usize>,
    /// UDP between pods may be fast.
    pub fast_udp: bool,
    /// Every packet passes the host's stack.
    pub host_stack: bool,
    /// It goes on in the host's stack, changed.
    pub stays: bool,
    /// It leaves by the queue of a pod's link.
    pub queued: bool,
    /// A flow that must be in the tables afterwards.
    pub leaves: Option<Flow>,
}

impl Case {
    fn new(
        name: impl Into<Cow<'static, str>>,
        path: Path,
        net: Net,
        ingress: u32,
        frame: Vec<u8>,
        reason: Reason,
    ) -> Self {
        Self {
            name: name.into(),
            path,
            net,
            ingress,
            frame,
            given: vec![],
            reason,
            output: None,
            free: vec![],
            fast_udp: false,
            host_stack: false,
            stays: false,
            queued: false,
            leaves: None,
        }
    }

    /// A frame of a pod of this node.
    fn from_pod(
        name: impl Into<Cow<'static, str>>,
        net: Net,
        ingress: u32,
        packet: impl AsRef<[u8]>,
        reason: Reason,
    ) -> Self {
        let frame = wire::ethernet(world::host_mac(ingress), world::pod_mac(ingress), packet.as_ref());
        Self::new(name, Path::FromPod, net, ingress, frame, reason)
    }

    /// A frame that comes in on the uplink.
    fn from_net(
        name: impl Into<Cow<'static, str>>,
        net: Net,
        packet: impl AsRef<[u8]>,
        reason: Reason,
    ) -> Self {
        let frame = wire::ethernet(world::host_mac(world::UPLINK), world::ROUTER_MAC, packet.as_ref());
        Self::new(name, Path::FromNet, net, world::UPLINK, frame, reason)
    }

    /// A frame that the kernel delivers to the pod behind the veth `egress`.
    fn to_pod(
        name: impl Into<Cow<'static, str>>,
        net: Net,
        egress: u32,
        packet: impl AsRef<[u8]>,
        reason: Reason,
    ) -> Self {
        let frame = wire::ethernet(world::pod_mac(egress), world::host_mac(egress), packet.as_ref());
        Self::new(name, Path::ToPod, net, egress, frame, reason)
    }

    /// A frame that the kernel sends out of the uplink.
    fn to_net(
        name: impl Into<Cow<'static, str>>,
        net: Net,
        packet: impl AsRef<[u8]>,
        reason: Reason,
    ) -> Self {
        let frame = wire::ethernet(world::ROUTER_MAC, world::host_mac(world::UPLINK), packet.as_ref());
        Self::new(name, Path::ToNet, net, world::UPLINK, frame, reason)
    }

    /// Where UDP between pods may be fast.
    fn with_fast_udp(mut self) -> Self {
        self.fast_udp = true;
        self
    }

    /// Where every packet passes the host's stack.
    fn with_host_stack(mut self) -> Self {
        self.host_stack = true;
        self
    }

    /// With this flow in the tables afterwards.
    fn leaves(mut self, flow: Flow) -> Self {
        self.leaves = Some(flow);
        self
    }

    /// With something in the tables.
    fn given(mut self, given: impl Into<Given>) -> Self {
        self.given.push(given.into());
        self
    }

    /// Sent to a neighbour: the kernel writes the MAC addresses later.
    fn sends(mut self, packet: &[u8]) -> Self {
        self.output = Some([&self.frame[..14], packet].concat());
        self
    }

    /// Handed to the pod behind the veth `ifindex`.
    fn hands_over(mut self, ifindex: u32, packet: &[u8]) -> Self {
        self.output = Some(wire::ethernet(world::pod_mac(ifindex), world::host_mac(ifindex), packet));
        self
    }

    /// Sent out of the veth `ifindex` to its pod, by the link's queue.
    fn queues(mut self, ifindex: u32, packet: &[u8]) -> Self {
        self.queued = true;
        self.hands_over(ifindex, packet)
    }

    /// Handed to the stack, as if the pod behind the veth `ifindex` had sent it.
    fn hands_in(mut self, ifindex: u32, packet: &[u8]) -> Self {
        self.output = Some(wire::ethernet(world::host_mac(ifindex), world::pod_mac(ifindex), packet));
        self
    }

    /// Left on its way, changed.
    fn leaves_as(mut self, packet: &[u8]) -> Self {
        self.stays = true;
        self.sends(packet)
    }

    /// Sent back with the MAC addresses turned round.
    fn answers(mut self, packet: &[u8]) -> Self {
        let (to, from, ethertype) = (&self.frame[6..12], &self.frame[..6], &self.frame[12..14]);
        self.output = Some([to, from, ethertype, packet].concat());
        self
    }

    /// A hash decides these bytes of the packet (offsets from the IP header).
    fn free(mut self, offsets: impl IntoIterator<Item = usize>) -> Self {
        self.free.extend(offsets.into_iter().map(|offset| 14 + offset));
        self
    }

    /// The frame that must come out.
    #[must_use]
    pub fn expected(&self) -> &[u8] {
        self.output.as_deref().unwrap_or(&self.frame)
    }

    /// Says how `frame` differs from what must come out, if it does.
    #[must_use]
    pub fn difference(&self, frame: &[u8]) -> Option<String> {
        let expected = self.expected();
        let differs = |i: &usize| !self.free.contains(i) && frame.get(*i) != expected.get(*i);
        let first = (0..frame.len().max(expected.len())).find(differs);
        if let Some(at) = first {
            return Some(format!(
                "differs at byte {at}\n  is        {}\n  should be {}",
                hex(frame),
                hex(expected)
            ));
        }
        if self.output.is_some() { wire::bad_checksum(frame) } else { None }
    }

    /// Says how the flow that was `left` (state and phase) differs from what must be there, if it does.
    #[must_use]
    pub fn flow_difference(&self, left: Option<(u8, u8)>) -> Option<String> {
        let flow = self.leaves?;
        let wanted = Some((flow.state, flow.phase as u8));
        (left != wanted).then(|| format!("leaves the flow (state, phase) {left:?}, should be {wanted:?}"))
    }
}

/// Bytes as text, in groups of four from the IP header on.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (i, byte) in bytes.iter().take(200).enumerate() {
        if i >= 14 && (i - 14) % 4 == 0 {
            text.push(' ');
        }
        text += &format!("{byte:02x}");
    }
    text
}

/// All cases of both families.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = vec![];
    for net in [Net::v4(), Net::v6()] {
        cases.extend(forward::cases(net));
        cases.extend(errors::cases(net));
        cases.extend(ignored::cases(net));
        cases.extend(mark::cases(net));
        cases.extend(egress::cases(net));
        cases.extend(gateway::cases(net));
        cases.extend(tunnel::cases(net));
        cases.extend(nat_errors::cases(net));
        cases.extend(client_errors::cases(net));
        cases.extend(fragments::cases(net));
        cases.extend(pins::cases(net));
        cases.extend(slow::cases(net));
        cases.extend(host_stack::cases(net));
        cases.extend(kernel_clients::cases(net));
        cases.extend(fou_errors::cases(net));
        cases.extend(sums::cases(net));
        cases.extend(unreadable::cases(net));
        cases.extend(services::cases(net));
        cases.extend(queued::cases(net));
        cases.extend(incoming::cases(net));
    }
    cases
}
