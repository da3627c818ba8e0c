//! What a damaged group of one has learnt from its learners so far, and whom to ask next. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::entry::{Entry, EntryId};
use kv_core::group::{ClusterId, MemberId};
use kv_core::message::{Hello, Message};

use crate::wal::IdRange;

#[derive(Debug)]
pub(crate) struct Gathering {
    cluster_id: ClusterId,
    missing: Vec<IdRange>,
    found: BTreeMap<EntryId, Entry>,
    /// Learners that may still have something.
    asked: BTreeSet<MemberId>,
}

impl Gathering {
    pub(crate) fn new(cluster_id: ClusterId, missing: Vec<IdRange>) -> Self {
        Self { cluster_id, missing, found: BTreeMap::new(), asked: BTreeSet::new() }
    }

    /// The first question to a learner that has connected.
    pub(crate) fn connected(&mut self, hello: &Hello) -> Option<Message> {
        if hello.cluster_id.as_ref() != Some(&self.cluster_id) {
            return None;
        }
        self.asked.insert(hello.member_id);
        self.question(hello.member_id, EntryId::ZERO)
    }

    pub(crate) fn disconnected(&mut self, learner: MemberId) {
        self.asked.remove(&learner);
    }

    /// Takes an answer; the next question to the same learner. It has nothing more when none is left.
    pub(crate) fn lines(&mut self, from: MemberId, last: EntryId, entries: Vec<Entry>) -> Option<Message> {
        if !self.asked.contains(&from) {
            return None;
        }
        // An answer stops where its size limit is; an empty one says that the rest is not held.
        let answered_to = entries.last().map_or(last, |entry| entry.id);
        for entry in entries {
            if self.lacks(entry.id) {
                self.found.insert(entry.id, entry);
            }
        }
        self.question(from, answered_to)
    }

    /// Everything was found.
    pub(crate) fn is_complete(&self) -> bool {
        self.next_missing(EntryId::ZERO).is_none()
    }

    /// What was found, rising by id, and the ids that nobody holds.
    pub(crate) fn finish(self) -> (Vec<Entry>, Vec<IdRange>) {
        let mut lost = Vec::new();
        let mut after = EntryId::ZERO;
        while let Some(range) = self.next_missing(after) {
            lost.push(range);
            after = range.last;
        }
        (self.found.into_values().collect(), lost)
    }

    fn question(&mut self, learner: MemberId, after: EntryId) -> Option<Message> {
        let range = self.next_missing(after);
        if range.is_none() {
            self.asked.remove(&learner);
        }
        range.map(|IdRange { first, last }| Message::LinesRequest { first, last })
    }

    fn lacks(&self, id: EntryId) -> bool {
        self.missing.iter().any(|range| range.first <= id && id <= range.last)
    }

    /// The first run of ids above `after` that are missing and were not found.
    fn next_missing(&self, after: EntryId) -> Option<IdRange> {
        self.missing.iter().find_map(|range| {
            let mut first = range.first.max(after.next());
            while first <= range.last && self.found.contains_key(&first) {
                first = first.next();
            }
            let next_found = self.found.range(first..).next().map_or(range.last, |(id, _)| id.prev());
            (first <= range.last).then(|| IdRange { first, last: range.last.min(next_found) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_core::entry::{Body, Control, Epoch};
    use kv_core::group::{FEATURE_LEVEL, NodeName};
    use kv_core::message::Promise;

    fn cluster() -> ClusterId {
        ClusterId::new("c").expect("a name")
    }

    fn hello(member: u64, cluster_id: ClusterId) -> Hello {
        Hello {
            name: NodeName::new("n").expect("a name"),
            member_id: MemberId(member),
            cluster_id: Some(cluster_id),
            incarnation: 1,
            start_id: 1,
            promise: Promise::default(),
            durable: kv_core::entry::LogPosition::default(),
            feature_level: FEATURE_LEVEL,
            url: String::new(),
            peer_url: String::new(),
        }
    }

    fn entries(first: u64, last: u64) -> Vec<Entry> {
        let body = || Body::Control(Control::Epoch { leader: MemberId(1) });
        (first..=last).map(|id| Entry::encode(EntryId(id), Epoch(1), None, body())).collect()
    }

    fn range(first: u64, last: u64) -> IdRange {
        IdRange { first: EntryId(first), last: EntryId(last) }
    }

    fn request(first: u64, last: u64) -> Option<Message> {
        Some(Message::LinesRequest { first: EntryId(first), last: EntryId(last) })
    }

    #[test]
    fn what_one_learner_lacks_is_asked_of_the_next_and_the_rest_is_lost() {
        let mut gathering = Gathering::new(cluster(), vec![range(3, 6), range(9, 9)]);
        assert_eq!(gathering.connected(&hello(7, cluster())), request(3, 6));
        assert_eq!(gathering.lines(MemberId(7), EntryId(6), entries(3, 4)), request(5, 6));
        assert_eq!(gathering.lines(MemberId(7), EntryId(6), Vec::new()), request(9, 9));
        assert_eq!(gathering.lines(MemberId(7), EntryId(9), Vec::new()), None);
        assert!(gathering.asked.is_empty());
        assert_eq!(gathering.connected(&hello(8, cluster())), request(5, 6));
        assert_eq!(gathering.lines(MemberId(8), EntryId(6), entries(5, 5)), request(6, 6));
        assert_eq!(gathering.lines(MemberId(8), EntryId(6), Vec::new()), request(9, 9));
        assert_eq!(gathering.lines(MemberId(8), EntryId(9), entries(9, 9)), None);
        assert!(!gathering.is_complete());
        let (found, lost) = gathering.finish();
        assert_eq!(found.iter().map(|e| e.id.0).collect::<Vec<_>>(), [3, 4, 5, 9]);
        assert_eq!(lost, [range(6, 6)]);
    }

    #[test]
    fn a_learner_of_another_cluster_is_not_asked_and_not_believed() {
        let mut gathering = Gathering::new(cluster(), vec![range(3, 3)]);
        assert_eq!(gathering.connected(&hello(7, ClusterId::new("other").expect("a name"))), None);
        assert_eq!(gathering.lines(MemberId(7), EntryId(3), entries(3, 3)), None);
        assert_eq!(gathering.finish().1, [range(3, 3)]);
    }

    #[test]
    fn lines_that_nobody_asked_for_are_left_out() {
        let mut gathering = Gathering::new(cluster(), vec![range(3, 3)]);
        gathering.connected(&hello(7, cluster()));
        gathering.lines(MemberId(7), EntryId(3), entries(2, 4));
        assert!(gathering.is_complete());
        assert_eq!(gathering.finish().0, entries(3, 3));
    }
}
