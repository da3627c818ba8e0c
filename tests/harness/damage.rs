//! Damage of a node's files at rest, as a disk makes it: which files are sealed, and a byte that changes in
//! place. Knows the names that the manifest lists; judges nothing. Called by black-box tests and `kv-chaos`.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::Value;

/// Kind and name of each sealed file that the manifest lists; none while there is no manifest.
pub fn sealed_files(data_dir: &Path) -> Vec<(String, String)> {
    let text = std::fs::read(data_dir.join("manifest.json")).unwrap_or_default();
    let manifest: Value = serde_json::from_slice(&text).unwrap_or_default();
    let files = manifest["files"].as_array().into_iter().flatten();
    let named = files.filter_map(|file| {
        let kind = file["kind"].as_str()?;
        let word = if ["log", "live"].contains(&kind) { "segment" } else { kind };
        Some((kind.to_owned(), format!("wal.log.{word}.{}", file["number"])))
    });
    named.collect()
}

/// Changes one byte in place, and returns the bytes as they are then. None: the file is gone.
pub fn flip_byte(path: &Path, at: u64) -> Option<Vec<u8>> {
    let mut file = std::fs::File::options().read(true).write(true).open(path).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let at = at.checked_rem(bytes.len() as u64)?;
    let byte = &mut bytes[usize::try_from(at).expect("below a file's length in memory")];
    *byte ^= 0x11;
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&[*byte])).ok()?;
    Some(bytes)
}
