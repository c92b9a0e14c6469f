//! What no fast packet may be: cut at any length, with options, extension headers, of a fragment, tagged, to many, or
//! neighbour discovery. It stays as it is, and the kernel gets it or it is dropped.

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

use std::sync::LazyLock;

use coil_cases::{Case, host};
use coil_packet::{Class, Path, Reason};
use proptest::prelude::*;

const ETHERNET: usize = 14;

/// Cases that forward from pod to pod.
static FAST: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut cases = coil_cases::all();
    cases.retain(|case| {
        matches!(case.path, Path::FromPod | Path::FromNet)
            && matches!(case.reason, Reason::ToPod | Reason::ToNode)
            && !is_egress_else(case)
    });
    assert!(cases.len() > 10, "{} cases", cases.len());
    cases
});

/// True when the packet goes to a gateway unless it is of a flow that is known.
fn is_egress_else(case: &Case) -> bool {
    let mut unknown = case.clone();
    unknown.given.clear();
    host::run(&unknown).reason == Reason::ToGateway
}

/// Length of the packet that the IP header states.
fn stated(frame: &[u8], v4: bool) -> usize {
    let word = |at: usize| frame.get(at..at + 2).map_or(0, |w| usize::from(u16::from_be_bytes([w[0], w[1]])));
    if v4 { word(ETHERNET + 2) } else { 40 + word(ETHERNET + 4) }
}

fn untouched(case: &Case, what: &str) -> Result<(), TestCaseError> {
    let outcome = host::run(case);
    prop_assert!(
        matches!(outcome.reason.class(), Class::Next | Class::Drop),
        "{}: {what}: {:?}",
        case.name,
        outcome.reason
    );
    prop_assert_eq!(&outcome.frame, &case.frame, "{}: {} was changed", case.name, what);
    Ok(())
}

/// Every case, cut at every length up to 128 bytes and within its headers.
#[test]
fn cut_at_any_length() {
    let mut cut = 0;
    for case in coil_cases::all() {
        let v4 = case.net.is_v4();
        for len in 0..=128.min(case.frame.len()) {
            let mut case = case.clone();
            let whole = ETHERNET + stated(&case.frame, v4);
            case.frame.truncate(len);
            if len < whole {
                untouched(&case, &format!("cut at {len}")).unwrap();
                cut += 1;
            }
        }
    }
    assert!(cut > 10_000, "{cut} packets");
}

fn add_length(frame: &mut [u8], v4: bool, bytes: usize) {
    let at = ETHERNET + if v4 { 2 } else { 4 };
    let len = usize::from(u16::from_be_bytes([frame[at], frame[at + 1]])) + bytes;
    frame[at..at + 2].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
}

/// Makes the checksum of an IPv4 header right.
fn sum(frame: &mut [u8]) {
    let len = usize::from(frame[ETHERNET] & 15) * 4;
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let header = &frame[ETHERNET..ETHERNET + len];
    let mut sum: u32 = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap();
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
}

/// A change after which a packet is never fast.
#[derive(Clone, Debug)]
enum Change {
    /// IPv4: words of options. IPv6: an extension header with so many more words of eight bytes.
    Options { words: usize, kind: u8, fill: u8 },
    /// A fragment: more follow, or not the first.
    Fragment { offset: u16, more: bool },
    /// A VLAN tag in the frame.
    Tag(u16),
    /// Another protocol than IP.
    Ethertype(u16),
    /// A frame or a packet to many.
    Many { frame: bool, low: u8 },
    /// Router and neighbour discovery, or an ICMP type that is no echo.
    Discovery { kind: u8, code: u8 },
    /// The last hop.
    LastHop(u8),
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        (1..=10usize, prop_oneof![Just(0u8), Just(43), Just(60), Just(135)], any::<u8>())
            .prop_map(|(words, kind, fill)| Change::Options { words, kind, fill }),
        (0..8000u16, any::<bool>())
            .prop_map(|(offset, more)| Change::Fragment { offset, more: more || offset == 0 }),
        any::<u16>().prop_map(Change::Tag),
        prop_oneof![Just(0x0806u16), Just(0x8847), Just(0x88cc), Just(0x8100), 0..0x600u16]
            .prop_map(Change::Ethertype),
        (any::<bool>(), any::<u8>()).prop_map(|(frame, low)| Change::Many { frame, low }),
        (133..=137u8, any::<u8>()).prop_map(|(kind, code)| Change::Discovery { kind, code }),
        (0..=1u8).prop_map(Change::LastHop),
    ]
}

fn change(case: &mut Case, change: &Change) {
    let v4 = case.net.is_v4();
    let frame = &mut case.frame;
    match *change {
        Change::Options { words, fill, .. } if v4 => {
            frame.splice(ETHERNET + 20..ETHERNET + 20, std::iter::repeat_n(fill, words * 4));
            frame[ETHERNET] += u8::try_from(words).unwrap();
            add_length(frame, true, words * 4);
        }
        Change::Options { words, kind, fill } => {
            let mut header = vec![fill; words * 8];
            header[0] = frame[ETHERNET + 6];
            header[1] = u8::try_from(words - 1).unwrap();
            frame.splice(ETHERNET + 40..ETHERNET + 40, header);
            frame[ETHERNET + 6] = kind;
            add_length(frame, false, words * 8);
        }
        Change::Fragment { offset, more } if v4 => {
            let bits = offset | u16::from(more) << 13;
            frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&bits.to_be_bytes());
        }
        Change::Fragment { offset, more } => {
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            let header = [frame[ETHERNET + 6], 0, high, low, 1, 2, 3, 4];
            frame.splice(ETHERNET + 40..ETHERNET + 40, header);
            frame[ETHERNET + 6] = 44;
            add_length(frame, false, 8);
        }
        Change::Tag(tag) => {
            let [high, low] = tag.to_be_bytes();
            frame.splice(12..12, [0x81, 0, high, low]);
        }
        Change::Ethertype(kind) => frame[12..14].copy_from_slice(&kind.to_be_bytes()),
        Change::Many { frame: true, low } => {
            let mac = if low % 2 == 0 { [0xff; 6] } else { [0x33, 0x33, 0, 0, 0, low] };
            frame[..6].copy_from_slice(&mac);
        }
        Change::Many { low, .. } if v4 => {
            frame[ETHERNET + 16..ETHERNET + 20].copy_from_slice(&[224 | (low & 15), 0, 0, low]);
        }
        Change::Many { low, .. } => {
            frame[ETHERNET + 24] = 0xff;
            frame[ETHERNET + 25] = low & 15;
        }
        Change::Discovery { kind, code } => {
            let (protocol, header) = if v4 { (9, 20) } else { (6, 40) };
            frame[ETHERNET + protocol] = if v4 { 1 } else { 58 };
            // IPv4 has types of its own: routers, timestamps, address masks.
            frame[ETHERNET + header] = if v4 { [9, 10, 13, 14, 17][usize::from(kind % 5)] } else { kind };
            frame[ETHERNET + header + 1] = code;
        }
        Change::LastHop(ttl) => frame[ETHERNET + if v4 { 8 } else { 7 }] = ttl,
    }
    if v4 && frame.len() >= ETHERNET + 20 && frame[12..14] == [8, 0] {
        sum(frame);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_hostile_packet_is_fast(which in 0..1000usize, what in changes()) {
        let mut case = FAST[which % FAST.len()].clone();
        change(&mut case, &what);
        untouched(&case, &format!("{what:?}"))?;
    }
}
