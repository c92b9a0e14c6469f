//! The translations of one family: what they are, and taking back what has run out, a bounded part at a time.
//!
//! A pass goes over all leases, then over all forward entries. It may take many steps; what is counted is settled at its
//! end.

use std::{collections::BTreeMap, net::IpAddr};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use coil_packet::{
    Addr,
    abi::{NatKey, NatRevKey, NatRevValue, NatValue, PinKey, PinValue, Tally},
    nat,
};

use super::{
    DatapathError,
    image::HostAddr,
    outgrown::Outgrown,
    state::{NatEntry, StateNames, Survey, all, remove},
    take,
    walk::{self, Walk},
};

/// The translations of one family.
pub(super) struct Leases<A: Addr> {
    names: StateNames,
    forward: HashMap<MapData, NatKey<A>, NatValue>,
    forward_walk: Walk,
    reverse: HashMap<MapData, NatRevKey<A>, NatRevValue<A>>,
    reverse_walk: Walk,
    pin: HashMap<MapData, PinKey<A>, PinValue<A>>,
    /// Ports that each client was ever lent, as the programs count.
    lent: HashMap<MapData, A, u32>,
    /// How many of these it has no more.
    returned: HashMap<MapData, A, u32>,
    /// What each gateway did for new flows.
    tally: HashMap<MapData, A, Tally>,
    pass: Option<Pass<A>>,
    /// A pass that was under way has ended before its time.
    cut: bool,
}

/// A pass over all of them.
struct Pass<A> {
    /// Whose leases are removed, run out or not.
    gone: Vec<A>,
    /// What clients were lent before it began: what is lent meanwhile counts as in use until the next one.
    lent: Vec<(A, u32)>,
    in_use: BTreeMap<IpAddr, u32>,
    /// All leases were seen.
    forward: bool,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stepped {
    /// Entries looked at.
    pub(super) seen: usize,
    /// Leases removed.
    pub(super) removed: usize,
    /// The pass has ended.
    pub(super) ended: bool,
}

impl<A: HostAddr> Leases<A> {
    pub(super) fn adopt(ebpf: &mut Ebpf, names: StateNames) -> Result<Self, DatapathError> {
        let (forward, forward_walk) = walk::take(ebpf, names.nat)?;
        let (reverse, reverse_walk) = walk::take(ebpf, names.nat_rev)?;
        Ok(Self {
            names,
            forward,
            forward_walk,
            reverse,
            reverse_walk,
            pin: take(ebpf, names.pin)?,
            lent: take(ebpf, names.lent)?,
            returned: take(ebpf, names.returned)?,
            tally: take(ebpf, names.tally)?,
            pass: None,
            cut: false,
        })
    }

    /// Moves in what maps of before hold. The reverse entries first: without its own a forward entry counts for nothing.
    pub(super) fn take_over(&mut self, outgrown: &Outgrown) -> Result<usize, DatapathError> {
        Ok(outgrown.move_to(self.names.nat_rev, &mut self.reverse)?
            + outgrown.move_to(self.names.nat, &mut self.forward)?
            + outgrown.move_to(self.names.pin, &mut self.pin)?
            + outgrown.move_to(self.names.lent, &mut self.lent)?
            + outgrown.move_to(self.names.returned, &mut self.returned)?)
    }

    /// The live ones.
    pub(super) fn live(&self, now: u32) -> Result<Vec<NatEntry>, DatapathError> {
        let mut entries = vec![];
        for (key, value) in all(&self.reverse, self.names.nat_rev)? {
            let protocol = u8::try_from(key.protocol).unwrap_or(0);
            if nat::expired(protocol, &value, now) {
                continue;
            }
            entries.push(NatEntry {
                gateway: key.gateway.into(),
                client: value.client.into(),
                remote: key.remote.into(),
                protocol,
                client_port: value.client_port,
                port: key.port,
                remote_port: key.remote_port,
                state: value.state,
                idle: now.saturating_sub(value.seen),
            });
        }
        Ok(entries)
    }

    /// What a gateway did for new flows.
    pub(super) fn tally(&self, gateway: A) -> Result<Tally, DatapathError> {
        match self.tally.get(&gateway, 0) {
            Ok(tally) => Ok(tally),
            Err(MapError::KeyNotFound) => Ok(Tally::default()),
            Err(source) => Err(DatapathError::Map { name: self.names.tally, action: "read it", source }),
        }
    }

    /// A part of a pass, which begins when none is under way; `gone` are addresses whose leases it removes. Those that
    /// stay are shown to `survey`.
    pub(super) fn step(
        &mut self,
        now: u32,
        gone: &mut Vec<A>,
        survey: &mut Survey,
    ) -> Result<Stepped, DatapathError> {
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => self.begin(std::mem::take(gone), survey)?,
        };
        let stepped = if pass.forward {
            self.step_forward(&mut pass)?
        } else {
            self.step_leases(now, &mut pass, Some(survey))?
        };
        if !stepped.ended {
            self.pass = Some(pass);
        }
        Ok(stepped)
    }

