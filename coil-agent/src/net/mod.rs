//! The kernel's part of pod networking: links, addresses, routes and rules.
//!
//! ```text
//!   pod namespace                       node namespace
//!  ┌──────────────────────────┐        ┌───────────────────────────────────────────────┐
//!  │ eth0  10.64.0.5/32       │  veth  │ veth1a2b3c4d  alias COIL:<pool>:<id>:eth0      │
//!  │ default via <node>       ├────────┤   <node>/32, so that ARP for it is answered    │
//!  │ default via fe80::<host> │        │ table 116: 10.64.0.5 dev veth1a2b3c4d          │
//!  └──────────────────────────┘        │ rule 2000: lookup 116                         │
//!                                      │ table 119: the node's blocks, for BIRD         │
//!                                      └───────────────────────────────────────────────┘
//! ```
//!
//! - [`host`]: what the node needs once.
//! - [`pod`]: makes, checks and removes one pod's network, by `connect`; [`plan`] says which routes it has,
//!   [`name`] how its link is found again.
//! - [`chained`]: the same for a pod that another plugin connected.
//! - [`recover`]: finds what earlier runs made: from aliases and routes, nothing else is stored.
//! - [`export`]: table 119.
//! - [`offload`]: what a client's link does not do by itself.
//! - [`monitor`]: what others change, as they do it.
//! - [`reach`]: which addresses are on the node's links.
//! - [`route`]: makes a table hold exactly the wanted routes of one protocol.
//! - `ready`: waits for what the kernel finishes later.
//! - `rtnl`, `wire`, `link`, `addr`, `sysctl`: the kernel's words; `wire` for threads that may wait.

mod addr;
pub mod chained;
mod connect;
pub mod export;
pub mod host;
mod link;
pub mod monitor;
pub mod name;
pub mod offload;
pub mod plan;
pub mod pod;
pub mod reach;
mod ready;
pub mod recover;
pub mod route;
pub(crate) mod rtnl;
pub(crate) mod sysctl;
mod wire;

pub use link::{Alias, Link, Mac};
pub use rtnl::{Rtnl, RtnlError};

/// Runs code inside a namespace, on a thread that may wait: nobody else does.
///
/// # Errors
/// When the namespace cannot be entered.
pub(crate) async fn run_inside<T: Send + 'static>(
    ns: &coil_netns::NetNs,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, coil_netns::NetNsError> {
    let ns = ns.try_clone()?;
    match tokio::task::spawn_blocking(move || ns.run(work)).await {
        Ok(ran) => ran,
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and so does whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}
