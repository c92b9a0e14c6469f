//! The coil CNI plugin.

fn main() {}
