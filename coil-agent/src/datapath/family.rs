//! The tables of one address family.

use std::net::{IpAddr, SocketAddr};

use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, MapData},
};
use coil_packet::{
    abi::{ClientKey, ClientValue, GatewayKey, GatewayValue, Maglev, NONE, PodValue, PolicyKey, PoolValue},
    flow::Limits,
};

use ipnet::IpNet;

use super::{
    DatapathError,
    conntrack::{self, Ends},
    flows::FlowTables,
    image::{FamilyImage, HostAddr, Prefix},
    leases::{Leases, Stepped},
    state::{StateNames, Survey, monotonic_seconds},
    table::{Changes, Table, plain, prefixed},
    take,
};

/// Names of a family's maps.
pub(super) struct Names {
    pods: &'static str,
    pools: &'static str,
    policy: &'static str,
    gateways: &'static str,
    clients: &'static str,
    maglev: &'static str,
    state: StateNames,
}

/// IPv4's maps.
pub(super) const V4: Names = Names {
    pods: "coil_pods4",
    pools: "coil_pools4",
    policy: "coil_policy4",
    gateways: "coil_gateways4",
    clients: "coil_clients4",
    maglev: "coil_maglev4",
    state: StateNames {
        flows: "coil_flows4",
        datagrams: "coil_datagrams4",
        nat: "coil_nat4",
        nat_rev: "coil_nat_rev4",
        pin: "coil_pin4",
        lent: "coil_lent4",
        returned: "coil_returned4",
        tally: "coil_tally4",
    },
};

/// IPv6's maps.
pub(super) const V6: Names = Names {
    pods: "coil_pods6",
    pools: "coil_pools6",
    policy: "coil_policy6",
    gateways: "coil_gateways6",
    clients: "coil_clients6",
    maglev: "coil_maglev6",
    state: StateNames {
        flows: "coil_flows6",
        datagrams: "coil_datagrams6",
        nat: "coil_nat6",
        nat_rev: "coil_nat_rev6",
        pin: "coil_pin6",
        lent: "coil_lent6",
        returned: "coil_returned6",
        tally: "coil_tally6",
    },
};

type Hash<K, V> = Table<K, V, HashMap<MapData, K, V>>;
type Lpm<K, V> = Table<Prefix<K>, V, LpmTrie<MapData, K, V>>;

/// The maps of one family.
pub(super) struct FamilyTables<A: HostAddr> {
    pods: Hash<A, PodValue>,
    pools: Lpm<A, PoolValue>,
    policy: Lpm<PolicyKey<A>, u32>,
    gateways: Hash<GatewayKey<A>, GatewayValue>,
    clients: Hash<ClientKey<A>, ClientValue>,
    maglev: Hash<u32, Maglev<A>>,
    pub(super) flows: FlowTables<A>,
    pub(super) leases: Leases<A>,
    /// Addresses of pods that were taken out, whose flows and translations the next sweep removes.
    gone: Vec<A>,
}

impl<A: HostAddr> FamilyTables<A> {
    /// Reads what the maps hold.
    pub(super) fn adopt(ebpf: &mut Ebpf, names: &Names) -> Result<Self, DatapathError> {
        Ok(Self {
            pods: Table::adopt(names.pods, take(ebpf, names.pods)?, plain)?,
            pools: Table::adopt(names.pools, take(ebpf, names.pools)?, prefixed)?,
            policy: Table::adopt(names.policy, take(ebpf, names.policy)?, prefixed)?,
            gateways: Table::adopt(names.gateways, take(ebpf, names.gateways)?, plain)?,
            clients: Table::adopt(names.clients, take(ebpf, names.clients)?, plain)?,
            maglev: Table::adopt(names.maglev, take(ebpf, names.maglev)?, plain)?,
            flows: FlowTables::adopt(ebpf, names.state)?,
            leases: Leases::adopt(ebpf, names.state)?,
            gone: Vec::new(),
        })
    }

    /// Adds and replaces, what others refer to first.
    pub(super) fn put_all(&mut self, image: &FamilyImage<A>) -> Result<Changes, DatapathError> {
        let new = |address: A| self.pods.get(&address).is_none();
        let is_going =
            |address: A| self.gone.iter().any(|gone| gone.same(address)) || self.leases.is_removing(address);
        if image.pods.iter().any(|(address, _)| new(*address) && is_going(*address)) {
            // A new pod starts without the flows of the one that had its address.
            let (now, gone) = (monotonic_seconds(), std::mem::take(&mut self.gone));
            self.flows.sweep(now, &conntrack::limits(), &gone)?;
            self.leases.forget(now, gone)?;
        }
        let mut changes = self.pools.put_all(&image.pools)?;
        changes += self.maglev.put_all(&image.maglev)?;
        changes += self.gateways.put_all(&image.gateways)?;
        changes += self.policy.put_all(&image.policy)?;
        // Before the gateways among the pods stop waiting for new clients.
        changes += self.clients.put_all(&image.clients)?;
        changes += self.pods.put_all(&image.pods)?;
        Ok(changes)
    }

