//! `coil_ports`: bits that nobody needs any more go, those that are missing come.
//!
//! The programs set bits as they lend ports, and never clear one. A look at all leases says which are right: what was
//! set before the look began and belongs to no lease is left over.

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

/// All rows.
type Bits = Vec<PortRow>;

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
    any: bool,
}

const NOTHING: PortRow = PortRow { words: [0; PORT_WORDS_OF_ROW as usize] };

impl Ports {
    pub(super) fn adopt(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self { map: take(ebpf, NAME)?, empty: false })
    }

    /// Begins a look.
    pub(super) fn look(&self) -> Result<Look, DatapathError> {
        let rows = PORT_ROWS as usize;
        let before = if self.empty { vec![NOTHING; rows] } else { self.read()? };
        Ok(Look { before, live: vec![NOTHING; rows], any: false })
    }

    fn read(&self) -> Result<Bits, DatapathError> {
        (0..PORT_ROWS).map(|row| self.row(row)).collect()
    }

    fn row(&self, row: u32) -> Result<PortRow, DatapathError> {
        self.map.get(&row, 0).map_err(|source| DatapathError::Map { name: NAME, action: "read it", source })
    }

    /// Ends it.
    pub(super) fn settle(&mut self, look: &Look) -> Result<(), DatapathError> {
        let nothing = self.empty && !look.any;
        self.empty = !look.any;
        if nothing {
            return Ok(());
        }
        for (row, (before, live)) in (0..).zip(look.before.iter().zip(&look.live)) {
            if before == live {
                continue;
            }
            let now = self.row(row)?;
            let right = settled(before, live, &now);
            if right != now {
                self.map.set(row, right, 0).map_err(|source| DatapathError::Map {
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
        if let Some(row) = self.live.get_mut(row as usize) {
            row.words[column as usize] |= bit;
            self.any = true;
        }
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
