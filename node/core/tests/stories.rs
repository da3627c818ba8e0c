//! Protocol stories: each file in `testdata/` is a sequence of commands with the output that the
//! replicas gave, in the manner of etcd's raft. `UPDATE_STORIES=1 cargo test -p kv-core` writes the
//! output anew; read the difference before committing it.

#![allow(clippy::disallowed_methods, reason = "the tests around the core read files and variables; the core does not")]

#[path = "stories/world.rs"]
mod world;

use std::fmt::Write as _;
use std::path::Path;

use world::World;

/// Runs one story and returns it with its present output.
fn run(text: &str) -> String {
    let mut world = World::default();
    let mut out = String::new();
    for block in text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
        if block.starts_with('#') {
            writeln!(out, "{block}\n").expect("a String takes it");
            continue;
        }
        let (commands, _) = block.split_once("\n----").unwrap_or((block, ""));
        let mut output = String::new();
        for command in commands.lines() {
            output += &world.execute(command);
        }
        writeln!(out, "{commands}\n----\n{output}").expect("a String takes it");
    }
    out.trim_end().to_owned() + "\n"
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the stories are files; the core that plays them reads none")]
fn every_story_goes_as_it_is_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let update = std::env::var_os("UPDATE_STORIES").is_some();
    let mut stories = 0;
    for file in std::fs::read_dir(&folder).expect("testdata is there") {
        let path = file.expect("testdata can be listed").path();
        let told = std::fs::read_to_string(&path).expect("a story is text");
        let present = run(&told);
        if update {
            std::fs::write(&path, &present).expect("a story can be rewritten");
        } else {
            assert_eq!(told, present, "{} (UPDATE_STORIES=1 rewrites it)", path.display());
        }
        stories += 1;
    }
    assert!(stories > 0, "there are stories");
}
