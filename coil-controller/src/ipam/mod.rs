//! coil-ipam-controller: BlockRequests become AddressBlocks, pools are kept while they have
//! blocks, blocks of absent nodes are collected.
//!
//! - [`layout`]: how a pool is cut into blocks. Pure.
//! - [`index`] with `blocks` and `usage`, `decide`: what is known, and what to do about it. Pure.
//! - [`notice`]: what people should hear of, as Events.
//! - [`write`]: doing it.
//! - [`controller`]: the loop between them.

mod blocks;
pub mod controller;
mod decide;
pub mod index;
pub mod layout;
mod metrics;
mod networks;
pub mod notice;
pub mod uid;
mod usage;
pub mod work;
pub mod write;

pub use controller::{Controller, Event, Options, run};
