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
fn only_main_uses_anyhow() {
    let sources = sources();
    let users = sources.iter().filter(|s| s.path != "node/src/main.rs" && s.path != "operator/src/main.rs");
    let found: Vec<String> = users.flat_map(|s| s.find_outside_tests("anyhow")).collect();
    assert!(found.is_empty(), "errors are enums below main:\n  {}", found.join("\n  "));
}
