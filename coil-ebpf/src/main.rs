//! Coil's TC programs.

fn main() {}
