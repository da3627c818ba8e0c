//! What the bytes of others are given to, as functions that panic when a promise about them breaks: no
//! panic, no hang, and what is accepted is written again as it was. Called by the fuzzer
//! (`tests/fuzz`) and by the test that goes through its corpus; never by a node.

mod body;
mod frame;
mod import;
mod line;
mod manifest;
mod request;
mod segments;
mod snapshot;

use kv_core::entry::{seal_line, verify_line};

/// One function, and the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 8] = [
    ("body", body::body),
    ("frame", frame::frame),
    ("import", import::import),
    ("line", line::line),
    ("manifest", manifest::manifest),
    ("request", request::request),
    ("segments", segments::segments),
    ("snapshot", snapshot::snapshot),
];

/// Calls the target of this name.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target's name");
    target(data);
}

/// The line with a CRC that holds: chance never finds one, and what is behind it must be reached.
fn sealed(line: &[u8]) -> Vec<u8> {
    if verify_line(line).is_ok() {
        return line.to_vec();
    }
    let open_line = match memchr::memmem::rfind(line, b",\"crc\":") {
        Some(end) => &line[..end],
        None => line.strip_suffix(b"}").unwrap_or(line),
    };
    seal_line(open_line.to_vec())
}
