//! The dependency rules: who may know whom.
//!
//! `http, transport -> driver -> kv-core`; `wal` knows entries and not keys; kv-core does no I/O.

use crate::source::{Source, sources, workspace};

/// All that kv-core may depend on: nothing here can do I/O.
const CORE_DEPENDENCIES: [&str; 11] = [
    "bytes",
    "crc32fast",
    "foldhash",
    "hashbrown",
    "itoa",
    "memchr",
    "serde",
    "serde_json",
    "siphasher",
    "thiserror",
    "triomphe",
];

/// What would bring I/O, time, threads or chance into kv-core.
const BANNED_IN_CORE: [&str; 12] = [
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "SystemTime",
    "Instant",
    "RandomState",
    "HashMap::new(",
    "HashSet::new(",
    "println!",
    "tokio",
];

/// Names of kv-core that belong to the driver alone.
const DRIVER_ONLY: [&str; 4] = ["Replica::", "kv_core::replica", "kv_core::Replica", "take_effects"];

/// The one part of the log that asks the applied state, through its own trait: which lines are current.
const COMPACTION: &str = "node/src/wal/compaction.rs";

/// Names that show that the log looks into the applied state instead of asking the state machine.
const NOT_FOR_THE_LOG: [&str; 3] = ["keyspace::", "sessions::Sessions", "Keyspace::"];

/// What would let the operator's pure parts reach Kubernetes, nodes or a clock.
const NOT_FOR_PURE_PARTS: [&str; 9] = [
    "Client",
    "Api<",
    "kube::api",
    "kube::runtime",
    "crate::observe::",
    "crate::apply",
    "reqwest",
    "Instant::now",
    "Timestamp::now",
];

/// The operator's pure parts.
const PURE_PARTS: [&str; 7] = [
    "operator/src/plan",
    "operator/src/resources",
    "operator/src/group",
    "operator/src/observed",
    "operator/src/names",
    "operator/src/units",
    "operator/src/crd",
];

/// All that the operator may use of kv-core: what nodes report, what they are told, and arithmetic.
const CORE_FOR_THE_OPERATOR: [&str; 5] = ["status", "quorum", "group", "entry", "contract::SettingsChange"];

fn below<'a>(sources: &'a [Source], part: &'a str) -> impl Iterator<Item = &'a Source> {
    let (file, dir) = (format!("{part}.rs"), format!("{part}/"));
    sources.iter().filter(move |s| s.path == file || s.path.starts_with(&dir))
}

fn named(sources: &[Source], part: &str, names: &[&str]) -> Vec<String> {
    let found = below(sources, part).flat_map(|s| {
        names
            .iter()
            .flat_map(|name| s.find_outside_tests(name).into_iter().map(move |place| format!("{place}: {name}")))
    });
    found.collect()
}

/// The names in one table of a Cargo.toml.
fn dependencies(manifest: &str, table: &str) -> Vec<String> {
    let text = std::fs::read_to_string(workspace().join(manifest)).unwrap();
    let lines = text.lines().skip_while(|line| *line != format!("[{table}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| line.split(['.', ' ', '=']).next()).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_core_depends_on_nothing_that_can_do_io() {
    let foreign: Vec<String> = dependencies("node/core/Cargo.toml", "dependencies")
        .into_iter()
        .filter(|name| !CORE_DEPENDENCIES.contains(&name.as_str()))
        .collect();
    assert!(foreign.is_empty(), "kv-core may not depend on {foreign:?}");
}

#[test]
fn the_core_has_no_clock_no_files_no_threads_and_no_chance() {
    let found = named(&sources(), "node/core/src", &BANNED_IN_CORE);
    assert!(found.is_empty(), "kv-core is pure:\n  {}", found.join("\n  "));
}

#[test]
fn http_and_transport_never_reach_the_replica() {
    let sources = sources();
    let mut found = named(&sources, "node/src/http", &DRIVER_ONLY);
    found.extend(named(&sources, "node/src/transport", &DRIVER_ONLY));
    assert!(found.is_empty(), "only the driver owns a Replica:\n  {}", found.join("\n  "));
}

#[test]
fn the_log_knows_entries_and_not_keys() {
    let mut found = named(&sources(), "node/src/wal", &NOT_FOR_THE_LOG);
    found.retain(|place| !place.starts_with(COMPACTION));
    assert!(found.is_empty(), "wal reaches state through StateMachine alone:\n  {}", found.join("\n  "));
}

#[test]
fn the_log_knows_neither_http_nor_peers() {
    let found = named(&sources(), "node/src/wal", &["crate::http", "crate::transport", "crate::driver", "axum"]);
    assert!(found.is_empty(), "wal is below everything else:\n  {}", found.join("\n  "));
}

#[test]
fn what_the_operator_plans_and_builds_never_sees_a_client() {
    let sources = sources();
    let found: Vec<String> = PURE_PARTS.iter().flat_map(|part| named(&sources, part, &NOT_FOR_PURE_PARTS)).collect();
    assert!(found.is_empty(), "observe reads and apply writes:\n  {}", found.join("\n  "));
}

#[test]
fn the_operator_uses_of_the_core_only_what_nodes_say_and_are_told() {
    let sources = sources();
    let foreign = |rest: &str| !CORE_FOR_THE_OPERATOR.iter().any(|known| rest.starts_with(known));
    let found: Vec<String> = below(&sources, "operator/src")
        .flat_map(|s| {
            let uses = s.code.match_indices("kv_core::");
            uses.filter(|(at, path)| foreign(&s.code[at + path.len()..])).map(|(at, _)| s.place(at)).collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "not for the operator:\n  {}", found.join("\n  "));
}

#[test]
fn only_main_uses_anyhow() {
    let sources = sources();
    let users = sources.iter().filter(|s| s.path != "node/src/main.rs" && s.path != "operator/src/main.rs");
    let found: Vec<String> = users.flat_map(|s| s.find_outside_tests("anyhow")).collect();
    assert!(found.is_empty(), "errors are enums below main:\n  {}", found.join("\n  "));
}
