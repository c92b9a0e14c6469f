//! Coil's developer commands.

fn main() {}
