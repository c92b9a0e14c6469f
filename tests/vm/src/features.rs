//! What is asked of a kernel: the one table, and how each answer is found.
//!
//! An answer is found by doing the thing, never by the version.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};
use nix::{errno::Errno, sys::resource};

use crate::bpf::{self, Insn, add, call, copy, exchange, exit, load, set, store, store8, store32, test_run};

/// One thing that a kernel may offer.
pub(crate) struct Feature {
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether Coil cannot do its work without; else it has another way.
    pub(crate) required: bool,
    pub(crate) ask: fn() -> Result<bool>,
}

const fn must(name: &'static str, ask: fn() -> Result<bool>) -> Feature {
    Feature { name, required: true, ask }
}

const fn may(name: &'static str, ask: fn() -> Result<bool>) -> Feature {
    Feature { name, required: false, ask }
}

/// The kernel's own "not supported", which no C library names.
const ENOTSUPP: i32 = 524;

/// Every question, in the order of the document.
pub(crate) const FEATURES: &[Feature] = &[
    must("kernel BTF", || Ok(Path::new("/sys/kernel/btf/vmlinux").exists())),
    must("bpf_redirect_neigh", || helper(152)),
    must("bpf_redirect_peer", || helper(155)),
    must("bpf_fib_lookup", || helper(69)),
    must("ring buffer", || done(bpf::map(bpf::RINGBUF, 0, 0, 4096))),
    must("longest-prefix maps", || done(bpf::map(bpf::LPM_TRIE, 20, 4, 8))),
    must("bpf_csum_level", || helper(135)),
    must("test run with the packet's device", || done(test_run(&drop_nothing()?, &ipv4(), Some(1)))),
    must("encapsulation in UDP, IPv4 (adjust_room)", || adjust_room(&ipv4(), 28, 0x1 | 0x2 | 0x10)),
    must("encapsulation in UDP, IPv6 (adjust_room)", || adjust_room(&ipv6(), 48, 0x1 | 0x4 | 0x10)),
    may("decapsulation flags (adjust_room)", || adjust_room(&ipv4(), -28, 0x1 | 0x80)),
    may("TCX links", || {
        let program = drop_nothing()?;
        done(bpf::link(&program, 1, bpf::TCX_INGRESS))
    }),
    may("BPF_F_IPV6 in checksum edits", l4_csum_ipv6),
    may("fib lookup: SKIP_NEIGH", || fib_lookup(4)),
    may("fib lookup: SRC", || fib_lookup(16)),
    may("fib lookup: MARK", || fib_lookup(32)),
    may("atomic exchange", atomic_exchange),
    may("bpf_check_mtu", || helper(163)),
    may("bpf_timer", || helper(169)),
    may("bpf_loop", || helper(181)),
    may("bpf_skb_set_tstamp", || helper(192)),
    may("bpf_ktime_get_coarse_ns", || helper(160)),
    may("bpf_get_netns_cookie in TC", || helper(122)),
    may("bpf_skb_change_head in TC", || helper(43)),
    may("conntrack lookup from TC", || {
        module("nf_conntrack")?;
        Ok(fs::read_to_string("/proc/kallsyms")?.contains(" bpf_skb_ct_lookup"))
    }),
    may("BPF memory outside RLIMIT_MEMLOCK", no_memlock),
    may("clsact qdisc (sch_ingress, cls_bpf)", || Ok(module("sch_ingress")? && module("cls_bpf")?)),
    may("netkit devices", netkit),
    may("fou (IPv4)", || module("fou")),
    may("fou6 (IPv6)", || module("fou6")),
    may("ipip", || module("ipip")),
    may("ip6_tunnel", || module("ip6_tunnel")),
    may("nftables masquerade", || {
        Ok(module("nf_tables")? && module("nft_masq")? && module("nft_chain_nat")?)
    }),
];

/// Whether something was done; refused as unknown or wrong means that this kernel has no such thing.
fn done<T>(result: io::Result<T>) -> Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::E2BIG) => Ok(false),
            _ if error.raw_os_error() == Some(ENOTSUPP) => Ok(false),
            _ => Err(error.into()),
        },
    }
}

/// A program that a kernel refuses to load though it should: the verifier's last words.
fn loaded(program: &[Insn]) -> Result<std::os::fd::OwnedFd> {
    load(program).or_else(|refused| bail!("{}: {}", refused.error, last_line(&refused.log)))
}

fn last_line(log: &str) -> &str {
    log.lines().rfind(|line| !line.starts_with("processed ")).unwrap_or_default()
}

fn drop_nothing() -> Result<std::os::fd::OwnedFd> {
    loaded(&[set(0, 0), exit()])
}

