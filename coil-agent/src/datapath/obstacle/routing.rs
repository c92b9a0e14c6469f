//! XFRM policies and routing rules.

use std::io;

use aya::util::KernelVersion;
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};
use nix::libc;

use crate::datapath::netlink::{DUMP, REQUEST, exchange, find as attribute, message};

/// `XFRM_MSG_GETPOLICY`.
const GET_POLICY: u16 = 0x15;
/// Offset of `dir` in `struct xfrm_userpolicy_info`, and the number from which policies are of sockets.
const DIRECTION: usize = 160;
const OF_SOCKETS: u8 = 3;

/// `RTM_GETRULE`, the length of `struct fib_rule_hdr`, `FRA_FWMARK`.
const GET_RULE: u16 = 34;
const RULE_HEADER: usize = 12;
const FWMARK: u16 = 10;

/// XFRM policies: packets that the kernel would encrypt, or refuse in the clear.
pub(super) fn policies() -> io::Result<Option<String>> {
    let mut count = 0u32;
    let request = message(GET_POLICY, REQUEST | DUMP, &[], &[]);
    let done = exchange(NETLINK_XFRM, &request, |body| {
        if body.get(DIRECTION).is_some_and(|direction| *direction < OF_SOCKETS) {
            count += 1;
        }
    });
    match done {
        // A kernel without XFRM has no policies.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL)) => Ok(None),
        done => done.map(|()| (count > 0).then(|| format!("{count} XFRM policies"))),
    }
}

/// Routing rules by mark. Since Linux 6.10 (commit a6eba8ee0a2d) a program could ask with the mark; before, its
/// question is answered as if the packet had none.
pub(super) fn marked_rules() -> io::Result<Option<String>> {
    let old = KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 10, 0));
    if !old {
        return Ok(None);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut marked = false;
        let mut header = [0; RULE_HEADER];
        header[0] = u8::try_from(family).unwrap_or_default();
        exchange(NETLINK_ROUTE, &message(GET_RULE, REQUEST | DUMP, &header, &[]), |body| {
            let mark = body.get(RULE_HEADER..).and_then(|list| attribute(list, FWMARK));
            marked |= mark.is_some_and(|mark| mark.iter().any(|byte| *byte != 0));
        })?;
        if marked {
            return Ok(Some("a routing rule by mark".to_owned()));
        }
    }
    Ok(None)
}
