//! What compaction asks of the node: the state in force, how far it may go, and one moment at which
//! all that it saw is covered.

use std::sync::Arc;

use kv_core::entry::EntryId;
use kv_core::keyspace::Keyspace;
use kv_core::sessions::Sessions;
use tokio::sync::oneshot;

use super::handle::{Call, CallError, Handle};
use crate::compactor::{CompactionJob, CompactionOutcome};
use crate::wal::compaction::{AppliedState, Settled, WalCompaction};

impl Handle {
    /// The compaction of this node, for the compactor to run.
    pub fn compaction_job(&self) -> Arc<dyn CompactionJob> {
        let reader = self.reader().clone();
        let compaction = WalCompaction { reader, committer: self.published.committer.clone(), state: self.clone() };
        Arc::new(BusyWith { compaction, node: self.clone() })
    }
}

/// While it runs, the scrub leaves the disk alone.
struct BusyWith<J> {
    compaction: J,
    node: Handle,
}

impl<J: CompactionJob> CompactionJob for BusyWith<J> {
    fn run(&self) -> Result<CompactionOutcome, String> {
        let _busy = self.node.published.busy();
        self.compaction.run()
    }

    fn pressed_at(&self) -> Option<u64> {
        self.compaction.pressed_at()
    }
}

impl AppliedState for Handle {
    fn keyspace(&self) -> Arc<Keyspace> {
        self.keyspace()
    }

    fn sessions(&self) -> Arc<Sessions> {
        self.sessions()
    }

    fn limit(&self) -> EntryId {
        self.compaction_limit()
    }

    fn settled(&self) -> Result<Settled, String> {
        let (reply, answer) = oneshot::channel();
        self.requests.blocking_send(Call::Settled(reply)).map_err(|_| CallError::Stopped.to_string())?;
        answer.blocking_recv().map_err(|_| CallError::Stopped.to_string())
    }
}
