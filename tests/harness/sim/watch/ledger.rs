//! What one volume was asked to hold, and what it must hold.

use std::collections::BTreeMap;

use kv_core::contract::{HardState, Persist};
use kv_core::entry::{Entry, EntryId, Epoch};
use kv_core::group::{ClusterId, MemberId};
use kv_core::message::{Promise, Seen};
use kv_node::wal::Recovered;

use super::Line;
use super::rules::awaited_in;

/// Of one volume. Lines below the horizon stay in it: what they did, the volume still holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    member: Option<MemberId>,
    /// As the volume names it. None: it is of no group.
    cluster: Option<ClusterId>,
    incarnation: u64,
    /// Of a group.
    pub(crate) is_member: bool,
    /// The log as the replica has it.
    pub(super) asked: BTreeMap<EntryId, Line>,
    /// What the log said is durable.
    pub(super) durable: BTreeMap<EntryId, Line>,
    pub(super) promise: Promise,
    /// What the volume remembers of other members.
    pub(super) seen: BTreeMap<MemberId, Seen>,
    /// A refill that has ended has ended on the disk.
    pub(crate) is_quarantined: bool,
    /// Something was done to the disk that no disk may do.
    pub(crate) is_damaged: bool,
    /// It was put back: what its member has acknowledged since is missing until it has been refilled.
    pub(crate) is_old_copy: bool,
    /// The damage is in the active segment: a loss of power before a start has found it takes the hint with it that
    /// tells it from a torn tail (`docs/correctness.md`, *What escapes*).
    pub(crate) may_look_torn: bool,
    /// Then it does not open, and a person empties it.
    pub(crate) has_bad_manifest: bool,
    /// Pages may be readable that are not on the disk.
    pub(crate) sync_failed: bool,
}

impl Ledger {
    pub(crate) fn member(&self) -> Option<MemberId> {
        self.member
    }

    pub(crate) fn cluster(&self) -> Option<&ClusterId> {
        self.cluster.as_ref()
    }

    /// This much of the hard state is durable.
    pub(super) fn keeps(&mut self, hard: &HardState) {
        self.promise = hard.promise;
        self.is_member = hard.cluster_id.is_some();
        self.cluster.clone_from(&hard.cluster_id);
        self.is_old_copy &= !self.is_quarantined || hard.quarantine.is_some();
        self.is_quarantined = hard.quarantine.is_some();
        self.seen.clone_from(&hard.seen);
    }

    /// What is about to be kept replaces no vote of the same epoch.
    pub(super) fn keeps_vote(&self, hard: &HardState) {
        let Promise { epoch, candidate } = self.promise;
        let is_kept = hard.promise.epoch > epoch || candidate.is_none() || hard.promise.candidate == candidate;
        assert!(is_kept, "a vote is replaced: {:?} by {:?}", self.promise, hard.promise);
    }

    pub(crate) fn last_asked(&self) -> EntryId {
        self.asked.last_key_value().map_or(EntryId::ZERO, |(id, _)| *id)
    }

    pub(crate) fn last_durable(&self) -> EntryId {
        self.durable.last_key_value().map_or(EntryId::ZERO, |(id, _)| *id)
    }

    /// Whether all lines up to `id` are durable here, as they were decided.
    pub(super) fn holds(&self, id: EntryId, canon: impl Fn(EntryId) -> Option<Line>) -> bool {
        (1..=id.0).map(EntryId).all(|id| self.durable.get(&id) == canon(id).as_ref())
    }

    fn newest(&self) -> (Epoch, EntryId) {
        (self.promise.epoch, self.last_durable())
    }

    /// The same volume, and something that it has acknowledged by now is missing in this one.
    pub(crate) fn is_behind(&self, now: &Self) -> bool {
        self.newest() < now.newest()
    }

