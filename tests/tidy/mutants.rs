//! Rules that are broken on purpose: that each stands where the rule is kept, and that nothing which is
//! shipped can break one.

use kv_core::mutant::Mutant;

use crate::source::{sources, workspace};

/// The one file of kv-core with state of a thread's own.
const SWITCH: &str = "node/core/src/mutant.rs";

#[test]
fn each_mutant_stands_where_its_rule_is_kept() {
    let sources = sources();
    let shipped = || sources.iter().filter(|s| s.path != SWITCH);
    let stands = |mutant: &&Mutant| {
        let hook = format!("mutant::on(Mutant::{})", mutant.name());
        shipped().any(|source| !source.find_outside_tests(&hook).is_empty())
    };
    let idle: Vec<&Mutant> = Mutant::ALL.iter().filter(|mutant| !stands(mutant)).collect();
    assert!(idle.is_empty(), "these break nothing: {idle:?}");
}

#[test]
fn nothing_but_tests_can_switch_a_mutant_on() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| source.path != SWITCH)
        .flat_map(|source| ["mutant::with", "{with", ", with}"].map(|word| source.find_outside_tests(word)).concat())
        .collect();
    assert!(found.is_empty(), "only tests break rules:\n  {}", found.join("\n  "));
}

#[test]
fn no_package_that_is_shipped_asks_for_mutants() {
    for manifest in ["Cargo.toml", "node/Cargo.toml", "operator/Cargo.toml"] {
        let Ok(text) = std::fs::read_to_string(workspace().join(manifest)) else { continue };
        assert!(!text.contains("mutants"), "{manifest} turns the feature `mutants` on");
    }
    let core = std::fs::read_to_string(workspace().join("node/core/Cargo.toml")).unwrap();
    assert!(core.contains("\nmutants = []\n") && !core.contains("default ="), "kv-core's default breaks no rule");
}

#[test]
fn the_core_has_state_of_a_thread_only_to_break_rules() {
    let core = sources().into_iter().filter(|s| s.path.starts_with("node/core/src/") && s.path != SWITCH);
    let found: Vec<String> = core.flat_map(|s| s.find_outside_tests("thread_local!")).collect();
    assert!(found.is_empty(), "kv-core is pure:\n  {}", found.join("\n  "));
}
