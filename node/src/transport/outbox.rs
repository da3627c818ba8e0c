//! What waits to be written to one connection: two bounded lanes, so that heartbeats and votes pass
//! appends and neither ever makes the driver wait. A full lane drops; Raft asks again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use kv_core::entry::Entry;
use kv_core::message::Message;
use tokio::sync::Notify;

/// Most messages other than appends and lines.
pub(crate) const CONTROL_FRAMES_MAX: usize = 4096;
/// Most appends and lines: twice the replica's window, which counts entries.
pub(crate) const BULK_FRAMES_MAX: usize = 16_384;
/// Most bytes of log lines: twice the replica's window.
pub(crate) const BULK_BYTES_MAX: usize = 16 << 20;
/// Bytes of lines that one write takes: a heartbeat waits for no more, unless one message has more.
const BATCH_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    lanes: Mutex<Lanes>,
    ready: Notify,
}

#[derive(Debug, Default)]
struct Lanes {
    control: VecDeque<Message>,
    bulk: VecDeque<Message>,
    bulk_bytes: usize,
    closed: bool,
}

/// The lane that had no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Control,
    Bulk,
}

impl Outbox {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn push(&self, message: Message) -> Result<(), Full> {
        self.lanes().push(message)?;
        self.ready.notify_one();
        Ok(())
    }

    /// Takes no more; what is queued still goes out.
    pub(crate) fn close(&self) {
        self.lanes().closed = true;
        self.ready.notify_one();
    }

    /// Waits for messages and moves the next ones to write into `batch`; false: closed and empty.
    /// May be cancelled. For one reader.
    pub(crate) async fn next_batch(&self, batch: &mut Vec<Message>) -> bool {
        loop {
            if let Some(more) = self.lanes().take(batch) {
                return more;
            }
            self.ready.notified().await;
        }
    }
}

impl Lanes {
    fn push(&mut self, message: Message) -> Result<(), Full> {
        let Some(bytes) = bulk_bytes(&message) else {
            if self.closed || self.control.len() >= CONTROL_FRAMES_MAX {
                return Err(Full::Control);
            }
            self.control.push_back(message);
            return Ok(());
        };
        // A single message over the limit must still be able to pass an empty lane.
        let has_room = self.bulk.is_empty() || self.bulk_bytes + bytes <= BULK_BYTES_MAX;
        if self.closed || !has_room || self.bulk.len() >= BULK_FRAMES_MAX {
            return Err(Full::Bulk);
        }
        self.bulk_bytes += bytes;
        self.bulk.push_back(message);
        Ok(())
    }

    /// None: nothing yet.
    fn take(&mut self, batch: &mut Vec<Message>) -> Option<bool> {
        batch.extend(self.control.drain(..));
        let mut taken = 0;
        while taken < BATCH_BYTES {
            let Some(message) = self.bulk.pop_front() else { break };
            let bytes = bulk_bytes(&message).unwrap_or(0);
            self.bulk_bytes -= bytes;
            taken += bytes;
            batch.push(message);
        }
        match (batch.is_empty(), self.closed) {
            (false, _) => Some(true),
            (true, true) => Some(false),
            (true, false) => None,
        }
    }
}

/// The bytes of lines in a message of the bulk lane; None: it goes by the other one.
fn bulk_bytes(message: &Message) -> Option<usize> {
    let lines = |entries: &[Entry]| entries.iter().map(|entry| entry.line.len() + 1).sum();
    match message {
        Message::Append(append) => Some(lines(&append.entries)),
        Message::Lines { entries, .. } => Some(lines(entries)),
        Message::Heartbeat(_)
        | Message::HeartbeatAck { .. }
        | Message::AppendAck(_)
        | Message::VoteRequest(_)
        | Message::VoteReply(_)
        | Message::TransferRequest { .. }
        | Message::TimeoutNow { .. }
        | Message::NotAMember { .. }
        | Message::Accepted(_)
        | Message::Stale { .. }
        | Message::Show { .. }
        | Message::RefillRequest { .. }
        | Message::RefillAnswer { .. }
        | Message::LinesRequest { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use kv_core::entry::Epoch;

    use super::*;
    use crate::transport::frame::tests::{append, entry};

    fn heartbeat() -> Message {
        Message::TimeoutNow { epoch: Epoch(1) }
    }

    #[tokio::test]
    async fn what_is_small_and_urgent_passes_appends() {
        let outbox = Outbox::default();
        let bulk = Message::Append(append(vec![entry(7, "1")]));
        outbox.push(bulk.clone()).expect("room");
        outbox.push(heartbeat()).expect("room");
        let mut batch = Vec::new();
        assert!(outbox.next_batch(&mut batch).await);
        assert_eq!(batch, [heartbeat(), bulk]);
    }

    #[test]
    fn each_lane_is_bounded_by_itself() {
        let outbox = Outbox::default();
        for _ in 0..CONTROL_FRAMES_MAX {
            outbox.push(heartbeat()).expect("room");
        }
        assert_eq!(outbox.push(heartbeat()), Err(Full::Control));
        let long = Message::Append(append(vec![entry(7, &format!("\"{}\"", "v".repeat(BULK_BYTES_MAX / 3)))]));
        outbox.push(long.clone()).expect("room");
        outbox.push(long.clone()).expect("room");
        assert_eq!(outbox.push(long), Err(Full::Bulk));
        for _ in 2..BULK_FRAMES_MAX {
            outbox.push(Message::Append(append(vec![]))).expect("room");
        }
        assert_eq!(outbox.push(Message::Append(append(vec![]))), Err(Full::Bulk));
    }

    #[tokio::test]
    async fn a_closed_outbox_gives_what_it_has_and_takes_nothing() {
        let outbox = Outbox::default();
        outbox.push(heartbeat()).expect("room");
        outbox.close();
        assert_eq!(outbox.push(heartbeat()), Err(Full::Control));
        let mut batch = Vec::new();
        assert!(outbox.next_batch(&mut batch).await);
        batch.clear();
        assert!(!outbox.next_batch(&mut batch).await);
    }
}
