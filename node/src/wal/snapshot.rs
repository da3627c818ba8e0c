//! A snapshot: the whole state at one applied id as a stream of lines. It is the log itself, base and
//! entries, between a header and a trailer; `GET /snapshot`, a follower that is refilled and
//! `kv-node restore` all use this one format. It carries values, versions, history, deduplication,
//! configuration, settings and the horizon.
//!
//! ```text
//! {"kvcluster_snapshot":1,"cluster_id":"…","position":{"epoch":3,"id":95},"base":{…},"crc":N}
//! {"section":"history","crc":N}    superseded versions at or below the horizon, ids rising
//! {"id":2,"epoch":1,"operation":"SET",…,"crc":N}
//! {"section":"live","crc":N}       current values at the horizon, ids rising
//! {"section":"sessions","crc":N}   deduplication records at or below the horizon
//! {"section":"log","crc":N}        every entry above the horizon up to the position, no gap
//! {"end":{"history":1,"live":0,"sessions":0,"log":0},"bytes":512,"checksum":N,"crc":N}
//! ```
//!
//! Every line ends in a newline and carries its own CRC, the one of the log's lines; `checksum` is the
//! CRC-32 of all bytes before the trailer's line and `bytes` their number. A stream without its
//! trailer is incomplete. A reader replays it as recovery does: history, live, sessions, then the log,
//! skipping what `base.refused` names. A release reads its own format number and lower ones.

mod check;
mod format;
mod receive;
mod send;

pub(crate) use check::Checker;
pub use format::{Counts, Header};
pub use receive::{ReceiveError, Received, SnapshotReceiver};
pub use send::{SnapshotSource, SnapshotUnavailable};

use kv_core::command::VALUE_BYTES_CEILING;
use kv_core::entry::LineError;

/// Longest line of a snapshot: the largest value, the longest key with every byte escaped, request
/// ids likewise, and room for the numbers; a base with many refused ids stays below it, too.
pub(crate) const LINE_BYTES_MAX: usize = VALUE_BYTES_CEILING + 6 * (1024 + 2 * 256) + 4096;

/// Why a stream is not a snapshot that can be used. Nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("this is not a snapshot of kvcluster")]
    Foreign,
    #[error("the snapshot has format {found}, this release reads up to {}: use a newer release", format::FORMAT)]
    Newer { found: u32 },
    #[error("the snapshot ends after {lines} lines, before its trailer: it is incomplete")]
    Truncated { lines: u64 },
    #[error("something follows the snapshot's trailer")]
    AfterTheEnd,
    #[error("line {number} of the snapshot is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong { number: u64 },
    #[error("line {number} of the snapshot: {error}")]
    Line { number: u64, error: LineError },
    #[error("line {number} of the snapshot: {rule}")]
    Rule { number: u64, rule: &'static str },
}

#[cfg(test)]
mod tests;
