//! The shape of the repository.

use crate::source::workspace;

/// The top level; a further entry needs a decision record first.
const TOP_LEVEL: [&str; 12] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "Dockerfile",
    "LICENSE",
    "README.md",
    "charts",
    "crds",
    "docs",
    "node",
    "operator",
    "tests",
];

/// What builds and runs leave behind; git ignores it.
const LEFT_BEHIND: [&str; 2] = ["target", "data"];

#[test]
fn the_top_level_holds_what_was_decided_and_no_more() {
    let entries = std::fs::read_dir(workspace()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let strange: Vec<String> = entries
        .filter(|name| !name.starts_with('.'))
        .filter(|name| !TOP_LEVEL.contains(&name.as_str()) && !LEFT_BEHIND.contains(&name.as_str()))
        .collect();
    assert!(strange.is_empty(), "not decided for the top level: {strange:?}");
}

#[test]
fn scripts_name_no_place_of_one_machine() {
    let ci = std::fs::read_dir(workspace().join(".ci")).unwrap().map(|entry| entry.unwrap().path());
    for script in ci.chain([workspace().join("tests/e2e/run")]) {
        let text = std::fs::read_to_string(&script).unwrap();
        let named = ["/work/", "/root/", "/home/"].into_iter().find(|place| text.contains(place));
        assert_eq!(named, None, "{}", script.display());
    }
}

#[test]
fn every_dependency_has_its_version_in_one_place() {
    for manifest in
        ["node/Cargo.toml", "node/core/Cargo.toml", "tests/Cargo.toml", "tests/e2e/Cargo.toml", "operator/Cargo.toml"]
    {
        let Ok(text) = std::fs::read_to_string(workspace().join(manifest)) else { continue };
        let package = text.split("[dependencies]").nth(1).unwrap_or("");
        let versioned: Vec<&str> =
            package.lines().filter(|l| l.contains("= \"") && l.contains(char::is_numeric)).collect();
        assert!(versioned.is_empty(), "{manifest} has versions of its own: {versioned:?}");
    }
}
