//! Operator benchmarks.

fn main() {}