    /// That configuration has let go of a voter whose successor does not vote yet.
    pub(crate) fn awaits_somebody(&self) -> bool {
        let entries = self.durable.values().rev().filter_map(|line| Entry::decode(line.bytes.clone()).ok());
        entries.into_iter().find_map(|entry| awaited_in(&entry)).is_some_and(|awaited| awaited > 0)
    }

    /// The same volume, and something that it acknowledged since is missing in this one.
    pub(crate) fn is_older_than(&self, now: &Self) -> bool {
        self.incarnation < now.incarnation && self.newest() < now.newest()
    }

    /// The same volume from before its last start, with all that it has acknowledged.
    pub(crate) fn is_from_before(&self, now: &Self) -> bool {
        self.incarnation < now.incarnation && self.newest() == now.newest()
    }

    /// The operation is under way: a crash may leave the disk on either side of it. A snapshot holds what was decided,
    /// and may replace lines that were not.
    pub(crate) fn begins<'a>(&mut self, op: &Persist, canon: impl Fn(EntryId) -> Option<&'a Line>) {
        match op {
            Persist::Truncate { keep } => drop(self.durable.split_off(&keep.next())),
            Persist::Install { position, .. } => {
                self.durable.retain(|id, line| *id <= position.id && canon(*id) == Some(line));
            }
            Persist::Append { .. } | Persist::State(_) | Persist::Found { .. } | Persist::Recover { .. } => {}
        }
    }

    pub(crate) fn crashed(&mut self) {
        self.asked = self.durable.clone();
    }

    /// What a start found, against what must be there.
    pub(crate) fn recovered(
        &mut self,
        recovered: &Recovered,
        lines: Vec<Entry>,
        canon: impl Fn(EntryId) -> Option<Line>,
    ) {
        let Recovered { hard, base, report, .. } = recovered;
        assert!(self.member.is_none_or(|member| member == hard.member_id), "a volume keeps its member id");
        assert!(hard.incarnation > self.incarnation, "each start raises the incarnation");
        assert!(hard.promise.epoch >= self.promise.epoch, "a promise is kept: {:?}, {:?}", hard.promise, self.promise);
        // A vote that was being written may be there.
        let keeps_vote = self.promise.candidate.is_none() || hard.promise.candidate == self.promise.candidate;
        assert!(
            hard.promise.epoch > self.promise.epoch || keeps_vote,
            "a vote is kept: {:?}, {:?}",
            hard.promise,
            self.promise
        );
        if report.is_damaged() {
            assert!(self.is_damaged, "damage where there is none: {report:?}");
            assert!(hard.quarantine.is_some(), "a damaged member is quarantined");
        }
        // Or the damage was found by a start that did not come to its end.
        if report.is_damaged() || (self.is_damaged && hard.quarantine.is_some()) {
            self.durable.clear();
        }
        self.compare(base.horizon.id, &lines);
        let found = lines.into_iter().map(|entry| (entry.id, Line { epoch: entry.epoch, bytes: entry.line }));
        // What is below the horizon is committed, and what it did is in the base.
        let below = (1..=base.horizon.id.0).map(EntryId);
        self.durable = below.filter_map(|id| Some((id, canon(id)?))).chain(found).collect();
        self.asked = self.durable.clone();
        (self.member, self.incarnation) = (Some(hard.member_id), hard.incarnation);
        self.keeps(hard);
        (self.is_damaged, self.may_look_torn, self.sync_failed) = (false, false, false);
    }

    fn compare(&self, horizon: EntryId, lines: &[Entry]) {
        let mut expected = horizon;
        for entry in lines {
            expected = expected.next();
            assert_eq!(entry.id, expected, "a log has no gap");
        }
        for (id, line) in self.durable.range(horizon.next()..) {
            let place = usize::try_from(id.0 - horizon.0 - 1).expect("fits in memory");
            let found = lines.get(place);
            assert!(found.is_some_and(|entry| entry.line == line.bytes), "entry {id} was durable, and is not there");
        }
    }
}
