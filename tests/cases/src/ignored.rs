//! What the programs do not even look into.

use coil_packet::{Path, Reason};

use crate::{
    Case, Net,
    wire::{self, Ip, tcp},
    world::{PLAIN, ROUTER_MAC, UPLINK, host_mac, pod_mac},
};

pub(crate) fn cases(net: Net) -> Vec<Case> {
    let syn = wire::tcp(Ip::new(net.plain, net.client), 40000, 80, tcp::SYN, b"");
    let from_pod = |name, frame| Case::new(name, Path::FromPod, net, PLAIN, frame, Reason::NotForUs);
    let from_net = |name, frame| Case::new(name, Path::FromNet, net, UPLINK, frame, Reason::NotForUs);
    let framed = |to: [u8; 6], packet: &[u8]| wire::ethernet(to, pod_mac(PLAIN), packet);
    let typed = |ethertype: [u8; 2], packet: &[u8]| {
        [&host_mac(PLAIN)[..], &pod_mac(PLAIN), &ethertype, packet].concat()
    };
    let mut cases = vec![
        from_pod("another MAC address", framed(pod_mac(UPLINK), &syn)),
        from_pod("broadcast", framed([0xff; 6], &syn)),
        from_pod("an 802.1Q tag", typed([0x81, 0], &[&[0, 5, 8, 0], &syn[..]].concat())),
        from_pod("an unknown EtherType", typed([0x88, 0xb5], &[0; 46])),
        from_net("multicast", wire::ethernet([1, 0, 0x5e, 0, 0, 1], ROUTER_MAC, &syn)),
    ];
    if net.is_v4() {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend([&pod_mac(PLAIN)[..], &[10, 64, 0, 2], &[0; 6], &[169, 254, 1, 1]].concat());
        cases.push(from_pod("ARP to all", [&[0xff; 6][..], &pod_mac(PLAIN), &[8, 6], &arp].concat()));
        cases.push(from_pod("ARP to us", typed([8, 6], &arp)));
    } else {
        // ND goes to a multicast MAC address, or, to confirm a neighbour, to its own.
        let target = [0xfe80, 0, 0, 0, 0, 0, 0, 1u16].into();
        let solicitation = wire::solicitation(net.link_local, target);
        cases.push(from_pod("ND to all", framed([0x33, 0x33, 0xff, 0, 0, 1], &solicitation)));
        let unicast = Case::from_pod("ND to us", net, PLAIN, &solicitation, Reason::NotOwnSource);
        cases.push(unicast);
    }
    cases
}
