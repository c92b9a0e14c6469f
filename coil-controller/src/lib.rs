//! coil-ipam-controller and coil-egress-controller.
//!
//! ```text
//!  API server ──watch──▶ index (plain memory) ──decide (pure)──▶ write ──▶ API server
//!                           ▲                                      │
//!                           └────────── outcome ◀──────────────────┘
//! ```
//!
//! - [`ipam`]: pools, blocks and requests.
//! - [`egress`]: what stands behind an Egress.
//! - [`lease`]: one leader at a time.
//! - [`queue`]: which object is looked at next, and when a failed one is tried again.
//! - [`webhook`]: what is refused before it is stored.
//! - [`program`]: what both programs do around that.

pub mod egress;
pub mod ipam;
pub mod lease;
pub mod program;
pub mod queue;
pub mod webhook;
