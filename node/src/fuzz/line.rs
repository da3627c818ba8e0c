//! Lines of the log and of the sessions file.

use bytes::Bytes;
use kv_core::entry::{Entry, verify_line};
use kv_core::sessions::SessionRecord;

use super::sealed;

pub(super) fn line(data: &[u8]) {
    for line in [data.to_vec(), sealed(data)] {
        let line = Bytes::from(line);
        if let Ok(entry) = Entry::decode(line.clone()) {
            assert!(verify_line(&line).is_ok(), "a line without its CRC was accepted");
            let again = Entry::encode(entry.id, entry.epoch, entry.ts_ms, entry.body);
            assert_eq!(again.line, line, "an entry has another line than the one it came in");
        }
        if let Ok(record) = SessionRecord::decode(&line) {
            assert_eq!(record.encode(), line, "a record has another line than the one it came in");
        }
    }
}
