//! Any bytes: a program either leaves a frame as it is, or changes what a router changes.

use coil_cases::{Case, host, wire};
use coil_packet::{Class, Path, Reason};
use proptest::prelude::*;

/// A case, and what to write over its bytes: where, and with what.
fn damaged() -> impl Strategy<Value = Case> {
    let cases = coil_cases::all();
    let bytes = proptest::collection::vec((0..200usize, any::<u8>()), 0..6);
    (0..cases.len(), bytes, proptest::option::of(0..200usize)).prop_map(move |(which, bytes, cut)| {
        let mut case = cases[which].clone();
        for (at, byte) in bytes {
            if let Some(there) = case.frame.get_mut(at) {
                *there = byte;
            }
        }
        if let Some(len) = cut {
            case.frame.truncate(len);
        }
        case
    })
}

/// Bytes that forwarding may change: MAC addresses, time to live, IPv4's header checksum.
fn may_change(at: usize, v4: bool) -> bool {
    at < 12 || if v4 { matches!(at, 22 | 24 | 25) } else { at == 21 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_frame_is_changed_wrongly(case in damaged()) {
        let outcome = host::run(&case);
        let v4 = case.net.is_v4();
        match (outcome.reason, outcome.reason.class()) {
            (Reason::Rewrite, _) => prop_assert!(false, "a rewrite failed"),
            (_, Class::Next | Class::Drop) => prop_assert_eq!(&outcome.frame, &case.frame),
            (Reason::ToPod | Reason::ToNode, _) => {
                prop_assert_eq!(outcome.frame.len(), case.frame.len());
                for at in (0..case.frame.len()).filter(|at| !may_change(*at, v4)) {
                    prop_assert_eq!(outcome.frame[at], case.frame[at], "byte {}", at);
                }
                let ttl = if v4 { 22 } else { 21 };
                prop_assert_eq!(outcome.frame[ttl] + 1, case.frame[ttl]);
                if v4 {
                    prop_assert!(wire::header_is_summed(&outcome.frame), "the header's checksum is wrong");
                }
            }
            _ => prop_assert!(case.path != Path::ToNet),
        }
    }
}
