//! Writes on the leader: deduplicate, check against applied state plus what is in flight, order. The
//! same rule decides again at apply, and that decision is the one that is answered.

use std::collections::{BTreeMap, VecDeque};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::reads::Question;
use super::{Replica, Role};
use crate::command::{Change, Command, Key, OperationKind, RequestId};
use crate::contract::{Limits, Now, Refusal, Reply, Token};
use crate::entry::{Body, Entry, EntryId};
use crate::mutant::{self, Mutant};
use crate::quorum;
use crate::sessions::request_digest;
use crate::state_machine::Outcome;

/// Key of the in-flight tables. They are looked up and never iterated, so a fixed seed is enough for
/// repeatable runs; their size is bounded by the proposals.
const HASH_SEED: u64 = 0x6b76_5f69_6e66_6c69;

/// Copies of one request that wait for its first.
const COPIES_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Writes {
    proposals: VecDeque<Proposal>,
    bytes: usize,
    /// The state of keys as it will be when what is in flight has been applied.
    overlay: HashMap<Key, InFlight, FixedState>,
    requests: BTreeMap<(RequestId, OperationKind), (EntryId, u64)>,
    /// Not proposed: leadership is being handed over, or inherited entries are not yet applied.
    parked: VecDeque<(Token, Command)>,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            proposals: VecDeque::new(),
            bytes: 0,
            overlay: HashMap::with_hasher(FixedState::with_seed(HASH_SEED)),
            requests: BTreeMap::new(),
            parked: VecDeque::new(),
        }
    }
}

#[derive(Debug)]
struct Proposal {
    id: EntryId,
    bytes: usize,
    token: Token,
    /// Copies of the same request that arrived while it was in flight.
    copies: Vec<Token>,
}

/// What the last entry in flight makes of a key. None: absent.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    entry: EntryId,
    version: Option<u64>,
}

impl Writes {
    fn has_room(&self, limits: &Limits) -> bool {
        self.proposals.len() < limits.proposals_max && self.bytes < limits.proposal_bytes_max
    }

    fn proposal_at(&mut self, id: EntryId) -> Option<&mut Proposal> {
        let at = self.proposals.binary_search_by_key(&id, |proposal| proposal.id).ok()?;
        self.proposals.get_mut(at)
    }

    pub(super) fn cancel_parked(&mut self, token: Token) {
        self.parked.retain(|&(parked, _)| parked != token);
    }

    /// (proposed and of unknown outcome, not proposed)
    pub(super) fn into_waiting(self) -> (Vec<Token>, Vec<Token>) {
        let waiting = |p: Proposal| std::iter::once(p.token).chain(p.copies);
        let unknown = self.proposals.into_iter().flat_map(waiting).collect();
        (unknown, self.parked.into_iter().map(|(token, _)| token).collect())
    }
}

impl Replica {
    pub(super) fn on_write(&mut self, now: Now, token: Token, command: Command) {
        let ready = self.is_ready_to_decide();
        let (leader_id, lapsed) = (self.leader, self.lease_has_lapsed(now));
        let Role::Leader(leader) = &mut self.role else {
            return self.refuse(token, Refusal::NotLeader { leader: leader_id });
        };
        if lapsed {
            return self.refuse(token, Refusal::NotConfirmed);
        }
        if ready && leader.transfer.is_none() {
            return self.decide_write(now, token, command);
        }
        if leader.writes.parked.len() >= self.limits.parked_max {
            return self.refuse(token, Refusal::Overloaded);
        }
        leader.writes.parked.push_back((token, command));
    }

    /// Decides what was parked, in order of arrival.
    pub(super) fn unpark(&mut self, now: Now) {
        let ready = self.is_ready_to_decide();
        let Role::Leader(leader) = &mut self.role else { return };
        if !ready || leader.transfer.is_some() {
            return;
        }
        for (token, command) in std::mem::take(&mut leader.writes.parked) {
            self.decide_write(now, token, command);
        }
    }

    fn decide_write(&mut self, now: Now, token: Token, command: Command) {
        let ts_ms = self.clock.now_ms(now);
        if self.answer_known_request(token, &command, ts_ms) {
            return;
        }
        let current = self.current_of(&command.key);
        if let Err(refused) = self.state.evaluate(current, &command.precondition, &command.change)
            && !mutant::orders_what_will_be_refused()
        {
            let decided_on = if mutant::on(Mutant::RefuseFromInFlight) { self.committed } else { self.log.last().id };
            return self.ask_after(token, decided_on, Question::Refused(outcome_reply(refused)));
        }
        if let Some(refusal) = self.lacks_room(&command) {
            return self.refuse(token, refusal);
        }
        self.propose(now, token, command, current, ts_ms);
    }

