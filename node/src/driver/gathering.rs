//! What a damaged group of one has learnt from its learners so far, and whom to ask next. No I/O.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_core::entry::{Entry, EntryId, Epoch};
use kv_core::group::{ClusterId, MemberId};
use kv_core::message::{Hello, Message};

use crate::wal::IdRange;

/// Ids that the log lacks, and the epoch of the line above them (at the log's end: the promised one).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) range: IdRange,
    pub(crate) epoch_above: Epoch,
}

#[derive(Debug)]
pub(crate) struct Gathering {
    cluster_id: ClusterId,
    missing: Vec<Missing>,
    found: BTreeMap<EntryId, (MemberId, Entry)>,
    /// Learners that may still have something, with what they were asked last.
    asked: BTreeMap<MemberId, IdRange>,
    /// The highest id up to which a learner's log is known to be the same as the damaged one was.
    same_up_to: BTreeMap<MemberId, EntryId>,
    /// At or below it a learner that answered has compacted its log.
    compacted: EntryId,
    /// Lines of the base are missing up to here; 0: none. Learners hold the state that they made, but in a base of
    /// their own.
    base_up_to: EntryId,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// Rising by id.
    pub(crate) found: Vec<Entry>,
    /// What is missing at or below it may be known to a learner all the same: in another form, that a key was
    /// deleted, say, or as lines that cannot be told from those of a tail that was never acknowledged.
    pub(crate) unclear_up_to: EntryId,
}

impl Gathering {
    pub(crate) fn new(cluster_id: ClusterId, missing: Vec<Missing>, base_up_to: EntryId) -> Self {
        Self {
            cluster_id,
            missing,
            found: BTreeMap::new(),
            asked: BTreeMap::new(),
            same_up_to: BTreeMap::new(),
            compacted: EntryId::ZERO,
            base_up_to,
        }
    }

    /// The first question to a learner that has connected.
    pub(crate) fn connected(&mut self, hello: &Hello) -> Option<Message> {
        if hello.cluster_id.as_ref() != Some(&self.cluster_id) {
            return None;
        }
        if hello.durable.id > EntryId::ZERO {
            self.compacted = self.compacted.max(self.base_up_to);
        }
        self.question(hello.member_id, EntryId::ZERO)
    }

    pub(crate) fn disconnected(&mut self, learner: MemberId) {
        self.asked.remove(&learner);
    }

    /// Takes an answer; the next question to the same learner. It has nothing more when none is left.
    pub(crate) fn lines(
        &mut self,
        from: MemberId,
        last: EntryId,
        compacted: EntryId,
        entries: Vec<Entry>,
    ) -> Option<Message> {
        let asked = *self.asked.get(&from)?;
        self.compacted = self.compacted.max(compacted);
        // An answer stops where its size limit is; an empty one says that the rest is not held. A late one
        // to an earlier question says nothing about what was asked since.
        let answered_to = entries.last().map_or(last, |entry| entry.id);
        for entry in entries {
            let Some(epoch_above) = self.epoch_above(entry.id) else { continue };
            if entry.epoch == epoch_above {
                // One leader orders an id once, so this line is the lost one; and below a line that is the same, logs are.
                let same = self.same_up_to.entry(from).or_default();
                *same = (*same).max(entry.id);
            }
            self.found.entry(entry.id).or_insert((from, entry));
        }
        if answered_to < asked.first {
            return None;
        }
        self.question(from, answered_to)
    }

    /// What has not been answered: asked again, since frames may be dropped.
    pub(crate) fn unanswered(&self) -> Vec<(MemberId, Message)> {
        self.asked.iter().map(|(learner, range)| (*learner, request_for(*range))).collect()
    }

    /// Everything was found, or is known to be held by a learner that cannot give it back.
    pub(crate) fn is_complete(&self) -> bool {
        self.next_missing(EntryId::ZERO).is_none() && self.compacted >= self.base_up_to
    }

    /// What was found and is certainly what was lost.
    pub(crate) fn finish(self) -> Gathered {
        let Self { found, same_up_to, compacted, .. } = self;
        let is_same = |learner, id| same_up_to.get(&learner).is_some_and(|same| id <= *same);
        let (mut certain, mut unclear_up_to) = (Vec::new(), compacted);
        for (id, (learner, entry)) in found {
            if is_same(learner, id) {
                certain.push(entry);
            } else {
                unclear_up_to = unclear_up_to.max(id);
            }
        }
        Gathered { found: certain, unclear_up_to }
    }

    /// Whatever came, certain or not: for files whose checksum says what belongs there.
    pub(crate) fn lines_found(&self) -> BTreeMap<EntryId, Bytes> {
        self.found.iter().map(|(id, (_, entry))| (*id, entry.line.clone())).collect()
    }

    fn question(&mut self, learner: MemberId, after: EntryId) -> Option<Message> {
        match self.next_missing(after) {
            Some(range) => {
                self.asked.insert(learner, range);
                Some(request_for(range))
            }
            None => {
                self.asked.remove(&learner);
                None
            }
        }
    }

    /// None: it is not missing.
    fn epoch_above(&self, id: EntryId) -> Option<Epoch> {
        let covers = |missing: &&Missing| missing.range.first <= id && id <= missing.range.last;
        self.missing.iter().find(covers).map(|missing| missing.epoch_above)
    }

