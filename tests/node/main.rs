//! Black-box tests of `kv-node`: real processes on loopback addresses, asked over HTTP, stopped with
//! signals, and their directories damaged. One file for each theme; the names are the promises.

#![cfg(test)]

mod backup;
mod bad_input;
mod contract;
mod dev;
mod failover;
mod full_disk;
mod membership;
mod monitoring;
mod on_disk;
mod replication;
mod rolling;
mod self_repair;
