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
    pairs::{self, Store as _, Turn},
    state::{NatEntry, StateNames, Survey, all, remove},
    take,
    walk::Walked,
};

/// The translations of one family.
pub(super) struct Leases<A: Addr> {
    names: StateNames,
    forward: Walked<NatKey<A>, NatValue>,
    reverse: Walked<NatRevKey<A>, NatRevValue<A>>,
    pin: HashMap<MapData, PinKey<A>, PinValue<A>>,
    /// Ports that each client was ever lent, as the programs count.
    lent: Walked<A, u32>,
    /// The programs had no room to count what some client was lent.
    uncounted: bool,
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
    /// When it began, in seconds of the monotonic clock.
    began: u32,
    in_use: BTreeMap<IpAddr, InUse>,
    /// All leases were seen.
    forward: bool,
}

impl<A: HostAddr> Pass<A> {
    /// Whether a lease is over.
    fn takes(&self, key: &NatRevKey<A>, lease: &NatRevValue<A>, now: u32) -> bool {
        let is_gone = |address: A| self.gone.iter().any(|gone| gone.same(address));
        let protocol = u8::try_from(key.protocol).unwrap_or(0);
        nat::expired(protocol, lease, now) || is_gone(key.gateway) || is_gone(lease.client)
    }
}

/// Ports that a client has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct InUse {
    /// All that were seen.
    seen: u32,
    /// Those of them that may have been lent since the pass began: they were used since.
    recent: u32,
}

