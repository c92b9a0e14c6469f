//! The API server of every test, and what is done with it.

pub(crate) use coil_apitest::{Cluster, LIMIT, eventually};
