//! `coil_ports`: bits that nobody needs any more go, those that are missing come.
//!
//! The programs set bits as they lend ports, and never clear one. A look at all leases says which are right: what was
//! set before the look began and belongs to no lease is left over.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf, Pod,
    maps::{Array, MapData},
};
use coil_packet::{
    Addr,
    abi::{NatRevKey, PORT_ROWS, PORT_WORDS_OF_ROW, PortRow},
    ports,
};

use super::{DatapathError, take};

const NAME: &str = "coil_ports";

/// Rows by number; those that are missing have no bit. A node without gateways has none at all.
type Bits = BTreeMap<u32, Box<PortRow>>;

/// The table of ports that are probably lent.
pub(super) struct Ports {
    map: Array<MapData, PortRow>,
    /// Nothing was lent at the last look, so that no bit is left.
    empty: bool,
}

/// One look at all leases.
pub(super) struct Look {
    /// The bits when it began.
    before: Bits,
    /// Those of the leases that were seen.
    live: Bits,
}

const NOTHING: PortRow = PortRow { words: [0; PORT_WORDS_OF_ROW as usize] };

impl Ports {
    pub(super) fn adopt(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self { map: take(ebpf, NAME)?, empty: false })
    }

    /// Begins a look.
    pub(super) fn look(&self) -> Result<Look, DatapathError> {
        let mut before = Bits::new();
        for number in (0..PORT_ROWS).take_while(|_| !self.empty) {
            let row = self.row(number)?;
            if row != NOTHING {
                before.insert(number, Box::new(row));
            }
        }
        Ok(Look { before, live: Bits::new() })
    }

    fn row(&self, row: u32) -> Result<PortRow, DatapathError> {
        self.map.get(&row, 0).map_err(|source| DatapathError::Map { name: NAME, action: "read it", source })
    }

    /// Ends it.
    pub(super) fn settle(&mut self, look: &Look) -> Result<(), DatapathError> {
        self.empty = look.live.is_empty();
        let numbers: BTreeSet<u32> = look.before.keys().chain(look.live.keys()).copied().collect();
        for number in numbers {
            let of = |bits: &Bits| bits.get(&number).map_or(NOTHING, |row| **row);
            let (before, live) = (of(&look.before), of(&look.live));
            if before == live {
                continue;
            }
            let now = self.row(number)?;
            let right = settled(&before, &live, &now);
            if right != now {
                self.map.set(number, right, 0).map_err(|source| DatapathError::Map {
                    name: NAME,
                    action: "write it",
                    source,
                })?;
            }
        }
        Ok(())
    }
}

impl Look {
    /// A lease is there.
    pub(super) fn saw<A: Addr + Pod>(&mut self, key: &NatRevKey<A>) {
        let (word, bit) = ports::place(ports::remote(key), key.port);
        let (row, column) = (word / PORT_WORDS_OF_ROW, word % PORT_WORDS_OF_ROW);
        self.live.entry(row).or_insert_with(|| Box::new(NOTHING)).words[column as usize] |= bit;
    }
}

/// What a row should be: what it is now, without what was left over before, and with all leases.
fn settled(before: &PortRow, live: &PortRow, now: &PortRow) -> PortRow {
    let mut right = *now;
    for ((right, before), live) in right.words.iter_mut().zip(before.words).zip(live.words) {
        *right = *right & !(before & !live) | live;
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(word: u64) -> PortRow {
        let mut row = NOTHING;
        row.words[7] = word;
        row
    }

    #[test]
    fn bits_follow_the_leases() {
        let settled = |before, live, now| settled(&row(before), &row(live), &row(now)).words[7];
        assert_eq!(settled(0b0011, 0b0001, 0b0011), 0b0001, "a lease has gone");
        assert_eq!(settled(0b0001, 0b0001, 0b1001), 0b1001, "one came during the look");
        assert_eq!(settled(0b0011, 0b0001, 0b1011), 0b1001, "both");
        assert_eq!(settled(0, 0b0100, 0), 0b0100, "a bit was lost");
    }
}
