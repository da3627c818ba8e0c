//! Lines for a damaged member, asked of the others: read off the driver's task and sent as they are; and
//! those that were asked for, on their way to whoever did. Never looks at what they mean.

use std::sync::Arc;

use kv_core::entry::{Entry, EntryId};
use kv_core::group::MemberId;
use kv_core::message::Message;
use tokio::sync::{Semaphore, mpsc};

use super::rounds::Driver;

/// Bytes of one answer; whoever needs more asks again from where it ended.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Answers that wait for whoever asked; more are dropped, and asked for again.
const BORROWED_MAX: usize = 16;

/// An answer to a request for lines.
#[derive(Debug)]
pub(crate) struct Borrowed {
    pub(crate) from: MemberId,
    pub(crate) first: EntryId,
    pub(crate) last: EntryId,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(crate) struct Lending {
    /// One reading at a time; a request that finds it taken is dropped, and repeated by whoever asked.
    turn: Arc<Semaphore>,
    borrowed: mpsc::Sender<Borrowed>,
}

impl Lending {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Borrowed>) {
        let (borrowed, answers) = mpsc::channel(BORROWED_MAX);
        (Self { turn: Arc::new(Semaphore::new(1)), borrowed }, answers)
    }

    pub(crate) fn borrowed(&self, borrowed: Borrowed) {
        let _full = self.borrowed.try_send(borrowed);
    }
}

impl Driver {
    pub(crate) fn lend_lines(&self, to: MemberId, first: EntryId, last: EntryId) {
        let Ok(turn) = Arc::clone(&self.lending.turn).try_acquire_owned() else { return };
        let (reader, transport) = (self.published.reader.clone(), self.transport.clone());
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            match reader.read_held(first, last, ANSWER_BYTES_MAX) {
                Ok(entries) => {
                    let compacted = reader.horizon();
                    transport.send(to, Message::Lines { first, last, compacted, entries });
                }
                // No answer: an empty one would say that nothing is held.
                Err(error) => tracing::info!(%error, %first, "cannot read lines that a damaged node asks for"),
            }
        });
    }
}
