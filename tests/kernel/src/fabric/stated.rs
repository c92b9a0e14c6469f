//! What the agent of a node states.

use coil_agent::datapath::{Desired, Egress, Gateway, LocalPod};
use coil_packet::abi::egress_flag;

use super::{Fabric, PODS, Pod, UPLINK, host_mac, link, pod_mac};

impl Fabric {
    pub(super) fn desired(&self, index: usize) -> Desired {
        let network = |v4: &str, v6: &str| if self.v4 { v4 } else { v6 }.parse().expect("a network");
        let pool = network("10.64.0.0/16", "fd64::/112");
        let pods = PODS.into_iter().filter(|(_, _, node, _)| *node == Some(index)).map(|(pod, name, ..)| {
            let client = matches!(pod, Pod::Client | Pod::Neighbour);
            LocalPod {
                name: format!("test/{name}"),
                addresses: vec![self.address(pod)],
                ifindex: link(pod),
                mac: pod_mac(pod),
                host_mac: host_mac(pod),
                mtu: 1500,
                policy: u32::from(client),
                client,
                originating_only: false,
                kernel_client: false,
                gateway: pod == Pod::Gateway,
                new_clients: false,
                kernel_gateway: false,
                by_kernel: false,
                shaped: false,
            }
        });
        let egress = Egress {
            name: "test/egress".into(),
            gateways: vec![Gateway { address: self.address(Pod::Gateway), ready: true }],
            services: vec![],
            sport_auto: false,
            affinity: Some(egress_flag::DEFAULT_AFFINITY),
            originating_only: false,
        };
        Desired {
            pools: [pool].into(),
            pods: pods.collect(),
            policies: [
                ((1, network("0.0.0.0/0", "::/0")), Some(1)),
                ((1, network("169.254.0.0/16", "fe80::/10")), None),
                ((1, pool), None),
                ((1, network("172.18.0.0/24", "fd00:18::/64")), None),
            ]
            .into(),
            ranges: [].into(),
            egresses: [(1, egress)].into(),
            all_gateways: [self.address(Pod::Gateway)].into(),
            clients: [Pod::Client, Pod::Neighbour]
                .map(|client| (self.address(Pod::Gateway), self.address(client)))
                .into(),
            any_sender: false,
            own_ports: [].into(),
            quota: 0,
            uplinks: [UPLINK].into(),
            forward: true,
            host_stack: false,
            fast_udp: false,
            fou_port: 5555,
            mark: crate::node::MARK,
        }
    }
}