    /// Whether a pass is under way that removes the leases of an address.
    pub(super) fn is_removing(&self, address: A) -> bool {
        self.pass.as_ref().is_some_and(|pass| pass.gone.iter().any(|gone| gone.same(address)))
    }

    /// True once after a pass was cut off by [`Self::forget`].
    pub(super) const fn was_cut(&mut self) -> bool {
        std::mem::replace(&mut self.cut, false)
    }

    /// The next step begins a pass; the answer is whose leases the one under way was to remove.
    pub(super) fn restart(&mut self) -> Vec<A> {
        self.reverse_walk.restart();
        self.forward_walk.restart();
        self.pass.take().map(|pass| pass.gone).unwrap_or_default()
    }

    /// Removes the leases of some addresses, all at once: the addresses are to be others'. A pass that is under way
    /// begins anew.
    pub(super) fn forget(&mut self, now: u32, mut gone: Vec<A>) -> Result<usize, DatapathError> {
        self.cut = true;
        gone.extend(self.restart());
        for address in &gone {
            remove(&mut self.tally, address, self.names.tally)?;
        }
        let mut pass =
            Pass { gone, lent: all(&self.lent, self.names.lent)?, in_use: BTreeMap::new(), forward: false };
        let mut removed = 0;
        loop {
            let stepped = if pass.forward {
                self.step_forward(&mut pass)?
            } else {
                self.step_leases(now, &mut pass, None)?
            };
            removed += stepped.removed;
            if stepped.ended {
                return Ok(removed);
            }
        }
    }

    fn begin(&mut self, gone: Vec<A>, survey: &mut Survey) -> Result<Pass<A>, DatapathError> {
        for address in &gone {
            remove(&mut self.tally, address, self.names.tally)?;
        }
        for (gateway, tally) in all(&self.tally, self.names.tally)? {
            survey.counting.begins(gateway.into(), tally.lent.packets);
        }
        let lent = all(&self.lent, self.names.lent)?;
        Ok(Pass { gone, lent, in_use: BTreeMap::new(), forward: false })
    }

    fn step_leases(
        &mut self,
        now: u32,
        pass: &mut Pass<A>,
        mut survey: Option<&mut Survey>,
    ) -> Result<Stepped, DatapathError> {
        let part = self.reverse_walk.step::<NatRevKey<A>, NatRevValue<A>>()?;
        let mut stepped = Stepped { seen: part.entries.len(), ..Stepped::default() };
        for (key, value) in part.entries {
            let protocol = u8::try_from(key.protocol).unwrap_or(0);
            let is_gone = |addr: A| pass.gone.iter().any(|gone| gone.same(addr));
            if nat::expired(protocol, &value, now) || is_gone(key.gateway) || is_gone(value.client) {
                remove(&mut self.reverse, &key, self.names.nat_rev)?;
                stepped.removed += 1;
            } else {
                *pass.in_use.entry(value.client.into()).or_default() += 1;
                if let Some(survey) = &mut survey {
                    survey.look.saw(&key);
                    survey.counting.saw(&key, &value);
                }
            }
        }
        if part.last {
            self.settle(pass)?;
            pass.forward = true;
        }
        Ok(stepped)
    }

    /// A forward entry counts only while its reverse entry points back. The programs insert that first, so an entry
    /// without one is left over.
    fn step_forward(&mut self, pass: &mut Pass<A>) -> Result<Stepped, DatapathError> {
        let part = self.forward_walk.step::<NatKey<A>, NatValue>()?;
        let stepped = Stepped { seen: part.entries.len(), removed: 0, ended: part.last };
        for (key, value) in part.entries {
            let reverse = NatRevKey {
                gateway: key.gateway,
                remote: key.remote,
                port: value.port,
                remote_port: key.remote_port,
                protocol: key.protocol,
            };
            let lease = self.reverse.get(&reverse, 0);
            let points_back = lease
                .is_ok_and(|lease| lease.client.same(key.client) && lease.client_port == key.client_port);
            if !points_back {
                remove(&mut self.forward, &key, self.names.nat)?;
            }
        }
        if part.last {
            pass.forward = false;
        }
        Ok(stepped)
    }

    /// Tells the programs how many of the ports that they lent have come back.
    fn settle(&mut self, pass: &Pass<A>) -> Result<(), DatapathError> {
        for (client, count) in &pass.lent {
            let has = pass.in_use.get(&(*client).into()).copied().unwrap_or_default();
            // What was lent since the pass began is not counted: then the client has some after all.
            if has == 0 && self.lent.get(client, 0).is_ok_and(|now| now == *count) {
                remove(&mut self.returned, client, self.names.returned)?;
                remove(&mut self.lent, client, self.names.lent)?;
                continue;
            }
            let name = self.names.returned;
            self.returned
                .insert(*client, count.wrapping_sub(has), 0)
                .map_err(|source| DatapathError::Map { name, action: "change an entry", source })?;
        }
        Ok(())
    }
}
