//! A short run of `kv-chaos` in the normal tests: a few of each fault that takes little time.

use std::process::Command;

const SECONDS: &str = "30";
const SEED: &str = "11";

#[test]
fn what_clients_saw_through_half_a_minute_of_faults_can_be_explained() {
    let chaos = env!("CARGO_BIN_EXE_kv-chaos");
    let output = Command::new(chaos).args(["--seconds", SECONDS, "--seed", SEED]).output().expect("kv-chaos runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{told}");
}
