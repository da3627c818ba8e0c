//! Short runs of `kv-chaos` in the normal tests: each fault that takes little time, and manual failover.

use std::process::Command;

/// Of automatic failover, and of manual.
const SEED: &str = "11";
const MANUAL_SEED: &str = "12";
const MANUAL_SECONDS: &str = "15";
const QUICK: [&str; 14] = [
    "KillOne",
    "KillLeader",
    "KillSome",
    "PauseOne",
    "PauseLeader",
    "CutOneWay",
    "Isolate",
    "Halves",
    "Stall",
    "Drops",
    "Lead",
    "FullDisk",
    "Compaction",
    "Damage",
];

fn chaos(arguments: &[&str]) -> String {
    let chaos = env!("CARGO_BIN_EXE_kv-chaos");
    let output = Command::new(chaos).args(arguments).output().expect("kv-chaos runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{told}");
    told
}

#[test]
fn what_clients_saw_through_each_quick_fault_can_be_explained() {
    let told = chaos(&["--quick", "--seed", SEED]);
    let faults = told.lines().find_map(|line| line.strip_prefix("faults: ")).expect("told");
    for fault in QUICK {
        assert!(faults.contains(&format!("{fault}: 1")), "{fault} was made: {faults}");
    }
}

#[test]
fn what_clients_saw_while_leaders_were_assigned_by_hand_can_be_explained() {
    let told = chaos(&["--seconds", MANUAL_SECONDS, "--seed", MANUAL_SEED]);
    assert!(told.contains("manual failover"), "{told}");
}