    /// Answers a copy of a request that was applied, or joins it to the one in flight.
    fn answer_known_request(&mut self, token: Token, command: &Command, ts_ms: u64) -> bool {
        let Some(request) = &command.request else { return false };
        let operation = command.operation();
        let digest = request_digest(&command.key, &command.change, &command.precondition);
        if let Some(record) = self.state.sessions().lookup(request, operation, ts_ms) {
            let reply = if record.digest == digest || mutant::on(Mutant::ReuseIsCopy) {
                Reply::Written { written: record.written(), replay: true }
            } else {
                Reply::RequestReused
            };
            self.reply(token, reply);
            return true;
        }
        let Role::Leader(leader) = &mut self.role else { return false };
        let Some(&(id, first)) = leader.writes.requests.get(&(request.clone(), operation)) else { return false };
        if first != digest && !mutant::on(Mutant::ReuseIsCopy) {
            // Decided on an entry that may yet be lost.
            let decided_on = self.log.last().id;
            self.ask_after(token, decided_on, Question::Refused(Reply::RequestReused));
            return true;
        }
        match leader.writes.proposal_at(id) {
            Some(proposal) if proposal.copies.len() < COPIES_MAX => proposal.copies.push(token),
            _ => self.refuse(token, Refusal::Overloaded),
        }
        true
    }

    /// The key's entry and version when all that is in flight will have been applied.
    fn current_of(&self, key: &Key) -> Option<(EntryId, u64)> {
        if let Role::Leader(leader) = &self.role
            && let Some(in_flight) = leader.writes.overlay.get(key)
        {
            return in_flight.version.map(|version| (in_flight.entry, version));
        }
        self.state.keyspace().head(key.as_str())
    }

    fn lacks_room(&self, command: &Command) -> Option<Refusal> {
        let Role::Leader(leader) = &self.role else { return None };
        if !leader.writes.has_room(&self.limits) {
            return Some(Refusal::Overloaded);
        }
        let full = |id| match leader.progress.get(&id) {
            Some(progress) => progress.storage_full,
            None => id == self.me() && self.storage_full,
        };
        let voters = self.configuration().voters.len();
        let writable = self.configuration().ids().filter(|&id| !full(id)).count();
        // Deletes go on: together with compaction they are the way out.
        let grows = match command.change {
            Change::Set(_) => !mutant::on(Mutant::WriteWhenFull),
            Change::Delete => mutant::on(Mutant::RefuseDeletesWhenFull),
        };
        (grows && (self.storage_full || writable < quorum::majority(voters))).then_some(Refusal::StorageFull)
    }

    fn propose(&mut self, now: Now, token: Token, command: Command, current: Option<(EntryId, u64)>, ts_ms: u64) {
        let operation = command.operation();
        let Command { key, change, precondition, request } = command;
        let digest = request.as_ref().map(|_| request_digest(&key, &change, &precondition));
        let ts_ms = request.is_some().then_some(ts_ms);
        let version = current.map_or(1, |(_, version)| version + 1);
        let (body, version) = match change {
            Change::Set(value) => {
                let request = request.clone();
                (Body::Set { key: key.clone(), value, version, precondition, request }, Some(version))
            }
            Change::Delete => (Body::Delete { key: key.clone(), precondition, request: request.clone() }, None),
        };
        if let Some(ts) = ts_ms {
            self.clock.observe(ts, now);
        }
        let id = self.append_led(body, ts_ms);
        let bytes = self.log.get(id).map_or(0, |entry| entry.line.len());
        let Role::Leader(leader) = &mut self.role else { return };
        let writes = &mut leader.writes;
        writes.overlay.insert(key, InFlight { entry: id, version });
        if let (Some(request), Some(digest)) = (request, digest) {
            writes.requests.insert((request, operation), (id, digest));
        }
        writes.bytes += bytes;
        writes.proposals.push_back(Proposal { id, bytes, token, copies: Vec::new() });
    }

    /// An entry was applied on the leader: answers those who wait for it.
    pub(super) fn on_applied_led(&mut self, entry: &Entry, outcome: Outcome) {
        let Role::Leader(leader) = &mut self.role else { return };
        let writes = &mut leader.writes;
        if let Some(key) = entry.key()
            && writes.overlay.get(key).is_some_and(|in_flight| in_flight.entry == entry.id)
        {
            writes.overlay.remove(key);
        }
        if let Some((request, operation)) = entry.request() {
            writes.requests.remove(&(request.clone(), operation));
        }
        if writes.proposals.front().is_none_or(|proposal| proposal.id != entry.id) {
            return;
        }
        let Proposal { bytes, token, copies, .. } = writes.proposals.pop_front().expect("just seen");
        writes.bytes -= bytes;
        let reply = outcome_reply(outcome);
        let copies = if mutant::on(Mutant::CopiesUnanswered) { Vec::new() } else { copies };
        for copy in copies {
            self.reply(copy, as_replay(reply.clone()));
        }
        self.reply(token, reply);
    }
}

impl Command {
    pub fn operation(&self) -> OperationKind {
        match self.change {
            Change::Set(_) => OperationKind::Set,
            Change::Delete => OperationKind::Delete,
        }
    }
}

fn as_replay(reply: Reply) -> Reply {
    match reply {
        Reply::Written { written, .. } => Reply::Written { written, replay: true },
        other => other,
    }
}

fn outcome_reply(outcome: Outcome) -> Reply {
    match outcome {
        Outcome::Written(written) => Reply::Written { written, replay: false },
        Outcome::Replay(written) => Reply::Written { written, replay: true },
        Outcome::RequestReused => Reply::RequestReused,
        Outcome::NotFound => Reply::NotFound,
        Outcome::VersionConflict { provided, current } => Reply::VersionConflict { provided, current },
        Outcome::PreconditionFailed => Reply::PreconditionFailed,
        Outcome::Control => unreachable!("control entries have no proposal"),
    }
}
