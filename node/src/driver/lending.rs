//! Lines for a damaged group of one, asked of its learners: read off the driver's task and sent as
//! they are. Never looks at what they mean.

use std::sync::Arc;

use kv_core::entry::EntryId;
use kv_core::group::MemberId;
use kv_core::message::Message;
use tokio::sync::Semaphore;

use super::rounds::Driver;

/// Bytes of one answer; whoever needs more asks again from where it ended.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// One reading at a time; a request that finds it taken is dropped, and repeated by whoever asked.
#[derive(Debug)]
pub(crate) struct Lending(Arc<Semaphore>);

impl Default for Lending {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Driver {
    pub(crate) fn lend_lines(&self, to: MemberId, first: EntryId, last: EntryId) {
        let Ok(turn) = Arc::clone(&self.lending.0).try_acquire_owned() else { return };
        let (reader, transport) = (self.published.reader.clone(), self.transport.clone());
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            match reader.read_held(first, last, ANSWER_BYTES_MAX) {
                Ok(entries) => {
                    let compacted = reader.horizon();
                    transport.send(to, Message::Lines { first, last, compacted, entries });
                }
                // No answer: an empty one would say that nothing is held.
                Err(error) => tracing::warn!(%error, %first, "cannot read lines that a damaged node asks for"),
            }
        });
    }
}
