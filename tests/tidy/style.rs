//! The house rules that a scanner can check.

use crate::source::{Source, sources};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

/// What lets a fixed time pass.
const SLEEPS: [&str; 3] = ["thread::sleep(", "time::sleep(", " sleep("];

/// The one file of the tests in which time may pass: it waits for conditions.
const WAITING: &str = "tests/harness/wait.rs";

/// Names that say nothing of what a file owns.
const EMPTY_NAMES: [&str; 6] = ["utils.rs", "util.rs", "common.rs", "helpers.rs", "helper.rs", "misc.rs"];

#[track_caller]
fn none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

fn where_any(rule: impl Fn(&Source) -> Vec<String>) -> Vec<String> {
    sources().iter().flat_map(rule).collect()
}

#[test]
fn every_file_opens_by_saying_what_it_owns() {
    let silent = where_any(|s| if s.text.starts_with("//! ") { vec![] } else { vec![s.path.clone()] });
    none("a source file opens with `//!`", &silent);
}

#[test]
fn no_file_is_longer_than_800_lines() {
    let long = where_any(|s| {
        let lines = s.text.lines().count();
        if lines > FILE_LINES_MAX { vec![format!("{}: {lines} lines", s.path)] } else { vec![] }
    });
    none("files have at most 800 lines", &long);
}

#[test]
fn no_function_is_longer_than_70_lines() {
    let long = where_any(|s| {
        let functions = s.functions().into_iter().filter(|(_, _, lines)| *lines > FUNCTION_LINES_MAX);
        functions.map(|(place, name, lines)| format!("{place}: {name} has {lines} lines")).collect()
    });
    none("functions have at most 70 lines", &long);
}

#[test]
fn modules_are_named_for_what_they_hold() {
    let badly_named = where_any(|s| {
        let file = s.path.rsplit('/').next().unwrap();
        if file == "mod.rs" || EMPTY_NAMES.contains(&file) { vec![s.path.clone()] } else { vec![] }
    });
    none("`foo.rs` and `foo/`, no mod.rs, no utils, common or helpers", &badly_named);
}

#[test]
fn nothing_is_imported_by_glob_outside_tests() {
    none("no glob imports", &where_any(|s| s.find_outside_tests("::*")));
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    none("expect(\"why it cannot fail\"), never unwrap", &where_any(|s| s.find_outside_tests(".unwrap()")));
}

#[test]
fn every_channel_is_bounded() {
    let unbounded = where_any(|s| {
        ["unbounded_channel", "unbounded(", "mpsc::channel()", "UnboundedSender"]
            .iter()
            .flat_map(|p| s.find_outside_tests(p))
            .collect()
    });
    none("every queue is bounded, with a named constant", &unbounded);
}

#[test]
fn no_test_lets_a_fixed_time_pass() {
    let sleeping = where_any(|s| {
        if s.path == WAITING || s.path.starts_with("tests/bench/") {
            return vec![];
        }
        SLEEPS.iter().flat_map(|p| s.find_in_tests(p)).collect()
    });
    none("tests wait for a condition, with a deadline", &sleeping);
}

#[test]
fn nothing_is_left_to_be_done() {
    let left = where_any(|s| ["todo!(", "unimplemented!(", "dbg!("].iter().flat_map(|p| s.find(p)).collect());
    none("no todo!, unimplemented! or dbg!", &left);
}

#[test]
fn nothing_is_unsafe() {
    none("no unsafe code", &where_any(|s| s.find("unsafe {")));
}
