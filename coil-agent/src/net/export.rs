//! Table 119: the node's address blocks, for a routing daemon to announce.

use std::collections::BTreeSet;

use ipnet::IpNet;

pub use super::route::Changes;

use super::{
    route::{Owned, Path, Routes},
    rtnl::{Rtnl, RtnlError},
};

/// `lo` has the index 1 in every network namespace.
const LOOPBACK: u32 = 1;

/// Makes the table hold a route to each block, and no other of our protocol.
///
/// # Errors
/// The first route that could not be changed; the others were tried.
pub async fn sync(rtnl: &Rtnl, table: Owned, blocks: &BTreeSet<IpNet>) -> Result<Changes, RtnlError> {
    let lo = Path { ifindex: Some(LOOPBACK), ..Path::default() };
    let wanted: Routes = blocks.iter().map(|block| (block.trunc(), lo.clone())).collect();
    table.sync(rtnl, &wanted).await
}
