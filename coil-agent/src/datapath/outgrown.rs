//! What an upgrade finds in maps of another size: it moves into the new maps.
//!
//! A map that is pinned with another number of entries than the object wants gives way to a new one. The programs of
//! before go on with the old map until they are replaced, so what it holds is moved twice: at the start, and once more
//! when none of them runs any longer. Translations and gateways of flows move, so that no flow of a client breaks; the
//! flow tables do not, for the kernel knows what they must not forget (`Datapath::mark_connections`). Translations move also
//! where their entries have got a longer value since, whose new end is zero: nothing was remembered. Any other map whose
//! entries have another layout is begun anew.

use std::{collections::BTreeMap, mem::MaybeUninit};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};

use coil_packet::abi::Known;

use super::{DatapathError, state::errno};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// Maps that were there, by name.
#[derive(Default)]
pub(super) struct Outgrown(BTreeMap<&'static str, Map>);

impl Outgrown {
    /// True for a map whose entries move.
    pub(super) fn moves(name: &str) -> bool {
        ["coil_nat", "coil_pin", "coil_lent", "coil_returned"].iter().any(|moved| name.starts_with(moved))
    }

    /// True for a map whose values may have been shorter by `by` bytes.
    pub(super) fn widens(name: &str, by: u32) -> bool {
        name.starts_with("coil_nat") && by as usize == size_of::<Known>()
    }

    pub(super) fn keep(&mut self, name: &'static str, map: Map) {
        self.0.insert(name, map);
    }

    /// Adds to `new` what the old map of that name holds and it does not. What finds no room is left behind. Returns
    /// how many entries moved.
    pub(super) fn move_to<K: Pod, V: Pod>(
        &self,
        name: &'static str,
        new: &mut HashMap<MapData, K, V>,
    ) -> Result<usize, DatapathError> {
        let Some(old) = self.0.get(name) else { return Ok(0) };
        // Translations and leases of either family, before they remembered anything.
        match values(old) {
            Some(4) => moved(name, old, new, widened::<4, V>),
            Some(12) => moved(name, old, new, widened::<12, V>),
            Some(24) => moved(name, old, new, widened::<24, V>),
            _ => moved(name, old, new, |value: V| value),
        }
    }
}

/// The length of a map's values.
fn values(map: &Map) -> Option<usize> {
    let (Map::HashMap(data) | Map::LruHashMap(data)) = map else { return None };
    data.info().ok().map(|info| info.value_size() as usize)
}

fn moved<K: Pod, O: Pod, V: Pod>(
    name: &'static str,
    old: &Map,
    new: &mut HashMap<MapData, K, V>,
    widen: impl Fn(O) -> V,
) -> Result<usize, DatapathError> {
    let failed = |action| move |source| DatapathError::Map { name, action, source };
    let old: HashMap<_, K, O> = old.try_into().map_err(failed("use the one of before"))?;
    let mut moved = 0;
    for entry in old.iter() {
        let (key, value) = entry.map_err(failed("read the one of before"))?;
        match new.insert(key, widen(value), NO_EXIST) {
            Ok(()) => moved += 1,
            Err(error) if errno(&error) == Some(nix::libc::EEXIST) => {}
            Err(error) if errno(&error) == Some(nix::libc::E2BIG) => break,
            Err(source) => return Err(failed("move an entry to it")(source)),
        }
    }
    Ok(moved)
}

/// A value that begins as an older one did, and ends with zeros.
fn widened<const N: usize, V: Pod>(old: [u8; N]) -> V {
    let mut bytes = MaybeUninit::<V>::zeroed();
    let len = N.min(size_of::<V>());
    // SAFETY: both are valid for `len` bytes; a value of a map is plain numbers, of which all bytes are some.
    unsafe {
        bytes.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(old.as_ptr(), len);
        bytes.assume_init()
    }
}

#[cfg(test)]
mod tests {
    use coil_packet::abi::{NatRevValue, NatValue};

    use super::*;

    #[test]
    fn what_was_shorter_keeps_its_beginning() {
        let value = NatValue { port: 0x0102, ..NatValue::default() };
        let old = [value.port.to_ne_bytes(), [0; 2]].concat();
        assert_eq!(widened::<4, NatValue>(old.try_into().unwrap()), value);
        let lease = NatRevValue {
            client: [10, 64, 0, 1],
            seen: 7,
            client_port: 8,
            state: 3,
            pad: 0,
            known: Known::default(),
        };
        let old = [&lease.client[..], &7u32.to_ne_bytes(), &8u16.to_ne_bytes(), &[3, 0]].concat();
        assert_eq!(widened::<12, NatRevValue<[u8; 4]>>(old.try_into().unwrap()), lease);
        assert!(
            Outgrown::widens("coil_nat_rev6", 8)
                && !Outgrown::widens("coil_pin4", 8)
                && !Outgrown::widens("coil_nat4", 4)
        );
    }
}
