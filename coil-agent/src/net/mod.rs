//! temp
pub mod route;
pub mod rtnl;
