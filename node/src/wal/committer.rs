//! The committer: the one thread that writes. It drains its queue, writes once and syncs once for all
//! that has gathered, and reports. A thin loop around [`Wal`].

use kv_core::contract::{Base, Persist};

use super::recovery::Recovered;
use super::storage::Storage;
use super::{CompactedBase, Wal};
use crate::compactor::CompactionOutcome;

/// What the committer tells, on its own thread.
#[derive(Debug)]
pub enum CommitEvent {
    /// Everything submitted up to `seq` is durable.
    Persisted { seq: u64 },
    /// Answers `Persist::Install`.
    Installed { seq: u64, recovered: Box<Recovered> },
    /// A compaction's files have replaced what they cover.
    Compacted { base: Base, outcome: CompactionOutcome },
    /// Space is running out, or there is room again. Nothing was lost.
    StorageFull(bool),
    /// Nothing will be written any more: the process must end.
    Failed(String),
}

/// Owns the thread. Dropping it without [`Committer::close`] lets the thread finish what is queued.
#[derive(Debug)]
pub struct Committer {
    handle: CommitterHandle,
}

/// Submits work; cheap to clone.
#[derive(Debug, Clone)]
pub struct CommitterHandle {}

impl Committer {
    /// Starts the thread. `events` is called on it and must not block.
    pub fn spawn<S: Storage>(_wal: Wal<S>, _events: impl FnMut(CommitEvent) + Send + 'static) -> Self {
        Self { handle: CommitterHandle {} }
    }

    pub fn handle(&self) -> CommitterHandle {
        self.handle.clone()
    }

    /// Queues `op`; numbers rise.
    pub fn submit(&self, _seq: u64, _op: Persist) {}

    /// Finishes what is queued and waits for the thread. May not be cancelled halfway: dropping it detaches the thread.
    pub async fn close(self) {}
}

impl CommitterHandle {
    /// Puts a compaction's files in place, between two writes; blocks until that is durable or refused.
    pub fn swap_compacted(&self, _compacted: CompactedBase) -> Result<(), String> {
        Err("not yet built".into())
    }
}
