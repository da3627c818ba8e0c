//! Asking other members for the lines of a damaged file: the present leader, then all others that are known.
//! One question at a time; whether the answers are right, the file's checksum says.

use std::time::Duration;

use kv_core::entry::EntryId;
use kv_core::group::MemberId;
use kv_core::message::Message;
use tokio::time::{Instant, timeout_at};

use super::Repairs;
use crate::driver::lending::Borrowed;
use crate::wal::repair::Found;
use crate::wal::scrub::Hole;

/// A question without an answer is repeated after this time: frames may be dropped, and members lend to one
/// other at a time.
const REPEAT_AFTER: Duration = Duration::from_millis(500);
/// Questions without an answer before a member is given up.
const REPEATS_MAX: usize = 6;
/// Lines gathered for one file; whoever lacks more takes a snapshot.
const FOUND_BYTES_MAX: usize = 64 << 20;

impl Repairs {
    /// None: this node leads, or nobody is known to.
    pub(super) fn leader(&self) -> Option<MemberId> {
        let me = self.published.hello.load().member_id;
        self.published.view().leader.filter(|leader| *leader != me)
    }

    /// The leader first: the others may be unreachable, or behind.
    pub(super) fn lenders(&self, leader: Option<MemberId>) -> Vec<MemberId> {
        let (view, me) = (self.published.view(), self.published.hello.load().member_id);
        let others = view.urls.keys().copied().filter(|member| *member != me && Some(*member) != leader);
        leader.into_iter().chain(others).collect()
    }

    /// Adds what the member holds of these ids. False: it did not answer every question.
    pub(super) async fn ask(&mut self, member: MemberId, holes: &[Hole], found: &mut Found) -> bool {
        for hole in holes {
            if !self.ask_for(member, hole, found).await {
                return false;
            }
        }
        true
    }

    async fn ask_for(&mut self, member: MemberId, hole: &Hole, found: &mut Found) -> bool {
        let last = hole.ids.last;
        let mut first = hole.ids.first;
        let mut unanswered = 0;
        while first <= last && unanswered < REPEATS_MAX && !self.stopping.is_cancelled() {
            if found.values().map(bytes::Bytes::len).sum::<usize>() > FOUND_BYTES_MAX {
                return true; // far too much for this: a snapshot is the way
            }
            self.transport.send(member, Message::LinesRequest { first, last });
            match self.answer(member, first).await {
                Some(Borrowed { last: answered, entries, .. }) => {
                    unanswered = 0;
                    // It ends where its size limit is; empty: nothing more is held.
                    first = entries.last().map_or(answered, |entry| entry.id).next();
                    found.extend(entries.into_iter().map(|entry| (entry.id, entry.line)));
                }
                None => unanswered += 1,
            }
        }
        first > last
    }

    /// The next answer of this member that is about ids from `first` on.
    async fn answer(&mut self, member: MemberId, first: EntryId) -> Option<Borrowed> {
        let until = Instant::now() + REPEAT_AFTER;
        loop {
            let borrowed = timeout_at(until, self.lines.recv()).await.ok()??;
            if borrowed.from == member && borrowed.first >= first {
                return Some(borrowed);
            }
        }
    }
}
