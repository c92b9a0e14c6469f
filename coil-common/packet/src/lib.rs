//! Packet decisions of Coil's dataplane: plain Rust, `no_std`, no pointers.
//!
//! ```text
//! wire::parse ──► path::{from_*, to_*} ──► Verdict ──► apply
//!   (facts)        (Tables: lookups, FIB)        (Reason)    (Skb: bytes, checksums)
//! ```
//!
//! The eBPF programs and the host tests run this same code. They differ in two traits only:
//! [`Tables`] (BPF maps and the kernel's FIB, or plain hash maps) and [`Skb`] (the BPF helpers
//! on a socket buffer, or a byte vector). Everything is generic over [`Addr`], so IPv4 and
//! IPv6 are one text.
#![no_std]

pub mod abi;
mod addr;
mod apply;
pub mod flow;
pub mod hash;
pub mod hops;
mod icmp;
pub mod mtu;
pub mod nat;
pub mod path;
pub mod ports;
mod skb;
mod tables;
mod verdict;
pub mod wire;

pub use addr::{Addr, Family};
pub use apply::{Rewrite, apply, forward};
pub use icmp::{Error as IcmpError, Message, Relay, answer, relay};
pub use skb::{Fault, Room, Skb};
pub use tables::{Fib, FibQuery, Full, Insert, NextHop, Tables};
pub use verdict::{
    COUNTERS, Class, Decision, Deliver, Draft, End, Later, Outcome, Outer, Outlet, Passage, Path, Plan,
    Reason, Verdict, counter_index,
};