    /// The first run of ids above `after` that are missing and were not found.
    fn next_missing(&self, after: EntryId) -> Option<IdRange> {
        self.missing.iter().find_map(|Missing { range, .. }| {
            let mut first = range.first.max(after.next());
            while first <= range.last && self.found.contains_key(&first) {
                first = first.next();
            }
            let next_found = self.found.range(first..).next().map_or(range.last, |(id, _)| id.prev());
            (first <= range.last).then(|| IdRange { first, last: range.last.min(next_found) })
        })
    }
}

fn request_for(IdRange { first, last }: IdRange) -> Message {
    Message::LinesRequest { first, last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_core::entry::{Body, Control};
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
            baseline: None,
            feature_level: FEATURE_LEVEL,
            url: String::new(),
            peer_url: String::new(),
        }
    }

    fn entries(first: u64, last: u64) -> Vec<Entry> {
        let body = || Body::Control(Control::Epoch { leader: MemberId(1) });
        (first..=last).map(|id| Entry::encode(EntryId(id), Epoch(1), None, body())).collect()
    }

    fn missing(first: u64, last: u64) -> Missing {
        let range = IdRange { first: EntryId(first), last: EntryId(last) };
        Missing { range, epoch_above: Epoch(1) }
    }

    fn request(first: u64, last: u64) -> Option<Message> {
        Some(Message::LinesRequest { first: EntryId(first), last: EntryId(last) })
    }

    fn answer(gathering: &mut Gathering, from: u64, last: u64, entries: Vec<Entry>) -> Option<Message> {
        gathering.lines(MemberId(from), EntryId(last), EntryId(0), entries)
    }

    fn found(gathering: Gathering) -> Vec<u64> {
        gathering.finish().found.iter().map(|entry| entry.id.0).collect()
    }

    #[test]
    fn what_one_learner_lacks_is_asked_of_the_next() {
        let mut gathering = Gathering::new(cluster(), vec![missing(3, 6), missing(9, 9)], EntryId::ZERO);
        assert_eq!(gathering.connected(&hello(7, cluster())), request(3, 6));
        assert_eq!(answer(&mut gathering, 7, 6, entries(3, 4)), request(5, 6));
        assert_eq!(gathering.unanswered(), [(MemberId(7), request(5, 6).expect("a request"))]);
        assert_eq!(answer(&mut gathering, 7, 6, Vec::new()), request(9, 9));
        assert_eq!(answer(&mut gathering, 7, 9, Vec::new()), None);
        assert!(gathering.unanswered().is_empty());
        assert_eq!(gathering.connected(&hello(8, cluster())), request(5, 6));
        assert_eq!(answer(&mut gathering, 8, 6, entries(5, 5)), request(6, 6));
        assert_eq!(answer(&mut gathering, 8, 6, Vec::new()), request(9, 9));
        assert_eq!(answer(&mut gathering, 8, 9, entries(9, 9)), None);
        assert!(!gathering.is_complete());
        assert_eq!(found(gathering), [3, 4, 5, 9]);
    }

    #[test]
    fn a_late_answer_does_not_skip_what_was_asked_since() {
        let mut gathering = Gathering::new(cluster(), vec![missing(3, 6), missing(9, 9)], EntryId::ZERO);
        gathering.connected(&hello(7, cluster()));
        assert_eq!(answer(&mut gathering, 7, 6, entries(3, 6)), request(9, 9));
        assert_eq!(answer(&mut gathering, 7, 6, entries(3, 6)), None);
        assert_eq!(gathering.unanswered().len(), 1);
        assert_eq!(answer(&mut gathering, 7, 9, entries(9, 9)), None);
        assert!(gathering.is_complete());
    }

    #[test]
    fn a_learner_of_another_cluster_is_not_asked_and_not_believed() {
        let mut gathering = Gathering::new(cluster(), vec![missing(3, 3)], EntryId::ZERO);
        assert_eq!(gathering.connected(&hello(7, ClusterId::new("other").expect("a name"))), None);
        assert_eq!(answer(&mut gathering, 7, 3, entries(3, 3)), None);
        assert_eq!(found(gathering), [0; 0]);
    }

    #[test]
    fn lines_that_nobody_asked_for_are_left_out() {
        let mut gathering = Gathering::new(cluster(), vec![missing(3, 3)], EntryId::ZERO);
        gathering.connected(&hello(7, cluster()));
        gathering.lines(MemberId(7), EntryId(3), EntryId(1), entries(2, 4));
        assert!(gathering.is_complete());
        let Gathered { found, unclear_up_to } = gathering.finish();
        assert_eq!((found, unclear_up_to), (entries(3, 3), EntryId(1)));
    }

    #[test]
    fn a_line_of_an_earlier_epoch_is_believed_below_one_that_is_certain_and_else_left_open() {
        let above = |first, last| Missing { epoch_above: Epoch(2), ..missing(first, last) };
        let later = Entry::encode(EntryId(4), Epoch(2), None, Body::Control(Control::Epoch { leader: MemberId(1) }));
        let mut gathering = Gathering::new(cluster(), vec![above(3, 5)], EntryId::ZERO);
        gathering.connected(&hello(7, cluster()));
        answer(&mut gathering, 7, 5, [entries(3, 3), vec![later]].concat());
        assert_eq!(found(gathering), [3, 4]);

        let mut gathering = Gathering::new(cluster(), vec![above(3, 5)], EntryId::ZERO);
        gathering.connected(&hello(7, cluster()));
        answer(&mut gathering, 7, 5, entries(3, 4));
        let Gathered { found, unclear_up_to } = gathering.finish();
        assert_eq!((found, unclear_up_to), (Vec::new(), EntryId(4)));
    }
}
