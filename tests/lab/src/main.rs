//! A Coil cluster in network namespaces.

fn main() {}
