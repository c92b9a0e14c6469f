//! An embedded Kubernetes API server for tests and the lab.

fn main() {}
