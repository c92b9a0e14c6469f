//! The contents that the maps should have: a pure function of [`Desired`].

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use coil_packet::{
    Addr,
    abi::{
        ClientKey, ClientValue, Config, GatewayKey, GatewayValue, Maglev, NONE, PodValue, PolicyKey,
        PoolValue, UplinkValue, cluster_range, config_flag, egress_flag, gateway_flag, pod_flag,
    },
};
use ipnet::IpNet;

use super::{Desired, LocalPod, maglev};

/// An address family of the host's address types.
pub(super) trait HostAddr: Addr + aya::Pod + Into<IpAddr> {
    /// The address, when it is of this family.
    fn of(addr: IpAddr) -> Option<Self>;
}

impl HostAddr for [u8; 4] {
    fn of(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        }
    }
}

impl HostAddr for [u8; 16] {
    fn of(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(v6.octets()),
        }
    }
}

/// A key of a longest prefix match: the bits that count, and the data.
pub(super) type Prefix<K> = (u32, K);

/// Contents of the maps of one family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FamilyImage<A> {
    pub(super) pods: Vec<(A, PodValue)>,
    pub(super) pools: Vec<(Prefix<A>, PoolValue)>,
    pub(super) policy: Vec<(Prefix<PolicyKey<A>>, u32)>,
    pub(super) gateways: Vec<(GatewayKey<A>, GatewayValue)>,
    pub(super) clients: Vec<(ClientKey<A>, ClientValue)>,
    pub(super) maglev: Vec<(u32, Maglev<A>)>,
}

/// Contents of the maps without addresses. The epoch is not part of it.
pub(super) fn common(desired: &Desired) -> (Config, Vec<(u32, UplinkValue)>) {
    let mut flags = 0;
    if desired.forward {
        flags |= config_flag::FORWARD | config_flag::MARK;
    }
    if desired.forward && desired.fast_udp {
        flags |= config_flag::FAST_UDP | config_flag::MARK_UDP;
    }
    if desired.any_sender {
        flags |= config_flag::ANY_SENDER;
    }
    if desired.host_stack {
        flags |= config_flag::HOST_STACK;
    }
    let config = Config {
        flags,
        fou_port: desired.fou_port,
        pad: 0,
        mark: desired.mark,
        epoch: 0,
        quota: desired.quota,
    };
    (config, desired.uplinks.iter().map(|ifindex| (*ifindex, UplinkValue::default())).collect())
}

/// Contents of the maps of the family `A`.
pub(super) fn family<A: HostAddr>(desired: &Desired) -> FamilyImage<A> {
    let mut image = FamilyImage {
        pods: vec![],
        pools: vec![],
        policy: vec![],
        gateways: vec![],
        clients: vec![],
        maglev: vec![],
    };
    for pod in &desired.pods {
        let flags = flags_of(pod);
        let value = PodValue {
            ifindex: pod.ifindex,
            policy: pod.policy,
            flags,
            mac: pod.mac,
            host_mac: pod.host_mac,
            mtu: pod.mtu,
        };
        image.pods.extend(pod.addresses.iter().filter_map(|addr| Some((A::of(*addr)?, value))));
    }
    for pool in &desired.pools {
        if let Some((len, network)) = prefix(pool) {
            image.pools.push(((len, network), PoolValue::default()));
        }
    }
    for ((policy, destination), egress) in &desired.policies {
        let Some((len, destination)) = prefix(destination) else { continue };
        let key = PolicyKey { policy: *policy, destination };
        image.policy.push(((32 + len, key), egress.unwrap_or(NONE)));
    }
    for (range, cluster) in &desired.ranges {
        let Some((len, destination)) = prefix(range) else { continue };
        let key = PolicyKey { policy: NONE, destination };
        let of = if *cluster { cluster_range::CLUSTER } else { cluster_range::PRIVATE };
        image.policy.push(((32 + len, key), of));
    }
    // Longer ones first, as they are written: what a destination that has become wider does not take is known before that
    // is. What is not wanted any more goes in the other order, see [`super::table::prefixed`].
    image.policy.sort_by_key(|((len, _), _)| Reverse(*len));
    for (id, egress) in &desired.egresses {
        let ready: Vec<A> =
            egress.gateways.iter().filter(|g| g.ready).filter_map(|g| A::of(g.address)).collect();
        let mut flags = 0;
        if egress.sport_auto {
            flags |= egress_flag::SPORT_AUTO;
        }
        if let Some(seconds) = egress.affinity {
            flags |= egress_flag::affinity(seconds);
        }
        if egress.originating_only {
            flags |= egress_flag::ORIGINATING_ONLY;
        }
        let gateways = u32::try_from(ready.len()).unwrap_or(u32::MAX);
        image.maglev.push((*id, Maglev { flags, gateways, slots: maglev::table(&ready) }));
    }
    image.gateways = senders(desired);
    let client = |(gateway, client): &(IpAddr, IpAddr)| {
        Some((ClientKey { gateway: A::of(*gateway)?, client: A::of(*client)? }, ClientValue::default()))
    };
    image.clients = desired.clients.iter().filter_map(client).collect();
    image
}

