//! The checks of the rules of replication that no log shows: who was confirmed when by whom, what a
//! quarantined member keeps from, how voters change, what a full disk allows. Judged by what is sent and what
//! arrives. Of what a replica thinks only its voters and its commit are taken: those are compared with its log and with the disks,
//! after each of its rounds.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::command::{Change, OperationKind};
use kv_core::contract::{Refusal, Reply, Token};
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch};
use kv_core::group::MemberId;
use kv_core::message::{Append, AppendAck, AppendResult, Heartbeat, Hello, Lead, Message, Round};
use kv_core::status::Role;

use super::{Line, Watch, most};
use crate::sim::admin::Order;
use crate::sim::clients::{Delivery, Wish};
use crate::sim::coverage::Reached;
use crate::sim::network::End;
use crate::sim::node::Place;
use crate::sim::world::{Waiter, World};

/// Of the heartbeat time-out, from the sending of a round that a majority answered.
pub(super) const LEASE_PERCENT: u64 = 90;
/// Clocks drift by a twentieth, and what has arrived is looked at a little later.
pub(super) const SURELY_HEARD_PERCENT: u64 = 80;
pub(super) const PERHAPS_HEARD_PERCENT: u64 = 120;
/// A hand-over ends by itself after a second, of a process that may have been stopped meanwhile.
const HAND_OVER_US_MAX: u64 = 8_000_000;

/// What was sent, what has arrived, and what was the case when a question was asked.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// When a leader first sent a round, by its own clock.
    pub(super) rounds: BTreeMap<(Place, Epoch, Round), u64>,
    /// The last round that a member answered to a leader.
    pub(super) answered: BTreeMap<(Place, Epoch, MemberId), Round>,
    heard_us: BTreeMap<(Place, MemberId), u64>,
    /// Whose connection a replica was told of; it may have come anew since.
    connected: BTreeSet<(Place, MemberId)>,
    questions: BTreeMap<(Place, Token), Question>,
    /// Up to where a snapshot was sent: who takes it needs no line below.
    snapshots: BTreeMap<(Place, MemberId), EntryId>,
    quarantined: BTreeMap<Place, Quarantined>,
    /// Whose log a snapshot has replaced since the last quarantine began.
    replaced: BTreeSet<Place>,
    /// Whether the replica was told that its disk is full, and how often that changed.
    full: BTreeMap<Place, (bool, u64)>,
}

/// What a quarantined member has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    Whole,
    Doubtful,
}

/// A quarantine that has not ended.
#[derive(Debug, Clone, Copy)]
struct Quarantined {
    /// Up to where its member must hold everything before it ends.
    needed: EntryId,
    log: Log,
}

/// When a question came to a replica.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    at_us: u64,
    epoch: Epoch,
    /// The last round of the epoch by then.
    round: Option<Round>,
    last: EntryId,
    full: (bool, u64),
    /// The member whose name is asked for leads here, or was surely heard of.
    holder_lives: bool,
}

impl Rules {
    pub(super) fn is_quarantined(&self, place: Place) -> bool {
        self.quarantined.contains_key(&place)
    }
}

impl World {
    pub(crate) fn watch_question(&mut self, place: Place, token: Token) {
        let waiter = self.process(place).and_then(|process| process.waiting.get(&token)).cloned();
        self.watch_told(place, waiter.as_ref());
        if let Some(question) = self.question(place, Some(token)) {
            self.watch.rules.questions.insert((place, token), question);
        }
    }

