//! Black-box tests of `kv-node`: real processes on loopback addresses, asked over HTTP, stopped with
//! signals, and their directories damaged. One file for each theme; the names are the promises.

#![cfg(test)]
