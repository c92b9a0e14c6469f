//! Connections that came in to a client by its own interface, for Egresses that are originating-only: answers to them carry a
//! mark, which a routing rule knows. In the calling thread's network namespace.
//!
//! ```text
//! table ip coil_incoming {
//!     chain input { type filter hook input priority mangle;
//!         iifname "eth0" ct direction original ct mark set ct mark or 0x2000 }
//!     chain output { type route hook output priority mangle;
//!         ct mark and 0x2000 != 0 meta mark set meta mark or 0x2000 }
//! }
//! ```

use std::io;

use nix::libc;

use super::ruleset::{
    self, EQUAL, FILTER, Hook, META_IIFNAME, PRIORITY_MANGLE, REGISTER, ROUTE, UNEQUAL, bits, compare,
    expression, link, number,
};
use crate::datapath::netlink::consistent;

/// The bit of marks, inside of pods, of packets and their connections.
pub const MARK: u32 = 0x2000;
const TABLE: &str = "coil_incoming";
const INPUT: &str = "input";
const OUTPUT: &str = "output";

/// `NFT_CT_DIRECTION` and `NFT_CT_MARK`, and `NFT_META_MARK`.
const CT_DIRECTION: u32 = 1;
const CT_MARK: u32 = 3;
const META_MARK: u32 = 3;

/// Makes the table of a family; one that is there stays.
///
/// # Errors
/// When the kernel lacks a module or refuses.
pub fn ensure(v6: bool, ifname: &str) -> io::Result<()> {
    let chains =
        [(INPUT, FILTER, Hook::Input, PRIORITY_MANGLE), (OUTPUT, ROUTE, Hook::Output, PRIORITY_MANGLE)];
    // Expressions write their register into the attribute 1, and read it from another.
    let load = |name: &str, key| expression(name, &[number(1, REGISTER), number(2, key)].concat());
    let store = |name: &str, key, from| expression(name, &[number(2, key), number(from, REGISTER)].concat());
    let (ct_from, meta_from) = (4, 3);
    let rules = [
        (
            INPUT,
            vec![
                load("meta", META_IIFNAME),
                compare(EQUAL, &link(ifname)),
                load("ct", CT_DIRECTION),
                compare(EQUAL, &[0]),
                load("ct", CT_MARK),
                bits(!MARK, MARK),
                store("ct", CT_MARK, ct_from),
            ],
        ),
        (
            OUTPUT,
            vec![
                load("ct", CT_MARK),
                bits(MARK, 0),
                compare(UNEQUAL, &[0; 4]),
                load("meta", META_MARK),
                bits(!MARK, MARK),
                store("meta", META_MARK, meta_from),
            ],
        ),
    ];
    match ruleset::make(v6, TABLE, &[], &chains, &rules, false) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Whether the table of a family is there.
///
/// # Errors
/// When the kernel cannot be asked.
pub(super) fn is_there(v6: bool) -> io::Result<bool> {
    let mut rules = 0;
    consistent(|| ruleset::rules(v6, TABLE, |_, _| rules += 1))?;
    Ok(rules > 0)
}

/// Removes it.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(v6: bool) -> io::Result<()> {
    ruleset::remove(v6, TABLE)
}
