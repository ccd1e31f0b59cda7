//! Model benchmarks.

fn main() {}
