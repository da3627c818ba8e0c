//! The file `durable`: the last durable and committed ids, written after each sync without a sync of
//! its own. It tells a damaged line from a torn tail after a crash of the process; after a loss of
//! power it may be old or gone, and then only protects less. Never believed without its CRC.

use std::io;

use kv_core::entry::{EntryId, seal_line, verify_line};
use serde::{Deserialize, Serialize};

use super::storage::{Storage, StorageFile, is_full, read_up_to};

pub(crate) const HINT_FILE: &str = "durable";
/// Three numbers of at most 20 digits, names and the CRC.
const HINT_BYTES_MAX: usize = 160;

/// What is known to be durable here. Ids of another lineage than the manifest's mean nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hint {
    pub(crate) durable: EntryId,
    pub(crate) committed: EntryId,
    pub(crate) lineage: u64,
}

impl Hint {
    /// Anything unreadable is no hint.
    pub(crate) fn load<S: Storage>(storage: &S) -> Option<Self> {
        let file = storage.open(HINT_FILE).ok()?;
        let bytes = read_up_to(&file, 0, HINT_BYTES_MAX).ok()?;
        // A shorter line may have been written over a longer one.
        let line = &bytes[..memchr::memchr(b'\n', &bytes)?];
        let open_line = verify_line(line).ok()?;
        serde_json::from_slice(&[open_line, b"}"].concat()).ok()
    }

    /// A full disk is no error here: without the hint nothing is lost but a warning.
    pub(crate) fn write<F: StorageFile>(&self, file: &F) -> io::Result<()> {
        match file.write_at(&self.encode(), 0) {
            Err(e) if !is_full(&e) => Err(e),
            _ => Ok(()),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut open_line = serde_json::to_vec(self).expect("three numbers are JSON");
        open_line.pop();
        let mut line = seal_line(open_line);
        line.push(b'\n');
        line
    }
}