impl InUse {
    /// How many of the ports that a client was ever lent have come back. The programs count what it was lent since the
    /// pass began by themselves: those of them that the pass has seen are not to count twice. Which these are nobody
    /// knows; with the most that they can be, a client may have as many too much as it was lent during one pass, and is
    /// never refused what it may have.
    fn returned(self, lent_before: u32, lent_now: u32) -> u32 {
        let twice = self.recent.min(lent_now.wrapping_sub(lent_before));
        lent_before.wrapping_sub(self.seen).wrapping_add(twice)
    }
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
        Ok(Self {
            names,
            forward: Walked::adopt(ebpf, names.nat)?,
            reverse: Walked::adopt(ebpf, names.nat_rev)?,
            pin: take(ebpf, names.pin)?,
            lent: Walked::adopt(ebpf, names.lent)?,
            // What came before is not known.
            uncounted: true,
            returned: take(ebpf, names.returned)?,
            tally: take(ebpf, names.tally)?,
            pass: None,
            cut: false,
        })
    }

    /// Moves in what maps of before hold. The reverse entries first: without its own a forward entry counts for nothing.
    pub(super) fn take_over(&mut self, outgrown: &Outgrown) -> Result<usize, DatapathError> {
        Ok(outgrown.move_to(self.names.nat_rev, &mut self.reverse.map)?
            + outgrown.move_to(self.names.nat, &mut self.forward.map)?
            + outgrown.move_to(self.names.pin, &mut self.pin)?
            + outgrown.move_to(self.names.lent, &mut self.lent.map)?
            + outgrown.move_to(self.names.returned, &mut self.returned)?)
    }

    /// The live ones.
    pub(super) fn live(&self, now: u32) -> Result<Vec<NatEntry>, DatapathError> {
        let mut entries = vec![];
        for (key, value) in all(&self.reverse.map, self.names.nat_rev)? {
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
            None => self.begin(now, std::mem::take(gone), survey)?,
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
        self.reverse.restart();
        self.forward.restart();
        self.pass.take().map(|pass| pass.gone).unwrap_or_default()
    }

    /// Removes the leases of some addresses, all at once: the addresses are to be others'. A pass that is under way
    /// begins anew, unless none of its addresses has any.
    pub(super) fn forget(&mut self, now: u32, mut gone: Vec<A>) -> Result<usize, DatapathError> {
        gone.extend(self.pass.iter_mut().flat_map(|pass| std::mem::take(&mut pass.gone)));
        let mut with_leases = vec![];
        for address in gone {
            if self.may_have_leases(address)? {
                with_leases.push(address);
            }
        }
        if with_leases.is_empty() {
            return Ok(0);
        }
        self.cut = true;
        self.restart();
        let mut pass = self.pass(now, with_leases)?;
        let mut removed = 0;
        // Each lease takes its forward entry with it.
        while !pass.forward {
            removed += self.step_leases(now, &mut pass, None)?.removed;
        }
        Ok(removed)
    }

    /// False for an address that was neither lent a port nor has lent one, as far as that is counted.
    fn may_have_leases(&self, address: A) -> Result<bool, DatapathError> {
        Ok(self.uncounted || self.lent.look(&address)?.is_some() || self.tally.get(&address, 0).is_ok())
    }

    fn begin(&mut self, now: u32, gone: Vec<A>, survey: &mut Survey) -> Result<Pass<A>, DatapathError> {
        let pass = self.pass(now, gone)?;
        for (gateway, tally) in all(&self.tally, self.names.tally)? {
            if !pass.gone.iter().any(|gone| gone.same(gateway)) {
                survey.counting.begins(gateway.into(), tally.lent.packets);
            }
        }
        Ok(pass)
    }

    fn pass(&mut self, now: u32, gone: Vec<A>) -> Result<Pass<A>, DatapathError> {
        let lent = all(&self.lent.map, self.names.lent)?;
        self.uncounted = lent.len() >= self.lent.most as usize;
        Ok(Pass { gone, lent, began: now, in_use: BTreeMap::new(), forward: false })
    }

    fn step_leases(
        &mut self,
        now: u32,
        pass: &mut Pass<A>,
        mut survey: Option<&mut Survey>,
    ) -> Result<Stepped, DatapathError> {
        let part = self.reverse.step()?;
        let mut stepped = Stepped { seen: part.entries.len(), ..Stepped::default() };
        for (key, read) in part.entries {
            let over = |lease: &NatRevValue<A>| pass.takes(&key, lease, now);
            let turn = if over(&read) {
                pairs::end(&mut self.reverse, &mut self.forward, &key, over)?
            } else {
                Turn::Stays(read)
            };
            match turn {
                Turn::Over => stepped.removed += 1,
                Turn::Absent => {}
                Turn::Stays(lease) => {
                    let in_use = pass.in_use.entry(lease.client.into()).or_default();
                    in_use.seen += 1;
                    in_use.recent += u32::from(lease.seen >= pass.began);
                    if let Some(survey) = &mut survey {
                        survey.look.saw(&key);
                        survey.counting.saw(&key, &lease);
                    }
                }
            }
        }
        if part.last {
            self.settle(pass)?;
            pass.forward = true;
        }
        Ok(stepped)
    }

    /// What is left over of forward entries: a lease takes its own with it.
    fn step_forward(&mut self, pass: &mut Pass<A>) -> Result<Stepped, DatapathError> {
        let part = self.forward.step()?;
        let stepped = Stepped { seen: part.entries.len(), removed: 0, ended: part.last };
        for (key, value) in part.entries {
            if !pairs::stands(&self.reverse, &key, value.port)? {
                pairs::drop_translation(&self.reverse, &mut self.forward, &key)?;
            }
        }
        if part.last {
            pass.forward = false;
        }
        Ok(stepped)
    }

    /// Writes how many of the ports that a client was ever lent have come back.
    fn give_back(&mut self, client: &A, count: u32) -> Result<(), DatapathError> {
        let name = self.names.returned;
        self.returned.insert(*client, count, 0).map_err(|source| DatapathError::Map {
            name,
            action: "change an entry",
            source,
        })
    }

    /// Tells the programs how many of the ports that they lent have come back.
    fn settle(&mut self, pass: &Pass<A>) -> Result<(), DatapathError> {
        for (client, before) in &pass.lent {
            let has = pass.in_use.get(&(*client).into()).copied().unwrap_or_default();
            let Some(now) = self.lent.look(client)? else { continue };
            // What was lent since the pass began is not counted: then the client has some after all.
            if has.seen == 0 && now == *before {
                remove(&mut self.returned, client, self.names.returned)?;
                match self.lent.take(client)? {
                    // It is lent again: what came back counts first, or it would seem to have all of that.
                    Some(taken) if taken != now => {
                        self.give_back(client, has.returned(*before, taken))?;
                        let _ = self.lent.put_back(client, &taken)?;
                    }
                    _ => {}
                }
                continue;
            }
            self.give_back(client, has.returned(*before, now))?;
        }
        // Only now: an address without a tally counts as one that has lent nothing.
        for address in &pass.gone {
            remove(&mut self.tally, address, self.names.tally)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_during_a_pass_counts_once() {
        /// What the programs take for in use: they have lent `now` in all.
        fn used(in_use: InUse, before: u32, now: u32) -> u32 {
            now.wrapping_sub(in_use.returned(before, now))
        }
        let seen = |seen, recent| InUse { seen, recent };
        assert_eq!(used(seen(300, 0), 1000, 1000), 300, "nothing was lent meanwhile");
        assert_eq!(
            used(seen(300, 0), 1000, 1050),
            350,
            "the pass came too early for what was lent meanwhile"
        );
        assert_eq!(used(seen(350, 50), 1000, 1050), 350, "the pass saw it");
        assert_eq!(used(seen(350, 350), 1000, 1050), 350, "old ones are in use, too");
        assert_eq!(used(seen(320, 20), 1000, 1050), 350, "it saw some of it");
        assert_eq!(used(seen(30, 30), 5, 35), 30, "all of it is new, and what there was is over");
        assert_eq!(used(seen(7, 2), u32::MAX - 1, 3), 10, "the count has begun anew");
    }
}
