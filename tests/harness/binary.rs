//! Finds the `kv-node` binary beside the test executable and builds it when it is missing or older
//! than its sources, so that `cargo test -p kv-tests` never tests yesterday's node.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The path of the node under test; built at most once for each test process.
pub fn node_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let profile_dir = profile_dir();
        let binary = profile_dir.join("kv-node");
        if is_stale(&binary) {
            build(&profile_dir);
        }
        assert!(binary.is_file(), "{} is missing after a build", binary.display());
        binary
    })
}

/// `target/debug` or `target/release`, whichever this executable was built into.
fn profile_dir() -> PathBuf {
    let executable = std::env::current_exe().expect("a running test knows its path");
    let mut dir = executable.parent().expect("an executable is in a directory");
    if dir.ends_with("deps") {
        dir = dir.parent().expect("deps is in the profile's directory");
    }
    dir.to_path_buf()
}

fn workspace_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").to_path_buf()
}

fn is_stale(binary: &Path) -> bool {
    let Ok(built) = binary.metadata().and_then(|m| m.modified()) else { return true };
    newest_source(&workspace_dir().join("node")) > built
}

fn newest_source(dir: &Path) -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in std::fs::read_dir(dir).expect("the sources are readable") {
        let path = entry.expect("the sources are readable").path();
        let changed = if path.is_dir() {
            newest_source(&path)
        } else if path.extension().is_some_and(|e| e == "rs" || e == "toml") {
            path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
        } else {
            continue;
        };
        newest = newest.max(changed);
    }
    newest
}

fn build(profile_dir: &Path) {
    let target_dir = profile_dir.parent().expect("a profile's directory is in the target directory");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_dir()).args(["build", "--quiet", "--package", "kv-node", "--bin", "kv-node"]);
    cargo.arg("--target-dir").arg(target_dir);
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "kv-node does not build");
}
