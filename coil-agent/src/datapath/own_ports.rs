//! `coil_own_ports`: ports that are not lent, because a gateway pod of this node has them for itself.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use coil_packet::ports::{self, OWN_WORDS};

use super::{DatapathError, take};

const NAME: &str = "coil_own_ports";

/// Words by number; those that are missing have no bit.
type Words = BTreeMap<u32, u64>;

/// The table, and what is in it.
pub(super) struct OwnPorts {
    map: Array<MapData, u64>,
    there: Words,
}

impl OwnPorts {
    pub(super) fn adopt(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let map = take(ebpf, NAME)?;
        let there = read(&map)?;
        Ok(Self { map, there })
    }

    /// Adds ports. Returns how many words were written.
    pub(super) fn put(&mut self, own: &BTreeSet<u16>) -> Result<usize, DatapathError> {
        let mut wanted = words(own);
        for (word, bits) in &self.there {
            *wanted.entry(*word).or_default() |= bits;
        }
        self.write(&wanted)
    }

    /// Makes the ports exactly these.
    pub(super) fn set(&mut self, own: &BTreeSet<u16>) -> Result<usize, DatapathError> {
        self.write(&words(own))
    }

    /// How many words are not as they were written; the next writing makes them good.
    pub(super) fn check(&mut self) -> Result<usize, DatapathError> {
        let there = std::mem::replace(&mut self.there, read(&self.map)?);
        Ok(differing(&there, &self.there).len())
    }

    fn write(&mut self, wanted: &Words) -> Result<usize, DatapathError> {
        let words = differing(&self.there, wanted);
        for word in &words {
            let bits = wanted.get(word).copied().unwrap_or_default();
            self.map.set(*word, bits, 0).map_err(|source| DatapathError::Map {
                name: NAME,
                action: "write it",
                source,
            })?;
            self.there.insert(*word, bits);
        }
        Ok(words.len())
    }
}

fn read(map: &Array<MapData, u64>) -> Result<Words, DatapathError> {
    let mut words = Words::new();
    for word in 0..OWN_WORDS {
        let bits = map.get(&word, 0).map_err(|source| DatapathError::Map {
            name: NAME,
            action: "read it",
            source,
        })?;
        if bits != 0 {
            words.insert(word, bits);
        }
    }
    Ok(words)
}

fn words(own: &BTreeSet<u16>) -> Words {
    let mut words = Words::new();
    for port in own {
        let (word, bit) = ports::own(*port);
        *words.entry(word).or_default() |= bit;
    }
    words
}

fn differing(one: &Words, other: &Words) -> BTreeSet<u32> {
    let of = |words: &Words, word: &u32| words.get(word).copied().unwrap_or_default();
    one.keys().chain(other.keys()).filter(|word| of(one, word) != of(other, word)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_that_differ_are_written() {
        let one = words(&[8080, 8081, 9090].into());
        assert_eq!(one.values().map(|bits| bits.count_ones()).sum::<u32>(), 3);
        assert!(differing(&one, &one).is_empty());
        let other = words(&[8080, 8081, 5555].into());
        assert_eq!(differing(&one, &other), [5555 / 64, 9090 / 64].into());
        assert_eq!(differing(&one, &Words::new()).len(), one.len());
        assert_eq!(differing(&[(7, 0)].into(), &Words::new()).len(), 0, "no bit is as good as no word");
    }
}
