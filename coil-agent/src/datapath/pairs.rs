//! Taking leases and translations back while the programs go on using them.
//!
//! A pass decides by what it has read, up to thousands of entries before their turn comes. Meanwhile a packet may have
//! used one, or somebody else may have been lent its port. So each one is looked at again when its turn comes, and what
//! then comes out of the map in one step is looked at once more: what should have stayed is put back.
//!
//! What is left: between that step and the putting back, about a microsecond, a packet of such a flow finds no lease. A
//! reply is dropped, and a client's packet is lent a port anew: its own if that is the client's, else another one. Before
//! Linux 5.14 looking and removing are two steps, and what happens between them is not seen.

use coil_packet::{
    Addr,
    abi::{Known, NatKey, NatRevKey, NatRevValue, NatValue},
    nat,
};

use super::DatapathError;

/// One of the two tables.
pub(super) trait Store<K, V> {
    /// The entry as it is now.
    fn look(&self, key: &K) -> Result<Option<V>, DatapathError>;
    /// Removes it: the answer is what it was.
    fn take(&mut self, key: &K) -> Result<Option<V>, DatapathError>;
    /// Puts it where nothing is. False when something is.
    fn put_back(&mut self, key: &K, value: &V) -> Result<bool, DatapathError>;
}

/// What became of a lease whose turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn<A> {
    /// It was over, and is gone with its translation.
    Over,
    /// It stays, as it is now.
    Stays(NatRevValue<A>),
    /// Nothing is there any more.
    Absent,
}

/// Takes a lease back if it is over by now, and its translation with it: no half of a pair stays.
pub(super) fn end<A: Addr>(
    leases: &mut impl Store<NatRevKey<A>, NatRevValue<A>>,
    translations: &mut impl Store<NatKey<A>, NatValue>,
    key: &NatRevKey<A>,
    over: impl Fn(&NatRevValue<A>) -> bool,
) -> Result<Turn<A>, DatapathError> {
    match leases.look(key)? {
        None => return Ok(Turn::Absent),
        Some(lease) if !over(&lease) => return Ok(Turn::Stays(lease)),
        Some(_) => {}
    }
    let Some(lease) = leases.take(key)? else { return Ok(Turn::Absent) };
    let is_over = over(&lease);
    if !is_over && leases.put_back(key, &lease)? {
        return Ok(Turn::Stays(lease));
    }
    // It was over; or somebody else was lent the port just now, and the translation must not send in his name.
    drop_translation(leases, translations, &translation_of(key, &lease))?;
    Ok(if is_over { Turn::Over } else { Turn::Absent })
}

/// Removes a translation whose lease does not point back. The programs insert the lease first, so one without is left
/// over.
pub(super) fn drop_translation<A: Addr>(
    leases: &impl Store<NatRevKey<A>, NatRevValue<A>>,
    translations: &mut impl Store<NatKey<A>, NatValue>,
    key: &NatKey<A>,
) -> Result<(), DatapathError> {
    match translations.look(key)? {
        Some(value) if !stands(leases, key, value.port)? => {}
        _ => return Ok(()),
    }
    let Some(value) = translations.take(key)? else { return Ok(()) };
    if stands(leases, key, value.port)? {
        // Its next packet decides about the way again.
        translations.put_back(key, &NatValue { known: Known::default(), ..value })?;
    }
    Ok(())
}

/// Whether a translation to a port has its lease.
pub(super) fn stands<A: Addr>(
    leases: &impl Store<NatRevKey<A>, NatRevValue<A>>,
    key: &NatKey<A>,
    port: u16,
) -> Result<bool, DatapathError> {
    let lease = leases.look(&nat::reverse_key(key, port))?;
    Ok(lease.is_some_and(|lease| nat::points_back(&lease, key)))
}

