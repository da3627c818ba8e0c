//! Directories of the Python original: which files are read, and in which order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wal::import::{ImportError, reads_as};

/// Begins a file in the input, with its name.
const NAME_MARK: &[u8] = b"@";
const SEGMENT_PREFIX: &str = "wal.log.segment.";

/// Removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kv-fuzz-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("the directory for temporary files can be written");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Gaps in the numbers, a number written in two ways and files that are no log's: what is read is what stands in
/// the log's files, the single log first and then by number.
pub(super) fn segments(data: &[u8]) {
    let files = files(data);
    let directory = Directory::new();
    for (name, bytes) in &files {
        std::fs::write(directory.0.join(name), bytes).expect("the directory for temporary files can be written");
    }
    let mut logs: Vec<_> = files.iter().filter_map(|(name, bytes)| Some((place(name)?, name, bytes))).collect();
    logs.sort();
    let text = logs.iter().map(|(_, _, bytes)| &bytes[..]).collect::<Vec<_>>().join(&b'\n');
    match reads_as(&directory.0, &text) {
        Ok(is_the_same) => assert!(is_the_same && !logs.is_empty(), "{files:?}"),
        Err(error) => {
            assert!(logs.is_empty() && matches!(error, ImportError::NothingToImport(_)), "{error}: {files:?}")
        }
    }
}

/// Of a log's file among the others.
fn place(name: &str) -> Option<u64> {
    if name == "wal.log" { Some(0) } else { name.strip_prefix(SEGMENT_PREFIX)?.parse().ok() }
}

fn files(data: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut name = "wal.log".to_owned();
    for line in data.split_inclusive(|&byte| byte == b'\n') {
        let given = line.strip_prefix(NAME_MARK).and_then(|name| std::str::from_utf8(name.trim_ascii_end()).ok());
        match given.filter(|name| is_plain(name)) {
            Some(given) => given.clone_into(&mut name),
            None => files.entry(name.clone()).or_insert_with(Vec::new).extend(line),
        }
    }
    files
}

fn is_plain(name: &str) -> bool {
    let is_plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'+' | b'-');
    (1..100).contains(&name.len())
        && name.bytes().all(is_plain)
        && name.bytes().any(|byte| byte != b'.')
        && name != "manifest.json" // a directory of ours, which is refused
}
