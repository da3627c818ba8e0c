//! The simulation as a test: 200 seeds and 50 of the tight world, all promises, and everything that it claims to reach. Longer runs
//! and single seeds: the binary `kv-sim`.

use std::collections::BTreeSet;
use std::process::Command;

use kv_core::mutant::Mutant;
use kv_tests::sim::{Next, Options, Profile, hunt, hunt_all, recorded, run, run_many};

/// Few enough for a debug build; `kv-sim` takes more.
const OPTIONS: Options = Options { steps: 4_000, tells: false, profile: Profile::Usual };
const TIGHT: Options = Options { profile: Profile::Tight, ..OPTIONS };
const SEEDS: u64 = 200;
const TIGHT_SEEDS: u64 = 50;
const THREADS: usize = 2;
/// Searched when the recorded seed no longer catches a mutant: everything that draws moves seeds.
const FRESH_SEEDS: u64 = 120;

#[test]
fn no_promise_breaks_in_any_seed_and_every_fault_is_reached() {
    let mut total = run_many(0..SEEDS, &OPTIONS, THREADS, |_| Next::GoOn);
    total += run_many(0..TIGHT_SEEDS, &TIGHT, THREADS, |_| Next::GoOn);
    let broken: Vec<_> = total.broken.iter().map(|outcome| (outcome.seed, &outcome.broken)).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    assert_eq!(total.coverage.never(), [], "never reached; what was:\n{}", total.coverage);
    assert_eq!(total.coverage.too_many_undecided(), None);
}

#[test]
fn the_same_seed_goes_the_same_way_on_any_thread() {
    let mut hashes = BTreeSet::new();
    for seed in 0..4 {
        let once = run(seed, &OPTIONS);
        hashes.insert(once.trace_hash);
        let again = std::thread::spawn(move || run(seed, &OPTIONS)).join().expect("a run does not panic");
        assert_eq!(once.trace_hash, again.trace_hash, "seed {seed}");
        assert_eq!(once.steps, again.steps, "seed {seed}");
    }
    assert_eq!(hashes.len(), 4, "other seeds go other ways");
}

/// What another process would do otherwise: orders of hash tables, addresses, the clock of the machine.
#[test]
fn the_same_seed_goes_the_same_way_in_any_process() {
    for seed in [2, 3] {
        let here = format!("trace {:016x}", run(seed, &OPTIONS).trace_hash);
        let mut other = Command::new(env!("CARGO_BIN_EXE_kv-sim"));
        other.args(["--seed", &seed.to_string(), "--steps", &OPTIONS.steps.to_string()]);
        let told = other.output().expect("kv-sim was built with this test").stdout;
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains(&here), "seed {seed}: {here}, and in another process: {told}");
    }
}

/// All of them; the table is printed by `kv-sim --mutants`.
#[test]
fn rules_that_are_broken_on_purpose_are_noticed() {
    let recorded = recorded();
    let names: BTreeSet<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
    assert_eq!(recorded.keys().copied().collect::<BTreeSet<_>>(), names, "each has a seed, and no other");
    let search = |mutant: Mutant| hunt(mutant, std::iter::once(recorded[mutant.name()]).chain(0..FRESH_SEEDS), &TIGHT);
    let hunts = hunt_all(Mutant::ALL, THREADS, search, |_| {});
    let survivors: Vec<_> = hunts.iter().filter(|hunt| hunt.caught.is_none()).collect();
    assert!(survivors.is_empty(), "nobody noticed: {survivors:#?}");
}