/// Whether a TC program may call a helper: the verifier names an unknown one before anything else.
fn helper(number: i32) -> Result<bool> {
    match load(&[call(number), exit()]) {
        Ok(_) => Ok(true),
        // A memory limit or a missing capability is no answer.
        Err(refused) if refused.log.is_empty() => Err(refused.error.into()),
        Err(refused) => Ok(!["invalid func", "unknown func", "cannot use helper"]
            .iter()
            .any(|words| refused.log.contains(words))),
    }
}

/// What a program returns for a packet; the helpers return a negated errno.
fn returned(program: &[Insn], packet: &[u8]) -> Result<bool> {
    let code = test_run(&loaded(program)?, packet, Some(1))?;
    match code {
        code if code == -(Errno::EINVAL as i32) => Ok(false),
        code if code == -ENOTSUPP => Ok(false),
        code if code < 0 => bail!("the helper answered {}", Errno::from_raw(-code)),
        _ => Ok(true),
    }
}

fn adjust_room(packet: &[u8], bytes: i32, flags: i32) -> Result<bool> {
    const AT_MAC_HEADER: i32 = 1;
    returned(&[set(2, bytes), set(3, AT_MAC_HEADER), set(4, flags), call(50), exit()], packet)
}

/// A UDP checksum edit that changes nothing, over IPv6, with the flag that says so.
fn l4_csum_ipv6() -> Result<bool> {
    const PSEUDO_HEADER_IPV6_4_BYTES: i32 = 0x10 | 0x80 | 4;
    let checksum = 14 + 40 + 6;
    let flags = PSEUDO_HEADER_IPV6_4_BYTES;
    returned(&[set(2, checksum), set(3, 0), set(4, 0), set(5, flags), call(11), exit()], &ipv6())
}

/// A lookup through lo: any answer but "invalid" is one of a kernel that knows the flag.
fn fib_lookup(flags: i32) -> Result<bool> {
    const SIZE: i16 = 64;
    let mut program = vec![copy(6, 1)];
    program.extend((1..=SIZE / 8).map(|word| store(-8 * word, 0)));
    // struct bpf_fib_lookup: family, then ifindex at 8, destination at 32.
    program.extend([store8(-SIZE, 2), store32(-SIZE + 8, 1), store32(-SIZE + 32, 0x0100_007f)]);
    program.extend([copy(1, 6), copy(2, 10), add(2, -i32::from(SIZE)), set(3, SIZE.into()), set(4, flags)]);
    program.extend([call(69), exit()]);
    returned(&program, &ipv4())
}

fn atomic_exchange() -> Result<bool> {
    let program = [store(-8, 1), set(1, 2), exchange(1, -8), copy(0, 1), exit()];
    match load(&program) {
        Ok(_) => Ok(true),
        Err(refused) if refused.log.is_empty() => Err(refused.error.into()),
        Err(_) => Ok(false),
    }
}

/// Whether maps can be made by a process that may lock no memory.
fn no_memlock() -> Result<bool> {
    let (soft, hard) = resource::getrlimit(resource::Resource::RLIMIT_MEMLOCK)?;
    resource::setrlimit(resource::Resource::RLIMIT_MEMLOCK, 0, hard)?;
    let made = bpf::map(bpf::LPM_TRIE, 20, 4, 8);
    resource::setrlimit(resource::Resource::RLIMIT_MEMLOCK, soft, hard)?;
    match made {
        Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Ok(false),
        made => done(made),
    }
}

/// Whether a module can be loaded, or is built in.
fn module(name: &str) -> Result<bool> {
    Ok(Command::new("modprobe").args(["--quiet", name]).stderr(Stdio::null()).status()?.success())
}

fn netkit() -> Result<bool> {
    Ok(fs::read_to_string("/proc/kallsyms")?.contains(" netkit_link_ops"))
}

/// An Ethernet frame with 100 bytes of IPv4: UDP within.
fn ipv4() -> Vec<u8> {
    let mut frame = frame([0x08, 0x00]);
    frame[14..34]
        .copy_from_slice(&[0x45, 0, 0, 100, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    frame
}

/// An Ethernet frame with 100 bytes of IPv6: UDP within.
fn ipv6() -> Vec<u8> {
    let mut frame = frame([0x86, 0xdd]);
    frame[14..22].copy_from_slice(&[0x60, 0, 0, 0, 0, 60, 17, 64]);
    frame[60] = 1; // a checksum of zero would mean: none
    frame
}

fn frame(protocol: [u8; 2]) -> Vec<u8> {
    let mut frame = vec![0; 114];
    frame[12..14].copy_from_slice(&protocol);
    frame
}