fn flags_of(pod: &LocalPod) -> u32 {
    let all = [
        (pod.client, pod_flag::CLIENT),
        (pod.gateway, pod_flag::GATEWAY),
        (pod.by_kernel, pod_flag::BY_KERNEL),
        (pod.originating_only, pod_flag::ORIGINATING_ONLY),
        (pod.kernel_gateway, pod_flag::KERNEL_GATEWAY),
        (pod.kernel_client, pod_flag::KERNEL_CLIENT),
        (pod.new_clients, pod_flag::NEW_CLIENTS),
    ];
    all.iter().filter(|(on, _)| *on).fold(0, |flags, (_, flag)| flags | flag)
}

/// The gateways of each policy's Egresses, the terminating ones too: they keep their flows, and their last replies
/// are on the way. Likewise the addresses of the Egresses' Services: connection tracking may have put them in the
/// gateways' place by the time that a packet gets to the pod. Under no policy: those of all Egresses.
fn senders<A: HostAddr>(desired: &Desired) -> Vec<(GatewayKey<A>, GatewayValue)> {
    let pairs: BTreeSet<(u32, u32)> =
        desired.policies.iter().filter_map(|((policy, _), egress)| Some((*policy, (*egress)?))).collect();
    let mut senders: BTreeMap<(u32, IpAddr), GatewayValue> = BTreeMap::new();
    for (policy, id) in pairs {
        let Some(egress) = desired.egresses.get(&id) else { continue };
        for gateway in &egress.gateways {
            let flags = if gateway.ready { 0 } else { gateway_flag::NO_NEW };
            senders.entry((policy, gateway.address)).or_insert(GatewayValue { egress: id, flags });
        }
        for service in &egress.services {
            let value = GatewayValue { egress: id, flags: gateway_flag::NO_NEW };
            senders.entry((policy, *service)).or_insert(value);
        }
    }
    for address in &desired.all_gateways {
        senders.insert((NONE, *address), GatewayValue::default());
    }
    let entry = |((policy, address), value): ((u32, IpAddr), GatewayValue)| {
        Some((GatewayKey { policy, gateway: A::of(address)? }, value))
    };
    senders.into_iter().filter_map(entry).collect()
}

fn prefix<A: HostAddr>(net: &IpNet) -> Option<(u32, A)> {
    Some((u32::from(net.prefix_len()), A::of(net.network())?))
}

#[cfg(test)]
mod tests {
    use super::super::{Egress, Gateway};
    use super::*;

    fn desired() -> Desired {
        let gateway = |address: &str, ready| Gateway { address: address.parse().unwrap(), ready };
        Desired {
            pools: ["10.64.0.0/16", "fd64::/112"].map(|net| net.parse().unwrap()).into(),
            pods: vec![LocalPod {
                name: "default/client".into(),
                addresses: vec!["10.64.0.1".parse().unwrap(), "fd64::1".parse().unwrap()],
                ifindex: 7,
                mac: [2; 6],
                host_mac: [3; 6],
                mtu: 1500,
                policy: 5,
                client: true,
                originating_only: false,
                kernel_client: false,
                gateway: false,
                new_clients: false,
                kernel_gateway: false,
                by_kernel: false,
                shaped: false,
            }],
            policies: [
                ((5, "0.0.0.0/0".parse().unwrap()), Some(9)),
                ((5, "169.254.0.0/16".parse().unwrap()), None),
                ((5, "10.99.0.0/16".parse().unwrap()), Some(9)),
            ]
            .into(),
            ranges: [("10.0.0.0/8".parse().unwrap(), false), ("10.96.0.0/12".parse().unwrap(), true)].into(),
            egresses: [(
                9,
                Egress {
                    name: "internet/egress".into(),
                    gateways: vec![
                        gateway("10.64.0.9", true),
                        gateway("10.64.0.10", false),
                        gateway("fd64::9", false),
                    ],
                    services: vec!["10.96.0.20".parse().unwrap()],
                    sport_auto: true,
                    affinity: Some(60),
                    originating_only: false,
                },
            )]
            .into(),
            all_gateways: ["10.64.0.9".parse().unwrap()].into(),
            clients: [("10.64.0.9".parse().unwrap(), "10.64.0.1".parse().unwrap())].into(),
            any_sender: false,
            own_ports: [].into(),
            quota: 0,
            uplinks: [2].into(),
            forward: true,
            host_stack: false,
            fast_udp: true,
            fou_port: 5555,
            mark: 0x2000,
        }
    }