/// The translation that belongs to a lease.
const fn translation_of<A: Addr>(key: &NatRevKey<A>, lease: &NatRevValue<A>) -> NatKey<A> {
    NatKey {
        gateway: key.gateway,
        client: lease.client,
        remote: key.remote,
        client_port: lease.client_port,
        remote_port: key.remote_port,
        protocol: key.protocol,
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::HashMap, hash::Hash, rc::Rc};

    use super::*;

    type V4 = [u8; 4];
    type Lease = (NatRevKey<V4>, NatRevValue<V4>);
    const GATEWAY: V4 = [10, 64, 0, 3];
    const REMOTE: V4 = [198, 51, 100, 1];
    const NOW: u32 = 1000;

    type Map<K, V> = Rc<RefCell<HashMap<K, V>>>;
    type Moment<K, V> = Option<Box<dyn FnOnce(&mut HashMap<K, V>)>>;

    /// A table, and what the programs do to it just before and just after an entry is taken.
    struct Fake<K, V> {
        map: Map<K, V>,
        before: Moment<K, V>,
        after: Moment<K, V>,
    }

    impl<K, V> Fake<K, V> {
        fn of(map: &Map<K, V>) -> Self {
            Self { map: map.clone(), before: None, after: None }
        }
    }

    impl<K: Copy + Eq + Hash, V: Copy> Store<K, V> for Fake<K, V> {
        fn look(&self, key: &K) -> Result<Option<V>, DatapathError> {
            Ok(self.map.borrow().get(key).copied())
        }

        fn take(&mut self, key: &K) -> Result<Option<V>, DatapathError> {
            self.before.take().into_iter().for_each(|program| program(&mut self.map.borrow_mut()));
            let taken = self.map.borrow_mut().remove(key);
            self.after.take().into_iter().for_each(|program| program(&mut self.map.borrow_mut()));
            Ok(taken)
        }

        fn put_back(&mut self, key: &K, value: &V) -> Result<bool, DatapathError> {
            let free = !self.map.borrow().contains_key(key);
            if free {
                self.map.borrow_mut().insert(*key, *value);
            }
            Ok(free)
        }
    }

    fn lease(client: u8, seen: u32) -> Lease {
        let key = NatRevKey { gateway: GATEWAY, remote: REMOTE, port: 2000, remote_port: 443, protocol: 17 };
        let client = [10, 64, 1, client];
        let value = NatRevValue { client, seen, client_port: 1, state: 1, pad: 0, known: Known::default() };
        (key, value)
    }

    fn translation((key, value): &Lease) -> (NatKey<V4>, NatValue) {
        let known = Known { stamp: 7, hop: 9 };
        (translation_of(key, value), NatValue { port: key.port, pad: 0, known })
    }

    struct Tables {
        leases: Map<NatRevKey<V4>, NatRevValue<V4>>,
        translations: Map<NatKey<V4>, NatValue>,
    }

    impl Tables {
        fn with(leases: &[Lease]) -> Self {
            let translations = leases.iter().map(translation).collect();
            Self {
                leases: Rc::new(RefCell::new(leases.iter().copied().collect())),
                translations: Rc::new(RefCell::new(translations)),
            }
        }

        fn has(&self, lease: &Lease) -> (bool, bool) {
            let there = self.leases.borrow().get(&lease.0) == Some(&lease.1);
            (there, self.translations.borrow().contains_key(&translation(lease).0))
        }
    }

    fn over(value: &NatRevValue<V4>) -> bool {
        nat::expired(17, value, NOW)
    }

    fn ended(leases: &mut Fake<NatRevKey<V4>, NatRevValue<V4>>, tables: &Tables) -> Turn<V4> {
        let mut translations = Fake::of(&tables.translations);
        end(leases, &mut translations, &lease(1, 0).0, over).unwrap()
    }

    #[test]
    fn a_lease_goes_with_its_translation() {
        let old = lease(1, 0);
        let tables = Tables::with(&[old]);
        assert_eq!(ended(&mut Fake::of(&tables.leases), &tables), Turn::Over);
        assert_eq!(tables.has(&old), (false, false));
        assert_eq!(ended(&mut Fake::of(&tables.leases), &tables), Turn::Absent);
    }

    #[test]
    fn a_lease_that_was_used_since_it_was_read_stays() {
        let used = lease(1, NOW);
        let tables = Tables::with(&[used]);
        assert_eq!(ended(&mut Fake::of(&tables.leases), &tables), Turn::Stays(used.1));
        assert_eq!(tables.has(&used), (true, true));
    }

    #[test]
    fn a_port_that_another_is_lent_at_the_last_moment_stays_his() {
        let (old, other) = (lease(1, 0), lease(2, NOW));
        let tables = Tables::with(&[old]);
        tables.translations.borrow_mut().extend([translation(&other)]);
        let mut leases = Fake::of(&tables.leases);
        leases.before = Some(Box::new(move |map| {
            map.insert(other.0, other.1);
        }));
        assert_eq!(ended(&mut leases, &tables), Turn::Stays(other.1));
        assert_eq!(tables.has(&other), (true, true));
    }

    #[test]
    fn whoever_loses_his_port_while_it_is_put_back_sends_nothing_in_its_name() {
        let (old, used, other) = (lease(1, 0), lease(1, NOW), lease(2, NOW));
        let tables = Tables::with(&[old]);
        tables.translations.borrow_mut().extend([translation(&other)]);
        let mut leases = Fake::of(&tables.leases);
        leases.before = Some(Box::new(move |map| {
            map.insert(used.0, used.1);
        }));
        leases.after = Some(Box::new(move |map| {
            map.insert(other.0, other.1);
        }));
        assert_eq!(ended(&mut leases, &tables), Turn::Absent);
        assert_eq!((tables.has(&used), tables.has(&other)), ((false, false), (true, true)));
    }

    #[test]
    fn a_pair_that_is_made_anew_meanwhile_stays_whole() {
        let (old, new) = (lease(1, 0), lease(1, NOW));
        let tables = Tables::with(&[old]);
        let mut translations = Fake::of(&tables.translations);
        let lent_again = tables.leases.clone();
        translations.before = Some(Box::new(move |_| {
            lent_again.borrow_mut().insert(new.0, new.1);
        }));
        let turn = end(&mut Fake::of(&tables.leases), &mut translations, &old.0, over).unwrap();
        assert_eq!((turn, tables.has(&new)), (Turn::Over, (true, true)));
        let value = tables.translations.borrow()[&translation(&new).0];
        assert_eq!((value.port, value.known), (2000, Known::default()), "the way is decided again");
    }

    #[test]
    fn a_translation_without_its_lease_is_left_over() {
        let (mine, other) = (lease(1, NOW), lease(2, NOW));
        let tables = Tables::with(&[mine]);
        let mut translations = Fake::of(&tables.translations);
        let key = translation(&mine).0;
        drop_translation(&Fake::of(&tables.leases), &mut translations, &key).unwrap();
        assert_eq!(tables.has(&mine), (true, true));
        tables.leases.borrow_mut().insert(other.0, other.1);
        drop_translation(&Fake::of(&tables.leases), &mut translations, &key).unwrap();
        assert_eq!(tables.has(&mine), (false, false), "the port is another's");
    }
}
