//! The committer: the one thread that writes. It drains its queue, writes once and syncs once for all
//! that has gathered, and reports. While there is no room it tries again, and goes on putting
//! compactions in place, since they make room. A thin loop around [`Wal`].

mod queue;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kv_core::contract::{Base, Persist};

use super::recovery::Recovered;
use super::storage::Storage;
use super::{CompactedBase, SealedFile, Wal, WalError};
use crate::compactor::CompactionOutcome;
pub use queue::gather;
use queue::{Change, Queue, Swap, Work};

/// Between two tries to write, and between two looks at the room left, while there is too little.
const RETRY: Duration = Duration::from_millis(200);
/// Bytes appended between two looks at the room left.
const SPACE_CHECK_BYTES: usize = 1 << 20;
/// The longest time between two looks: others fill the volume, too.
const SPACE_CHECK: Duration = Duration::from_secs(1);

/// What the committer tells, on its own thread.
#[derive(Debug)]
pub enum CommitEvent {
    /// Everything submitted up to `seq` is durable; the last write and sync took this long.
    Persisted { seq: u64, took: Duration },
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
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

/// Submits compactions and repaired files; cheap to clone.
#[derive(Debug, Clone)]
pub struct CommitterHandle(Arc<Queue>);

impl Committer {
    /// Starts the thread. `events` is called on it and must not block.
    pub fn spawn<S: Storage>(wal: Wal<S>, events: impl FnMut(CommitEvent) + Send + 'static) -> Self {
        let queue = Arc::new(Queue::default());
        let thread = std::thread::Builder::new().name("wal".to_owned()).spawn({
            let queue = Arc::clone(&queue);
            move || Loop { wal, queue, events, is_full: false, unchecked_bytes: 0, looked: Instant::now() }.run()
        });
        let thread = thread.expect("the system lets a process that starts have one more thread");
        Self { queue, thread: Some(thread) }
    }

    pub fn handle(&self) -> CommitterHandle {
        CommitterHandle(Arc::clone(&self.queue))
    }

    /// Queues `op`; numbers rise. Waits when [`queue::OPS_MAX`] are queued, far above what a replica's
    /// own limits let it have under way.
    pub fn submit(&self, seq: u64, op: Persist) {
        self.queue.push(seq, op);
    }

    /// Finishes what is queued and waits for the thread. When cancelled, the thread finishes by itself.
    pub async fn close(mut self) {
        self.queue.close();
        let Some(thread) = self.thread.take() else { return };
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the thread of the log panicked");
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl CommitterHandle {
    /// Puts a compaction's files in place, between two writes; blocks until that is durable or refused.
    pub fn swap_compacted(&self, compacted: CompactedBase) -> Result<(), String> {
        self.swap(Change::Compacted(Box::new(compacted)))
    }

    /// Puts a repaired file in the place of the damaged one, as [`Self::swap_compacted`] does.
    pub fn swap_repaired(&self, repaired: SealedFile) -> Result<(), String> {
        self.swap(Change::Repaired(repaired))
    }

    /// Puts back the manifest, the hint and the active segment when they are gone. Blocks.
    pub fn reassert_names(&self) -> Result<(), String> {
        self.swap(Change::Names)
    }

    /// Whether the log lists this very file, between two changes of its files. Blocks.
    pub fn lists(&self, file: SealedFile) -> bool {
        self.swap(Change::Nothing { if_listed: file }).is_ok()
    }

    /// When there is too little room, the active segment is sealed: what is deleted can then be compacted away. Blocks.
    pub fn seal_when_short(&self) -> Result<(), String> {
        self.swap(Change::SealedWhenShort)
    }

    /// Goes by the storage limit of now: when this returns, it has been told whether there is room. Blocks.
    pub fn look_at_limit(&self) -> Result<(), String> {
        self.swap(Change::Limit)
    }

    fn swap(&self, change: Change) -> Result<(), String> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.0.push_swap(Swap { change, answer });
        answered.recv().unwrap_or_else(|_| Err("the log is closed".to_owned()))
    }
}

fn warn_of(gone: &[String]) {
    if !gone.is_empty() {
        tracing::warn!(files = ?gone, "files of the running log were gone or damaged: put back");
    }
}

struct Loop<S: Storage, E> {
    wal: Wal<S>,
    queue: Arc<Queue>,
    events: E,
    is_full: bool,
    unchecked_bytes: usize,
    looked: Instant,
}

/// Whether the thread goes on.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}

impl<S: Storage, E: FnMut(CommitEvent)> Loop<S, E> {
    fn run(mut self) {
        let _closes_also_on_panic = queue::CloseOnDrop(Arc::clone(&self.queue));
        self.look_at_space();
        loop {
            let patience = if self.is_full { RETRY } else { SPACE_CHECK };
            let next = match self.queue.take(Some(patience)) {
                Work::Closed => Next::End,
                Work::Nothing => {
                    self.look_at_space();
                    Next::GoOn
                }
                Work::Swap(swap) => self.swap(*swap),
                Work::Ops { seq, op } => self.carry_out(seq, &op),
            };
            if next == Next::End {
                return;
            }
        }
    }

