//! What a pod's link leaves to others: UDP segmentation does not survive a tunnel, so that a client's kernel has to do it.
//!
//! Numbers are those of `linux/ethtool_netlink.h`.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;

use crate::datapath::netlink::{ACK, NESTED, REQUEST, exchange, generic_family, message, pack};

/// `ETHTOOL_MSG_FEATURES_SET`, since Linux 5.8, and the version of the protocol.
const FEATURES_SET: u8 = 12;
const VERSION: u8 = 1;
/// `ETHTOOL_A_FEATURES_HEADER` and `ETHTOOL_A_FEATURES_WANTED`.
const HEADER: u16 = 1;
const WANTED: u16 = 3;
/// `ETHTOOL_A_HEADER_DEV_NAME`.
const DEV_NAME: u16 = 2;
/// `ETHTOOL_A_BITSET_BITS`, `…_BITS_BIT`, `…_BIT_NAME` and `…_BIT_VALUE`.
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// Lets a link of the calling thread's network namespace segment UDP, or not.
///
/// # Errors
/// When there is no such link, or the kernel refuses.
pub fn segment_udp(link: &str, on: bool) -> io::Result<()> {
    let family = generic_family("ethtool")?;
    let name = pack(DEV_NAME, &[link.as_bytes(), &[0]].concat());
    let mut bit = pack(BIT_NAME, b"tx-udp-segmentation\0");
    if on {
        bit.extend(pack(BIT_VALUE, &[]));
    }
    let bits = pack(BITS | NESTED, &pack(BIT | NESTED, &bit));
    let list = [pack(HEADER | NESTED, &name), pack(WANTED | NESTED, &bits)].concat();
    let request = message(family, REQUEST | ACK, &[FEATURES_SET, VERSION, 0, 0], &list);
    exchange(NETLINK_GENERIC, &request, |_| {})
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use coil_netns::NetNs;

    use super::*;

    fn run(words: &str) -> String {
        let output = Command::new("sh").args(["-c", words]).output().expect("sh runs");
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A burst of datagrams over a link, as they come out of it.
    #[test]
    fn udp_is_segmented_before_the_link() {
        let path = std::env::temp_dir().join(format!("coil-offload-{}", std::process::id()));
        let ns = NetNs::create(&path).expect("a network namespace, which needs root");
        let seen = ns.run(|| {
            run("ip link add eth0 type veth peer name other && ip link set eth0 up && ip link set other up");
            let features = || run("ip -d -j link show eth0");
            let before = features();
            segment_udp("eth0", false).expect("the feature goes");
            segment_udp("eth0", false).expect("once more");
            segment_udp("eth0", true).expect("it comes back");
            assert!(segment_udp("none", true).is_err());
            (before, features())
        });
        NetNs::remove(&path).unwrap();
        let (before, after) = seen.unwrap();
        assert_eq!(before, after, "nothing else of the link changes");
    }
}