    /// Addresses of the clients that the maps have.
    pub(super) fn clients(&self) -> impl Iterator<Item = IpAddr> {
        self.pods.iter().filter(|(_, pod)| pod.is_client()).map(|(address, _)| address.into())
    }

    /// What leads through which Egress, of whatever policy.
    pub(super) fn destinations(&self) -> impl Iterator<Item = (u32, IpNet)> {
        self.policy.iter().filter(|((_, key), _)| key.policy != NONE).filter_map(|((len, key), egress)| {
            let len = u8::try_from(len.checked_sub(u32::BITS)?).ok()?;
            let net = IpNet::new(key.destination.into(), len).ok()?;
            (egress != NONE).then_some((egress, net))
        })
    }

    /// Pods whose packets will be the kernel's, and are not yet.
    pub(super) fn become_slow(&self, image: &FamilyImage<A>) -> Vec<A> {
        let is_slow = |pod: &PodValue| pod.is_by_kernel();
        let new = |address: &A| self.pods.get(address).is_some_and(|pod| !is_slow(&pod));
        image.pods.iter().filter(|(address, pod)| is_slow(pod) && new(address)).map(|(a, _)| *a).collect()
    }

    /// Compares all of it with the maps; see [`Table::check`].
    pub(super) fn check(&mut self) -> Result<usize, DatapathError> {
        Ok(self.pods.check()?
            + self.pools.check()?
            + self.policy.check()?
            + self.gateways.check()?
            + self.clients.check()?
            + self.maglev.check()?)
    }

    /// Takes the pod with this link and these addresses out; an address that a newer pod has by now stays its.
    /// Its flows and translations lead nowhere without it; they are removed together with those of others, as
    /// all of the tables has to be read for that.
    pub(super) fn take_out(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Result<usize, DatapathError> {
        let mut gone: Vec<A> = addresses.iter().filter_map(|address| A::of(*address)).collect();
        gone.retain(|address| self.pods.get(address).is_none_or(|pod| pod.ifindex == ifindex));
        let removed = self.pods.remove(&gone)?;
        self.gone.extend(gone);
        Ok(removed)
    }

    /// Begins a new pass over the translations.
    pub(super) fn restart(&mut self) {
        self.gone.extend(self.leases.restart());
    }

    /// Removes flows that have run out, and those of pods that were taken out.
    pub(super) fn sweep_flows(&mut self, now: u32, limits: &Limits) -> Result<usize, DatapathError> {
        self.flows.sweep(now, limits, &self.gone)
    }

    /// Removes a part of the translations that have run out, and of those of pods that were taken out; see
    /// [`Leases::step`].
    pub(super) fn step(&mut self, now: u32, survey: &mut Survey) -> Result<Stepped, DatapathError> {
        self.leases.step(now, &mut self.gone, survey)
    }

    /// Removes in the other order. Flows and translations of a pod that is gone go with it: its
    /// address will be another pod's.
    pub(super) fn remove_others(
        &mut self,
        image: &FamilyImage<A>,
        now: u32,
        limits: &Limits,
    ) -> Result<usize, DatapathError> {
        let gone = self.pods.remove_others(&image.pods)?;
        if !gone.is_empty() {
            self.flows.sweep(now, limits, &gone)?;
            self.leases.forget(now, gone.clone())?;
        }
        let mut removed = gone.len();
        removed += self.policy.remove_others(&image.policy)?.len();
        removed += self.gateways.remove_others(&image.gateways)?.len();
        removed += self.clients.remove_others(&image.clients)?.len();
        removed += self.maglev.remove_others(&image.maglev)?.len();
        removed += self.pools.remove_others(&image.pools)?.len();
        Ok(removed)
    }

    /// Tells the kernel of the flows that it ran into; it chooses another port for its own connection then.
    pub(super) fn settle_clashes(&mut self) -> Result<usize, DatapathError> {
        let clashes = self.flows.clashes()?;
        for key in &clashes {
            let source = SocketAddr::new(key.low.into(), key.low_port);
            let destination = SocketAddr::new(key.high.into(), key.high_port);
            conntrack::tell(Ends { source, destination }).map_err(DatapathError::Conntrack)?;
            self.flows.settle(key)?;
        }
        Ok(clashes.len())
    }
}