    #[test]
    fn a_pod_is_found_by_each_of_its_addresses() {
        let value = PodValue {
            ifindex: 7,
            policy: 5,
            flags: pod_flag::CLIENT,
            mac: [2; 6],
            host_mac: [3; 6],
            mtu: 1500,
        };
        assert_eq!(family::<[u8; 4]>(&desired()).pods, [([10, 64, 0, 1], value)]);
        assert_eq!(family::<[u8; 16]>(&desired()).pods.len(), 1);
    }

    #[test]
    fn policy_prefixes_count_the_policy_id() {
        let image = family::<[u8; 4]>(&desired());
        let key = |destination| PolicyKey { policy: 5, destination };
        assert!(image.policy.contains(&((32, key([0; 4])), 9)));
        assert!(image.policy.contains(&((48, key([169, 254, 0, 0])), coil_packet::abi::NONE)));
        assert!(family::<[u8; 16]>(&desired()).policy.is_empty());
    }

    #[test]
    fn ranges_of_the_cluster_are_under_no_policy() {
        let image = family::<[u8; 4]>(&desired());
        let of: Vec<_> = image.policy.iter().filter(|((_, key), _)| key.policy == NONE).collect();
        let key = |destination| PolicyKey { policy: NONE, destination };
        let services = ((44, key([10, 96, 0, 0])), cluster_range::CLUSTER);
        assert_eq!(of, [&services, &((40, key([10, 0, 0, 0])), cluster_range::PRIVATE)]);
    }

    /// A client never has a shorter prefix without the longer ones that are no egress.
    #[test]
    fn policies_are_written_from_the_longest_prefix_to_the_shortest() {
        let lengths: Vec<u32> =
            family::<[u8; 4]>(&desired()).policy.iter().map(|((len, _), _)| *len).collect();
        assert_eq!(lengths, [48, 48, 44, 40, 32]);
    }

    #[test]
    fn a_terminating_gateway_gets_no_new_flows_and_may_still_send() {
        let v4 = family::<[u8; 4]>(&desired());
        assert_eq!(v4.maglev[0].1.gateways, 1);
        assert_eq!(egress_flag::affinity_seconds(v4.maglev[0].1.flags), 60);
        assert!(v4.maglev[0].1.slots.iter().all(|slot| *slot == [10, 64, 0, 9]));
        let flags = |policy: u32, gateway: [u8; 4]| {
            let of = |(key, _): &&(GatewayKey<[u8; 4]>, _)| (key.policy, key.gateway) == (policy, gateway);
            v4.gateways.iter().find(of).map(|(_, value)| value.flags)
        };
        assert_eq!(
            (flags(5, [10, 64, 0, 9]), flags(5, [10, 64, 0, 10])),
            (Some(0), Some(gateway_flag::NO_NEW))
        );
        assert_eq!(flags(5, [10, 96, 0, 20]), Some(gateway_flag::NO_NEW), "what clients with tunnels dial");
        assert_eq!((flags(NONE, [10, 64, 0, 9]), v4.gateways.len()), (Some(0), 4));
        let client = ClientKey { gateway: [10, 64, 0, 9], client: [10, 64, 0, 1] };
        assert_eq!(v4.clients, [(client, ClientValue::default())]);
        let v6 = family::<[u8; 16]>(&desired());
        assert!(v6.clients.is_empty());
        assert_eq!(v6.maglev[0].1.gateways, 0, "an Egress without a ready gateway of the family drops");
    }
}
