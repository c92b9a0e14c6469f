//! Packet decisions of Coil's dataplane: plain Rust, no_std, no pointers.
#![no_std]
