//! Maglev tables: which gateway takes which hash.
//!
//! Each gateway fills the slots in an order of its own, all in turn; so a gateway that comes or goes
//! moves few flows of the others.

use coil_packet::{
    Addr,
    abi::{MAGLEV_BITS, MAGLEV_SLOTS},
    hash,
};

/// A table for the gateways, whose order does not matter. All zero without gateways.
pub(super) fn table<A: Addr>(gateways: &[A]) -> [A; MAGLEV_SLOTS] {
    let mut gateways = gateways.to_vec();
    gateways.sort_unstable_by_key(|gateway| gateway.words());
    gateways.dedup();
    let mut slots: Vec<Option<A>> = vec![None; MAGLEV_SLOTS];
    // Where each gateway looks next, and how far it goes from there.
    let mut walks: Vec<(usize, usize)> = gateways
        .iter()
        .map(|gateway| {
            let hash = hash::address(*gateway);
            let start = hash::slot(hash::high(hash));
            // Odd, so that the walk visits all slots.
            let step = hash::slot(hash::high(hash << MAGLEV_BITS)) | 1;
            (start, step)
        })
        .collect();
    let mut filled = 0;
    while filled < MAGLEV_SLOTS && !gateways.is_empty() {
        for (gateway, (at, step)) in gateways.iter().zip(&mut walks) {
            if filled == MAGLEV_SLOTS {
                break;
            }
            while slots[*at].is_some() {
                *at = (*at + *step) % MAGLEV_SLOTS;
            }
            slots[*at] = Some(*gateway);
            filled += 1;
        }
    }
    let mut table = [A::zeroed(); MAGLEV_SLOTS];
    for (to, from) in table.iter_mut().zip(slots) {
        *to = from.unwrap_or_else(A::zeroed);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(n: u8) -> [u8; 4] {
        [10, 64, 0, n]
    }

    fn share(table: &[[u8; 4]; MAGLEV_SLOTS], of: [u8; 4]) -> usize {
        table.iter().filter(|slot| **slot == of).count()
    }

    #[test]
    fn shares_are_equal() {
        for n in 1..=20 {
            let gateways: Vec<_> = (1..=n).map(gateway).collect();
            let table = table(&gateways);
            for g in &gateways {
                let (share, fair) = (share(&table, *g), MAGLEV_SLOTS / usize::from(n));
                assert!(share == fair || share == fair + 1, "{n} gateways: {share} slots, fair is {fair}");
            }
        }
    }

    #[test]
    fn the_order_of_gateways_does_not_matter() {
        assert_eq!(table(&[gateway(1), gateway(2)]), table(&[gateway(2), gateway(1)]));
    }

    #[test]
    fn a_gateway_that_goes_moves_few_flows_of_the_others() {
        let all: Vec<_> = (1..=5).map(gateway).collect();
        let (before, after) = (table(&all), table(&all[..4]));
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != gateway(5) && b != a).count();
        assert!(moved < MAGLEV_SLOTS / 5, "{moved} slots of gateways that stayed have moved");
    }

    #[test]
    fn no_gateways_no_slots() {
        assert_eq!(table::<[u8; 4]>(&[]), [[0; 4]; MAGLEV_SLOTS]);
    }
}