    /// Tries until it is durable, the log fails, or the queue is closed.
    fn carry_out(&mut self, seq: u64, op: &Persist) -> Next {
        loop {
            let begun = Instant::now();
            match self.wal.persist(op) {
                Ok(recovered) => {
                    let persisted = CommitEvent::Persisted { seq, took: begun.elapsed() };
                    let installed = |recovered| CommitEvent::Installed { seq, recovered: Box::new(recovered) };
                    (self.events)(recovered.map_or(persisted, installed));
                    self.count(op);
                    return Next::GoOn;
                }
                Err(WalError::Full) => {
                    self.report_space(true);
                    if self.wait_for_room() == Next::End {
                        return Next::End;
                    }
                }
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Compaction makes room, so it goes on. Ends when the queue is closed: nobody waits any more.
    fn wait_for_room(&mut self) -> Next {
        match self.queue.take_swap(RETRY) {
            Work::Swap(swap) => self.swap(*swap),
            Work::Closed => Next::End,
            Work::Nothing | Work::Ops { .. } => Next::GoOn,
        }
    }

    fn swap(&mut self, Swap { change, answer }: Swap) -> Next {
        let changed = match change {
            Change::Compacted(compacted) => {
                let (base, outcome) = (compacted.base.clone(), compacted.outcome);
                let swapped = self.wal.swap_compacted(*compacted);
                swapped.map(|()| (self.events)(CommitEvent::Compacted { base, outcome }))
            }
            Change::Repaired(file) => self.wal.swap_repaired(file),
            Change::Names => self.wal.reassert_names().map(|gone| warn_of(&gone)),
            Change::Nothing { if_listed } if self.wal.lists(&if_listed) => Ok(()),
            Change::Nothing { if_listed } => Err(WalError::Rule(format!("{} is not listed", if_listed.name()))),
            Change::Limit => Ok(()),
            Change::SealedWhenShort => self.wal.seal_when_short(),
        };
        match changed {
            Ok(()) => {
                self.look_at_space();
                let _nobody_waits = answer.send(Ok(()));
                Next::GoOn
            }
            Err(error @ (WalError::Full | WalError::Rule(_))) => {
                let _nobody_waits = answer.send(Err(error.to_string()));
                Next::GoOn
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &WalError) -> Next {
        (self.events)(CommitEvent::Failed(error.to_string()));
        Next::End
    }

    fn count(&mut self, op: &Persist) {
        if let Persist::Append { entries, .. } = op {
            self.unchecked_bytes += entries.iter().map(|e| e.line.len()).sum::<usize>();
        }
        if self.unchecked_bytes >= SPACE_CHECK_BYTES || self.looked.elapsed() >= SPACE_CHECK {
            self.look_at_space();
        }
    }

    fn look_at_space(&mut self) {
        self.unchecked_bytes = 0;
        self.looked = Instant::now();
        match self.wal.is_short_of_space() {
            Ok(is_short) => self.report_space(is_short),
            Err(error) => tracing::warn!(%error, "cannot tell how much room is left"),
        }
    }

    fn report_space(&mut self, is_full: bool) {
        if is_full != self.is_full {
            self.is_full = is_full;
            self.wal.note_full(is_full);
            (self.events)(CommitEvent::StorageFull(is_full));
        }
    }
}
