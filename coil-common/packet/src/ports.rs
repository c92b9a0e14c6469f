//! Which ports towards a remote are probably lent: `coil_ports`, a table of bits that finds a free port in a look or two
//! when nearly all are lent.
//!
//! Sixty-four ports share a word, which a hash of gateway, remote and the ports' number places in the table. The bits
//! are a hint, of two remotes in one word too: what decides is the lease (`coil_nat_rev`). A bit that was lost costs
//! another look and is set again; one that is left over goes when the agent sweeps.

use crate::{
    Addr,
    abi::{NatRevKey, PORT_ROWS, PORT_WORDS_OF_ROW},
    hash,
    nat::{FIRST_PORT, LAST_PORT},
};

/// Ports of one word.
const WORD: u32 = u64::BITS;
/// Bits of the number of a word.
const WORD_BITS: u32 = PORT_ROWS.trailing_zeros() + PORT_WORDS_OF_ROW.trailing_zeros();
/// The words that hold ports to lend, as if ports began at 0.
const FIRST: u32 = FIRST_PORT as u32 / WORD;
const COUNT: u32 = LAST_PORT as u32 / WORD - FIRST + 1;

/// Words of `coil_own_ports`: a bit for every port there is.
pub const OWN_WORDS: u32 = (u16::MAX as u32 + 1) / WORD;

/// The number of the word of `coil_own_ports` with a port, and the port's bit there.
#[inline(always)]
#[must_use]
pub const fn own(port: u16) -> (u32, u64) {
    (port as u32 / WORD, 1 << (port as u32 % WORD))
}

/// Hash of a remote's port at a gateway.
#[inline(always)]
pub fn remote<A: Addr>(key: &NatRevKey<A>) -> u64 {
    let (high, low) = key.remote.words();
    let end = u64::from(key.protocol) << 16 | u64::from(key.remote_port);
    hash::mix(hash::mix(hash::mix(hash::address(key.gateway), high), low), end)
}

/// The number of the word with a port towards a remote, and the port's bit there.
#[inline(always)]
#[must_use]
pub const fn place(remote: u64, port: u16) -> (u32, u64) {
    let word = hash::high(hash::mix(remote, (port as u32 / WORD) as u64)) >> (32 - WORD_BITS);
    (word, 1 << (port as u32 % WORD))
}

/// First of the 64 ports that any number names.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "below 2^16")]
#[must_use]
pub const fn some(number: u32) -> u16 {
    ((FIRST + number % COUNT) * WORD) as u16
}

/// One of the zeroes of a word, whose search begins at any number; 64 when there is none.
#[inline(always)]
#[must_use]
pub const fn zero_of(word: u64, start: u32) -> u32 {
    let start = start % WORD;
    let free = !word;
    if free == 0 {
        return WORD;
    }
    let turned = free >> start | free << ((WORD - start) % WORD);
    (number_of(turned & turned.wrapping_neg()) + start) % WORD
}

/// The number of a bit, from the bit alone: ones below it are counted without a table, which would be a map.
#[inline(always)]
const fn number_of(bit: u64) -> u32 {
    let x = bit.wrapping_sub(1);
    let x = x - ((x >> 1) & 0x5555_5555_5555_5555);
    let x = (x & 0x3333_3333_3333_3333) + ((x >> 2) & 0x3333_3333_3333_3333);
    let x = (x + (x >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (x.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn a_zero_is_found_wherever_it_is() {
        for bit in 0..64 {
            for start in 0..64 {
                assert_eq!(zero_of(!(1 << bit), start), bit);
            }
        }
        assert_eq!(zero_of(u64::MAX, 5), 64);
        assert_eq!(zero_of(0, 5), 5);
        assert_eq!(zero_of(0b10_0000, 5), 6);
        assert_eq!(zero_of(!0b11, 63), 0, "around the end");
    }

    #[test]
    fn words_are_spread_over_the_table() {
        let key =
            |remote| NatRevKey { gateway: [10, 0, 0, 1], remote, port: 0, remote_port: 443, protocol: 6 };
        let words: std::collections::BTreeSet<u32> = (0..64u8)
            .flat_map(|n| {
                let remote = remote(&key([198, 51, 100, n]));
                (0..=u16::MAX).step_by(64).map(move |port| place(remote, port).0)
            })
            .collect();
        // 65536 in 262144 places: chance leaves 57,984 of them apart.
        assert!(words.len() > 55_000, "{}", words.len());
        assert!(words.iter().all(|word| *word < PORT_ROWS * PORT_WORDS_OF_ROW));
        assert!((0..2000).all(|n| (FIRST_PORT..=LAST_PORT).contains(&some(n))));
    }
}
