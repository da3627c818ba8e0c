//! `kv-bench`: measures the whole and prints one table.

fn main() {}
