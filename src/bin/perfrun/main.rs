//! The command line of perfrun.

fn main() {}
