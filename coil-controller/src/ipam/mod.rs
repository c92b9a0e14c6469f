//! coil-ipam-controller: BlockRequests become AddressBlocks, pools are kept while they have
//! blocks, blocks of absent nodes are collected.
//!
//! - [`layout`]: how a pool is cut into blocks. Pure.
//! - [`index`], `decide`: what is known, and what to do about it. Pure.
//! - [`write`]: doing it.
//! - [`controller`]: the loop between them.

pub mod controller;
mod decide;
pub mod index;
pub mod layout;
mod metrics;
mod networks;
pub mod work;
pub mod write;

pub use controller::{Options, run};
