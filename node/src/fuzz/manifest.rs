//! The manifest.

use super::sealed;
use crate::wal::Manifest;

pub(super) fn manifest(data: &[u8]) {
    let mut line = sealed(data.strip_suffix(b"\n").unwrap_or(data));
    line.push(b'\n');
    for bytes in [data, &line] {
        let Ok(manifest) = Manifest::decode(bytes) else { continue };
        let again = Manifest::decode(&manifest.encode()).expect("what was written is read");
        assert_eq!(again, manifest);
        assert!(manifest.listed().len() > manifest.files.len());
    }
}
