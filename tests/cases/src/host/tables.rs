//! What the maps of a node in memory answer.

use std::{collections::hash_map, net::IpAddr};

use coil_packet::{
    Family, Fib, FibQuery, Full, Insert, NextHop, Tables,
    abi::{
        AffinityKey, AffinityValue, ClientKey, Config, FlowKey, FlowValue, FragKey, FragValue, HOPS, NONE,
        NatKey, NatRevKey, NatRevValue, NatValue, PathKey, PathValue, PinKey, PinValue, PodValue, Way,
        config_flag, egress_flag, gateway_flag, pod_flag,
    },
    hash,
    nat::Tallied,
};

use super::{HostAddr, Node};
use crate::{
    Route,
    world::{self, BESIDE, MTU, POLICY, Role, UPLINK, longest},
};

impl<A: HostAddr> Tables<A> for Node<A> {
    fn config(&self) -> Config {
        let udp = config_flag::FAST_UDP | config_flag::MARK_UDP;
        let flags = match (self.host_stack, self.fast_udp) {
            (true, _) => config_flag::HOST_STACK,
            (false, false) => config_flag::FORWARD | config_flag::MARK,
            (false, true) => config_flag::FORWARD | config_flag::MARK | udp,
        };
        Config { flags, fou_port: 5555, pad: 0, mark: 0x2000, epoch: self.epoch.get(), quota: self.quota }
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn pod(&self, addr: &A) -> Option<PodValue> {
        let (_, ifindex, role) = *self.world.pods.iter().find(|pod| pod.0 == (*addr).into())?;
        let (policy, flags) = match role {
            Role::Plain => (0, 0),
            Role::Client => (POLICY, pod_flag::CLIENT | pod_flag::ORIGINATING_ONLY),
            Role::Queued => (POLICY, pod_flag::CLIENT | pod_flag::BY_KERNEL),
            Role::KernelClient => (POLICY, pod_flag::KERNEL_CLIENT),
            Role::Gateway => (0, pod_flag::GATEWAY),
            Role::Both => (POLICY, pod_flag::GATEWAY | pod_flag::KERNEL_CLIENT),
            Role::KernelGateway => (0, pod_flag::GATEWAY | pod_flag::KERNEL_GATEWAY | pod_flag::NEW_CLIENTS),
        };
        let (mac, host_mac) = (world::pod_mac(ifindex), world::host_mac(ifindex));
        Some(PodValue { ifindex, policy, flags, mac, host_mac, mtu: world::pod_mtu(ifindex) })
    }

    fn in_pools(&self, addr: &A) -> bool {
        let pools: Vec<_> = self.world.pools.iter().map(|pool| (*pool, ())).collect();
        longest(&pools, (*addr).into()).is_some()
    }

    fn is_uplink(&self, ifindex: u32) -> bool {
        ifindex == UPLINK
    }

    fn policy(&self, policy: u32, dst: &A) -> Option<u32> {
        match policy {
            POLICY => longest(&self.world.policy, (*dst).into()).flatten(),
            NONE => longest(&self.world.ranges, (*dst).into()),
            _ => None,
        }
    }

    fn egress_flags(&self, egress: u32) -> Option<u32> {
        let (_, _, auto) = self.world.egresses.iter().find(|e| e.0 == egress)?;
        let affinity = if egress == world::AFFINE { egress_flag::affinity(world::AFFINITY) } else { 0 };
        let originating = if egress == world::ORIGINATING { egress_flag::ORIGINATING_ONLY } else { 0 };
        Some(affinity | originating | if *auto { egress_flag::SPORT_AUTO } else { 0 })
    }

    fn gateway(&self, egress: u32, hash: u32) -> Option<A> {
        let (_, gateways, _) = self.world.egresses.iter().find(|e| e.0 == egress)?;
        let ready: Vec<_> = gateways.iter().filter(|g| !self.world.leaving.contains(g)).collect();
        Some(A::of(**ready.get(hash::slot(hash).checked_rem(ready.len())?)?))
    }

    fn gateway_of(&self, policy: u32, addr: &A) -> Option<u32> {
        let addr = (*addr).into();
        let is_gateway = self.world.egresses.iter().any(|e| e.1.contains(&addr));
        let named = [POLICY, 0].contains(&policy) && (is_gateway || addr == self.world.service);
        let known = named || policy == 0 && self.world.strange.contains(&addr);
        let flags = if self.world.leaving.contains(&addr) { gateway_flag::NO_NEW } else { 0 };
        known.then_some(if policy == 0 { 0 } else { flags })
    }

    fn is_client(&self, key: &ClientKey<A>) -> bool {
        self.world.clients.contains(&(key.gateway.into(), key.client.into()))
    }

    fn with_pin<R>(&mut self, key: &PinKey<A>, work: impl FnOnce(&mut PinValue<A>) -> R) -> Option<R> {
        self.pins.get_mut(key).map(work)
    }

    fn put_pin(&mut self, key: &PinKey<A>, value: &PinValue<A>) {
        self.pins.insert(*key, *value);
    }

    fn with_affinity<R>(
        &mut self,
        key: &AffinityKey<A>,
        work: impl FnOnce(&mut AffinityValue<A>) -> R,
    ) -> Option<R> {
        self.affinity.get_mut(key).map(work)
    }

    fn put_affinity(&mut self, key: &AffinityKey<A>, value: &AffinityValue<A>) {
        self.affinity.insert(*key, *value);
    }

    fn frag(&self, key: &FragKey<A>) -> Option<FragValue> {
        self.frags.get(key).copied()
    }

    fn put_frag(&mut self, key: &FragKey<A>, value: &FragValue) {
        self.frags.insert(*key, *value);
    }

    fn path(&self, key: &PathKey<A>) -> Option<PathValue> {
        self.paths.get(key).copied()
    }

    fn put_path(&mut self, key: &PathKey<A>, value: &PathValue) {
        self.paths.insert(*key, *value);
    }

    fn ports(&self, word: u32) -> u64 {
        self.ports.get(&word).copied().unwrap_or_default()
    }

    fn note_ports(&mut self, word: u32, bits: u64) {
        *self.ports.entry(word).or_default() |= bits;
    }

    fn own_ports(&self, word: u32) -> u64 {
        self.own_ports.get(&word).copied().unwrap_or_default()
    }

    fn tally(&mut self, gateway: &A, what: Tallied, _len: u32) {
        self.tallies.push((*gateway, what));
    }

    fn borrow_port(&mut self, client: &A, quota: u32) -> bool {
        let lent = self.lent.entry(*client).or_default();
        *lent += 1;
        quota == 0 || *lent <= quota
    }

    fn with_flow<R>(&mut self, key: &FlowKey<A>, work: impl FnOnce(&mut FlowValue) -> R) -> Option<R> {
        self.flows.iter_mut().find(|(k, _)| k == key).map(|(_, v)| work(v))
    }

    fn add_flow(&mut self, key: &FlowKey<A>, value: &FlowValue) -> Result<(), Insert> {
        if self.flow(key).is_some() {
            return Err(Insert::Exists);
        }
        if self.flows.len() >= self.room {
            return Err(Insert::Full);
        }
        self.flows.push((*key, *value));
        Ok(())
    }

    fn lose_mark(&mut self) {
        self.lost = true;
    }

    fn lost_marks(&self) -> bool {
        self.lost
    }

    fn nat(&self, key: &NatKey<A>) -> Option<NatValue> {
        self.nat.get(key).copied()
    }

    fn with_nat<R>(&mut self, key: &NatKey<A>, work: impl FnOnce(&mut NatValue) -> R) -> Option<R> {
        self.nat.get_mut(key).map(work)
    }

    fn put_nat(&mut self, key: &NatKey<A>, value: &NatValue) -> Result<(), Full> {
        if !self.nat.contains_key(key) && self.nat.len() >= self.room {
            return Err(Full);
        }
        self.nat.insert(*key, *value);
        Ok(())
    }

    fn nat_rev(&self, key: &NatRevKey<A>) -> Option<NatRevValue<A>> {
        self.nat_rev.get(key).copied()
    }

    fn add_nat_rev(&mut self, key: &NatRevKey<A>, value: &NatRevValue<A>) -> Result<(), Insert> {
        let room = self.nat_rev.len() < self.room;
        match self.nat_rev.entry(*key) {
            hash_map::Entry::Occupied(_) => Err(Insert::Exists),
            hash_map::Entry::Vacant(_) if !room => Err(Insert::Full),
            hash_map::Entry::Vacant(entry) => {
                entry.insert(*value);
                Ok(())
            }
        }
    }

    fn remove_nat_rev(&mut self, key: &NatRevKey<A>) {
        self.nat_rev.remove(key);
    }

    fn with_nat_rev<R>(
        &mut self,
        key: &NatRevKey<A>,
        work: impl FnOnce(&mut NatRevValue<A>) -> R,
    ) -> Option<R> {
        self.nat_rev.get_mut(key).map(work)
    }

    fn hop(&self, slot: u32, way: &mut Way) -> bool {
        *way = self.hops.get(&slot).copied().unwrap_or_default();
        slot < HOPS
    }

    fn put_hop(&mut self, slot: u32, way: &Way) {
        self.hops.insert(slot, *way);
    }

    fn fib(&self, query: &FibQuery<A>) -> Fib {
        self.fib_queries.set(self.fib_queries.get() + 1);
        if self.overtaken {
            self.epoch.set(self.epoch.get() + 1);
        }
        // Each pod of the node has a route of its own.
        if let Some((_, ifindex, _)) = self.world.pods.iter().find(|(addr, ..)| *addr == query.dst.into()) {
            let via = NextHop { family: A::FAMILY, addr: [0; 16] };
            return Fib::Forward { ifindex: *ifindex, via, fits: MTU };
        }
        match longest(&self.world.routes, query.dst.into()) {
            Some(Route::Via(_) | Route::Beside(_)) if query.len > MTU => Fib::TooBig { mtu: MTU },
            Some(route @ (Route::Via(via) | Route::Beside(via))) => {
                let mut addr = [0; 16];
                let family = match via {
                    IpAddr::V4(v4) => {
                        addr[..4].copy_from_slice(&v4.octets());
                        Family::V4
                    }
                    IpAddr::V6(v6) => {
                        addr = v6.octets();
                        Family::V6
                    }
                };
                let ifindex = if matches!(route, Route::Via(_)) { UPLINK } else { BESIDE };
                Fib::Forward { ifindex, via: NextHop { family, addr }, fits: MTU }
            }
            Some(Route::Blackhole) | None => Fib::Refused,
        }
    }

    fn macs(&self) -> Option<[u8; 12]> {
        self.macs
    }
}