    /// What is the case as it comes. None: nobody is there.
    pub(super) fn question(&self, place: Place, token: Option<Token>) -> Option<Question> {
        let now = self.clock_of(place);
        let process = self.nodes[place.node].process.as_ref()?;
        let epoch = process.replica.view(now).epoch;
        let last = process.replica.positions().0.id;
        let rules = &self.watch.rules;
        let sent = rules.rounds.range((place, epoch, Round(0))..=(place, epoch, Round(u64::MAX)));
        let round = sent.last().map(|((_, _, round), _)| *round);
        let full = rules.full.get(&place).copied().unwrap_or_default();
        let holder = token.and_then(|token| process.waiting.get(&token)).and_then(|waiter| match waiter {
            Waiter::Admin(Order::TakeName(holder)) => Some(*holder),
            _ => None,
        });
        let holder_lives = holder.is_some_and(|holder| self.lives(place, holder));
        Some(Question { at_us: self.now_us, epoch, round, last, full, holder_lives })
    }

    pub(crate) fn watch_told_full(&mut self, place: Place, is_full: bool) {
        let (full, changes) = self.watch.rules.full.entry(place).or_default();
        (*full, *changes) = (is_full, *changes + 1);
    }

    /// What was due has been done: it is not due again at the same time.
    pub(crate) fn watch_ticked(&self, place: Place) {
        let now_ms = self.clock_of(place).mono_ms;
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let due_ms = process.replica.deadline_ms();
        assert!(due_ms > now_ms, "what was due at {due_ms} is not done at {now_ms}");
    }

    pub(crate) fn watch_received(&mut self, place: Place, from: End, message: &Message) {
        self.note_acceptance(place, from.member, message);
        self.note_evidence(place, from, message);
        let from = from.member;
        self.note_standing(place, from, message);
        self.note_leader(place, from, message);
        let is_heard = matches!(message, Message::Show { .. }) || !self.is_of_another_group(place, from);
        let rules = &mut self.watch.rules;
        if is_heard {
            rules.heard_us.insert((place, from), self.now_us);
        }
        let (epoch, round) = match message {
            Message::HeartbeatAck { epoch, round } => (*epoch, *round),
            Message::AppendAck(AppendAck { result: AppendResult::NeedSnapshot, .. }) => return,
            Message::AppendAck(AppendAck { epoch, round, .. }) => (*epoch, *round),
            _ => return,
        };
        let answered = rules.answered.entry((place, epoch, from)).or_default();
        *answered = (*answered).max(round);
    }

    pub(super) fn watch_rules_of_sending(&mut self, place: Place, to: MemberId, message: &Message) {
        self.check_acceptance(place, to, message);
        self.check_evidence(place, to, message);
        self.check_standing(place, message);
        let mono_ms = self.clock_of(place).mono_ms;
        let rules = &mut self.watch.rules;
        let quarantine = rules.quarantined.get(&place);
        match message {
            Message::Heartbeat(Heartbeat { epoch, lead: Some(Lead { round, .. }), .. })
            | Message::Append(Append { epoch, round, .. }) => {
                rules.rounds.entry((place, *epoch, *round)).or_insert(mono_ms);
            }
            Message::VoteRequest(_) => assert!(quarantine.is_none(), "a quarantined member campaigns"),
            Message::VoteReply(reply) => {
                let may_vote = quarantine.is_none_or(|quarantine| quarantine.log == Log::Whole);
                assert!(may_vote || !reply.granted, "a quarantined member votes");
            }
            Message::TimeoutNow { .. } => self.check_hand_over(place, to),
            _ => {}
        }
        if let Message::Append(append) = message {
            self.check_removal_comes_last(place, to, append);
        }
    }

    /// Who is told to campaign holds the leader's last entry.
    fn check_hand_over(&self, place: Place, to: MemberId) {
        // Of two processes of one member the message may reach the other.
        let target = self.end_of(place, to).filter(|_| !self.has_copy());
        let Some(target) = target.filter(|target| !self.watch.rules.quarantined.contains_key(target)) else {
            return;
        };
        let last = self.nodes[place.node].volume.ledger.asked.last_key_value();
        let held = last.map(|(id, _)| self.nodes[target.node].volume.ledger.durable.get(id));
        assert_eq!(last.map(|(_, line)| Some(line)), held, "told to campaign before it has everything");
    }

