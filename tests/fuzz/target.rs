//! The fuzzer's side of every target: what it calls is in `kv_node::fuzz`, by the name of the binary.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kv_node::fuzz::run(env!("CARGO_BIN_NAME"), data));