    fn check_removal_comes_last(&self, place: Place, to: MemberId, append: &Append) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let committed = process.replica.positions().1;
        for entry in append.entries.iter().filter(|entry| entry.epoch == append.epoch && entry.id > committed) {
            let Some(voters) = voters_in(entry) else { continue };
            let (_, before) = self.configuration_before(place, entry.id);
            let is_removed = before.contains(&to) && !voters.contains(&to);
            assert!(!is_removed, "{to} gets entry {}, which removes it, before it is committed", entry.id);
        }
    }

    /// A change of voters that a leader proposes: one voter, one change at a time, and only when an entry of its
    /// own epoch is committed; nobody goes who is needed for a majority that can be reached.
    pub(super) fn watch_change_of_voters(&self, place: Place, entry: &Entry) {
        let Some(after) = voters_in(entry) else { return };
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let view = process.replica.view(self.clock_of(place));
        if view.role != Role::Leader || view.epoch != entry.epoch {
            return;
        }
        let committed = process.replica.positions().1;
        let own = self.nodes[place.node].volume.ledger.asked.get(&committed).map(|line| line.epoch);
        assert_eq!(own, Some(entry.epoch), "entry {} changes voters before one of its epoch is committed", entry.id);
        let (changed_at, before) = self.configuration_before(place, entry.id);
        assert!(changed_at <= committed, "entry {} changes voters while {changed_at} does", entry.id);
        let added: Vec<MemberId> = after.iter().filter(|voter| !before.contains(voter)).copied().collect();
        let have_answered = added.iter().all(|voter| self.has_acknowledged(place, entry.epoch, *voter));
        assert!(have_answered, "entry {} makes {added:?} voters, which have acknowledged nothing", entry.id);
        let rests_on = if added.is_empty() { &after } else { &added };
        assert!(self.is_answered(place, entry.epoch, rests_on), "entry {} changes voters unanswered", entry.id);
        let added = added.len();
        let removed = before.iter().filter(|voter| !after.contains(voter)).count();
        // Who is awaited in the place of a lost voter can be let go, too: then the voters stay as they are.
        let lets_go = added + removed == 0 && self.watch.is_fewer_awaited(entry, changed_at);
        assert!(added + removed == 1 || lets_go, "entry {} adds {added} voters and removes {removed}", entry.id);
        let me = process.member;
        let is_there = |voter: &MemberId| *voter == me || self.was_heard(place, *voter, PERHAPS_HEARD_PERCENT);
        assert!(removed == 0 || most(&after, is_there), "entry {} leaves no majority that is there", entry.id);
    }

    /// A majority of these has answered since a change of voters was asked for. (A replacement nobody asks for.)
    fn is_answered(&self, place: Place, epoch: Epoch, by: &[MemberId]) -> bool {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return true };
        let orders = process.waiting.iter().filter(|(_, waiter)| waiter.changes_voters());
        let mut questions = orders.filter_map(|(token, _)| self.watch.rules.questions.get(&(place, *token))).peekable();
        let since = |question: &Question| question.round.filter(|_| question.epoch == epoch);
        let answers = |voter: &MemberId, question: &Question| {
            let answered = self.watch.rules.answered.get(&(place, epoch, *voter)).copied();
            *voter == process.member || answered > since(question)
        };
        let is_met = |question: &Question| most(by, |voter| answers(voter, question));
        questions.peek().is_none() || questions.any(is_met)
    }

    pub(crate) fn was_heard(&self, place: Place, member: MemberId, percent: u64) -> bool {
        let within_us = self.timeout_ms_of(place) * 1000 * percent / 100;
        let heard_us = self.watch.rules.heard_us.get(&(place, member));
        heard_us.is_some_and(|heard_us| self.now_us - heard_us < within_us)
    }

    /// By which a node judges silence: it may have been told another one while it runs.
    pub(super) fn timeout_ms_of(&self, place: Place) -> u64 {
        let tuning = self.nodes[place.node].process.as_ref().map(|process| process.replica.tuning());
        tuning.map_or(self.shape.timeout_ms, |tuning| tuning.heartbeat_timeout_ms)
    }

    /// A name belongs to its member while that one leads or is heard.
    fn lives(&self, place: Place, holder: MemberId) -> bool {
        let leads = self.nodes[place.node].process.as_ref().is_some_and(|process| process.member == holder);
        (leads || self.was_heard(place, holder, SURELY_HEARD_PERCENT)) && self.is_voter(place, holder)
    }

    pub(crate) fn watch_answered(&mut self, place: Place, token: Token, waiter: &Waiter, reply: &Reply) {
        let Some(question) = self.watch.rules.questions.remove(&(place, token)) else { return };
        let delivery = match (waiter, reply) {
            (Waiter::Call(delivery), _) => delivery,
            (Waiter::Admin(Order::TakeName(holder)), Reply::Done { .. }) => {
                assert!(!question.holder_lives, "the name of {holder} was given away while it lives");
                return;
            }
            (Waiter::Admin(order), Reply::Done { .. }) => return self.count_hand_over(place, *order, &question),
            (Waiter::Admin(_), _) => return,
        };
        if let Reply::Written { written, replay: false } = reply {
            self.check_majority_of(place, written.id);
        }
        match reply {
            Reply::ReadAt(_) | Reply::NotFound | Reply::VersionConflict { .. } | Reply::PreconditionFailed => {
                assert!(
                    self.is_confirmed(place, &question),
                    "{reply:?}, and no majority has confirmed the leader since"
                );
            }
            Reply::Written { written, replay: false } if written.operation == OperationKind::Set => {
                let is_full = question.full.0 && self.watch.rules.full.get(&place) == Some(&question.full);
                assert!(!is_full, "a SET took effect on a disk that was known to be full: {reply:?}");
            }
            Reply::Refused(Refusal::StorageFull) => {
                assert!(grows(delivery), "a DELETE was refused for want of room");
            }
            _ => {}
        }
    }

    /// A leader told its successor to campaign since the question came, and that one was elected or is being so.
    fn count_hand_over(&mut self, place: Place, order: Order, question: &Question) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let view = process.replica.view(self.clock_of(place));
        let is_later = view.epoch > question.epoch;
        let led = |epoch: Epoch| self.watch.leaders.get(&epoch) == Some(&place);
        let reached = match order {
            Order::Lead if is_later && led(view.epoch) && self.was_handed(place, view.epoch) => {
                Reached::TransferSucceeded
            }
            Order::HandOver if is_later && led(question.epoch) && self.has_handed_over(question.epoch) => {
                Reached::HandedOver
            }
            _ => return,
        };
        self.coverage.count(reached);
    }

    /// By a round that began since, or by an entry that was ordered since.
    pub(super) fn is_confirmed(&self, place: Place, question: &Question) -> bool {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return true };
        let epoch = process.replica.view(self.clock_of(place)).epoch;
        let by_entry = epoch == question.epoch && process.replica.positions().1 > question.last;
        by_entry || self.any_majority(place, |voter| self.has_confirmed(place, *voter, question))
    }

    /// By a round, and by others than this member.
    pub(super) fn is_confirmed_without(&self, place: Place, member: MemberId, question: &Question) -> bool {
        self.any_majority(place, |voter| *voter != member && self.has_confirmed(place, *voter, question))
    }

    fn has_confirmed(&self, place: Place, voter: MemberId, question: &Question) -> bool {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return true };
        let epoch = process.replica.view(self.clock_of(place)).epoch;
        let before = question.round.filter(|_| epoch == question.epoch);
        voter == process.member || self.watch.rules.answered.get(&(place, epoch, voter)).copied() > before
    }

    /// Of the voters by one of the configurations that may be in force.
    pub(super) fn any_majority(&self, place: Place, counts: impl Fn(&MemberId) -> bool) -> bool {
        self.any_configuration(place, |voters| most(voters, &counts))
    }

    /// That of the replica now, or one of the last: it may have changed since it was counted by. Of those that are
    /// not committed, the ones in its own log.
    pub(super) fn any_configuration(&self, place: Place, holds: impl Fn(&[MemberId]) -> bool) -> bool {
        let mine = self.voters_of(place);
        let recent = self.recent_configurations(place);
        let asked = &self.nodes[place.node].volume.ledger.asked;
        let is_here = |(id, epoch): &(EntryId, Epoch)| asked.get(id).is_some_and(|line| line.epoch == *epoch);
        let is_decided = |id: &EntryId| self.watch.line(*id).is_some_and(|line| asked.get(id) == Some(line));
        let proposed = self.watch.proposed.iter().filter(|(at, _)| is_here(at) && !is_decided(&at.0));
        let mut next = proposed.map(|(_, voters)| voters);
        [&mine].into_iter().chain(recent).any(|voters| holds(voters)) || next.any(|voters| holds(voters))
    }

    /// A leader answers by itself only as long as a round that a majority answered was sent not long ago.
    pub(crate) fn watch_local_read(&self, place: Place) {
        let rules = &self.watch.rules;
        assert!(!rules.quarantined.contains_key(&place), "a quarantined member answers a read");
        self.check_read_by_deposed(place);
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let now = self.clock_of(place);
        let view = process.replica.view(now);
        if view.role != Role::Leader {
            return;
        }
        let since_ms = now.mono_ms.saturating_sub(self.timeout_ms_of(place) * LEASE_PERCENT / 100);
        let sent_since =
            |round: &Round| rules.rounds.get(&(place, view.epoch, *round)).is_some_and(|at| *at >= since_ms);
        let confirms = |voter: &MemberId| {
            *voter == process.member || rules.answered.get(&(place, view.epoch, *voter)).is_some_and(sent_since)
        };
        let holds = self.any_majority(place, confirms);
        assert!(holds, "a leader answers a read that no majority has heard of within the lease");
    }

    pub(crate) fn watch_quarantined(&mut self, place: Place, until: Option<EntryId>, log: Log) {
        self.note_quarantine_begins(place);
        self.note_doubted(place);
        self.watch.rules.replaced.remove(&place);
        let committed = EntryId(self.watch.committed());
        let needed = until.map_or(committed, |until| until.min(committed));
        self.watch.rules.quarantined.insert(place, Quarantined { needed, log });
    }

    pub(crate) fn count_refill(&mut self, place: Place) {
        let by_snapshot = self.watch.rules.replaced.contains(&place);
        self.coverage.count(if by_snapshot { Reached::RefilledBySnapshot } else { Reached::RefilledByLines });
    }

    /// What it holds again counts; that it is committed, a new leader may not know yet.
    pub(crate) fn watch_refilled(&mut self, place: Place) {
        let quarantine = self.watch.rules.quarantined.remove(&place);
        let needed = quarantine.map_or(EntryId::ZERO, |quarantine| quarantine.needed);
        let ledger = &self.nodes[place.node].volume.ledger;
        let holds_all = ledger.holds(needed, |id| self.watch.line(id).cloned());
        let last = ledger.last_durable();
        assert!(holds_all, "refilled up to {last}, and does not hold all up to {needed}, which was committed before");
        self.note_refilled(place);
    }

    /// Nobody who is there needs lines that are about to go.
    pub(crate) fn watch_compaction_limit(&self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        if process.view.role != Role::Leader {
            return;
        }
        let limit = process.compaction_limit();
        for voter in self.voters_of(place).into_iter().filter(|voter| *voter != process.member) {
            let Some(there) =
                self.end_of(place, voter).filter(|there| !self.watch.rules.quarantined.contains_key(there))
            else {
                continue;
            };
            // Who has just come back is not known to be there yet.
            let is_there = self.watch.rules.connected.contains(&(place, voter))
                && self.was_heard(place, voter, SURELY_HEARD_PERCENT);
            let snapshot = self.watch.rules.snapshots.get(&(place, voter)).copied().unwrap_or_default();
            let last = self.nodes[there.node].volume.ledger.last_asked().max(snapshot);
            assert!(!is_there || limit <= last, "compaction up to {limit}, and {voter} is there and ends at {last}");
        }
    }

    pub(crate) fn watch_told_connected(&mut self, place: Place, hello: &Hello) {
        self.watch.rules.connected.insert((place, hello.member_id));
        self.note_connected(place, hello.member_id);
        self.watch_connected(place, hello);
    }

    pub(crate) fn watch_disconnected(&mut self, place: Place, peer: MemberId) {
        self.watch.rules.connected.remove(&(place, peer));
    }

    /// A snapshot may end below what was acknowledged.
    pub(super) fn watch_replaced(&mut self, place: Place) {
        if let Some(quarantine) = self.watch.rules.quarantined.get_mut(&place) {
            quarantine.log = Log::Doubtful;
        }
        self.watch.rules.replaced.insert(place);
    }

    pub(crate) fn watch_snapshot_sent(&mut self, place: Place, to: MemberId) {
        let at = self.nodes[place.node].process.as_ref().map(|process| process.applied());
        self.watch.rules.snapshots.insert((place, to), at.unwrap_or_default());
    }

    /// Who has waited longest for an answer of a replica, and since when.
    pub(crate) fn longest_waiting(&self) -> Option<(u64, String)> {
        let questions = &self.watch.rules.questions;
        let asked =
            self.processes().flat_map(|process| process.waiting.iter().map(move |(token, who)| (process, token, who)));
        let since = asked.filter_map(|(process, token, who)| {
            Some((questions.get(&(process.place, *token))?.at_us, process.place.node, who))
        });
        let (since_us, node, who) = since.min_by_key(|(since_us, ..)| *since_us)?;
        Some((since_us, format!("{who:?} waits for {}", self.nodes[node].name)))
    }

    /// A hand-over ends, one way or the other.
    pub(crate) fn watch_hand_overs(&self) {
        for process in self.processes() {
            let waits = process.waiting.iter().filter(|(_, waiter)| matches!(waiter, Waiter::Admin(Order::HandOver)));
            for (token, _) in waits {
                let question = self.watch.rules.questions.get(&(process.place, *token));
                let since_us = question.map_or(0, |question| self.now_us - question.at_us);
                assert!(since_us <= HAND_OVER_US_MAX, "a hand-over has not ended after {since_us} us");
            }
        }
    }
}

impl Watch {
    /// Fewer than in the configuration of an id before.
    fn is_fewer_awaited(&self, entry: &Entry, before: EntryId) -> bool {
        let awaited = |line: &Line| Entry::decode(line.bytes.clone()).ok().and_then(|entry| awaited_in(&entry));
        let before = self.lines.range((before, Epoch::default())..=(before, entry.epoch)).next_back();
        awaited_in(entry) < before.and_then(|(_, (line, _))| awaited(line))
    }
}

fn grows(delivery: &Delivery) -> bool {
    !matches!(&delivery.wish, Wish::Write(command) if matches!(command.change, Change::Delete))
}

pub(super) fn awaited_in(entry: &Entry) -> Option<usize> {
    match &entry.body {
        Body::Control(Control::Config(configuration)) => Some(configuration.replacing.len()),
        _ => None,
    }
}

pub(super) fn voters_in(entry: &Entry) -> Option<Vec<MemberId>> {
    match &entry.body {
        Body::Control(Control::Config(configuration)) => Some(configuration.ids().collect()),
        _ => None,
    }
}
