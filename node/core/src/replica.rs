//! One replica of a group: Raft's rules with the leader assigned (docs/architecture.md). It owns every
//! decision about epochs, votes, commits and membership, and never does I/O: the driver feeds
//! [`Input`]s and carries out [`Effect`]s. Reading order: this file, `replica/leader.rs`,
//! `replica/follower.rs`, `replica/candidate.rs`, then the rest.

mod candidate;
mod damage;
mod follower;
mod identity;
mod leader;
mod log;
mod membership;
mod peers;
mod persist;
mod progress;
mod reads;
mod refill;
mod replacement;
mod report;
mod rival;
mod settle;
mod transfer;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::contract::{Boot, Effect, HardState, Input, Limits, Note, Now, Refusal, Reply, Request, Token, Tuning};
use crate::entry::{EntryId, Epoch, LogPosition};
use crate::group::{Configuration, ConfigurationAt, MemberId, MemberInfo};
use crate::heartbeat::Heard;
use crate::keyspace::Keyspace;
use crate::message::{Append, Baseline, Message, Promise, Seen, VotersAt};
use crate::mutant::{self, Mutant};
use crate::sessions::Sessions;
use crate::state_machine::StateMachine;
use candidate::Candidate;
use follower::Follower;
use leader::Leader;
use log::Log;
use peers::Peer;
use persist::PersistQueue;

/// How often silence and stalled peers are looked for, whatever the heartbeat interval is.
const CHECK_MS: u64 = 250;

/// See the module. `step` any number of inputs, then `take_effects`.
#[derive(Debug)]
pub struct Replica {
    me: Me,
    tuning: Tuning,
    limits: Limits,
    hard: HardState,
    log: Log,
    state: StateMachine,
    /// Ranges of ids that nobody holds and no LOST entry declares yet.
    undeclared: Vec<(EntryId, EntryId)>,
    /// Known to be committed; may be above what is durable here.
    committed: EntryId,
    configurations: Configurations,
    peers: BTreeMap<MemberId, Peer>,
    role: Role,
    /// Whom this replica follows or is; None: nobody known in this epoch.
    leader: Option<MemberId>,
    leader_heard: Heard,
    /// Whoever led before this epoch was lost, rather than replaced.
    leader_fell_silent: bool,
    baseline: Baseline,
    /// This start was accepted once: see [`Self::takes_part`].
    admitted: bool,
    /// Who accepted what this member showed of itself since its start, and whom each takes for the voters.
    shown_to: BTreeMap<MemberId, Option<VotersAt>>,
    /// Members that have ever accepted this start.
    accepted_by: BTreeSet<MemberId>,
    /// Another process of this member was accepted after this one.
    superseded: bool,
    persist: PersistQueue,
    clock: EntryClock,
    /// Told to lead at start, or deposed by no other leader: campaigns until somebody leads.
    lead_wanted: bool,
    /// Directives to lead that wait for an outcome.
    lead_waiting: Vec<(Token, u64)>,
    campaign_at_ms: u64,
    /// Since this replica has led or followed anybody.
    campaigns_in_vain: u32,
    heartbeat_at_ms: u64,
    /// When silence and stalled peers are looked for next.
    check_at_ms: u64,
    storage_full: bool,
    /// It led, and has not heard since who leads now.
    deposed: bool,
    standing: Standing,
    /// The process is about to end: leadership is not to be handed to it.
    leaving: bool,
    /// Where the leader's log ended when it was first heard in this epoch.
    catch_up_to: Option<EntryId>,
    /// A snapshot is being installed: appends wait for what it makes of the log.
    installing: bool,
    /// The last append that came meanwhile, or before this start was accepted. Dropped, it would be asked for again only
    /// after a second.
    waiting_append: Option<(MemberId, Append)>,
    /// Of the question up to where this member must be refilled; another one for each quarantine, so that no late
    /// answer serves a later one. 0: nothing was asked since the start.
    refill_number: u64,
    /// Damage at rest that the leader was told of; nothing has changed yet.
    damage_told: Option<String>,
    /// The leader's snapshot is to replace damage at rest, whatever matches.
    needs_snapshot: bool,
    stopped: bool,
    random: SplitMix,
    effects: Vec<Effect>,
    announced_peers: Vec<MemberInfo>,
    announced_view: Option<crate::contract::View>,
    urls: Arc<BTreeMap<MemberId, String>>,
    /// Committed id at the last save of the hard state.
    saved_committed: EntryId,
    /// What was seen of others at the last save.
    saved_seen: BTreeMap<MemberId, Seen>,
}

/// What is fixed for one start of the process.
#[derive(Debug)]
struct Me {
    start_id: u64,
    url: String,
    peer_url: String,
}

/// What this member was told of its place in the group.
#[derive(Debug, Default)]
struct Standing {
    /// The group goes on without it, a leader said.
    removed: bool,
    /// Told so by a leader that never sent it anything: one that does not know of it.
    forgotten: bool,
    /// Removed on purpose: it does not come back by itself, whoever leads.
    let_go: bool,
    /// The epoch whose leader sent the last append.
    fed_in: Option<Epoch>,
}

#[derive(Debug)]
enum Role {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

/// The configuration in force is the last one in the log, committed or not.
#[derive(Debug)]
struct Configurations {
    base: ConfigurationAt,
    above: Vec<ConfigurationAt>,
}

impl Configurations {
    fn new(base: ConfigurationAt, above: Vec<ConfigurationAt>) -> Self {
        let mut configurations = Self { base, above: Vec::new() };
        above.into_iter().for_each(|at| configurations.push(at));
        configurations
    }

    fn current(&self) -> &ConfigurationAt {
        self.above.last().unwrap_or(&self.base)
    }

    fn push(&mut self, at: ConfigurationAt) {
        if at.id > self.current().id {
            self.above.push(at);
        }
    }

    fn truncate(&mut self, keep: EntryId) {
        self.above.retain(|at| at.id <= keep);
    }

    /// The group went on without this voter.
    fn has_dropped(&self, me: MemberId) -> bool {
        let held = std::iter::once(&self.base).chain(&self.above).any(|at| at.configuration.contains(me));
        held && !self.current().configuration.contains(me)
    }
}

/// The timestamps of entries: from the last one on by the monotonic clock, so that a wrong wall clock
/// expires nothing. The wall clock starts the very first.
#[derive(Debug, Default)]
struct EntryClock {
    ts_ms: u64,
    at_mono_ms: u64,
}

impl EntryClock {
    fn now_ms(&self, now: Now) -> u64 {
        match self.ts_ms {
            _ if mutant::on(Mutant::TimeByWallClock) => now.wall_ms,
            0 => now.wall_ms,
            ts => ts + now.mono_ms.saturating_sub(self.at_mono_ms),
        }
    }

    fn observe(&mut self, ts_ms: u64, now: Now) {
        if ts_ms > self.ts_ms {
            *self = Self { ts_ms, at_mono_ms: now.mono_ms };
        }
    }
}

/// The generator of Steele, Lea and Flood (2014); seeded by the surroundings, so runs can be repeated.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform enough in [from, to].
    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to.saturating_sub(from) + 1)
    }
}

impl Replica {
    pub fn new(boot: Boot, now: Now) -> Self {
        let Boot {
            hard,
            base,
            start_id,
            url,
            peer_url,
            tuning,
            seed,
            state,
            epoch_runs,
            configurations,
            tail,
            lost,
            lead_at_start,
            limits,
        } = boot;
        let applied = state.applied();
        let configurations = Configurations::new(base.configuration, configurations);
        let mut replica = Self {
            me: Me { start_id, url, peer_url },
            tuning,
            limits,
            log: Log::new(base.horizon, epoch_runs, applied, tail),
            undeclared: lost.undeclared,
            committed: applied,
            saved_committed: hard.committed,
            standing: Standing { let_go: configurations.has_dropped(hard.member_id), ..Standing::default() },
            saved_seen: hard.seen.clone(),
            configurations,
            peers: BTreeMap::new(),
            role: Role::Follower(Follower::default()),
            leader: None,
            leader_heard: Heard::default(),
            leader_fell_silent: false,
            baseline: Baseline::default(),
            admitted: hard.cluster_id.is_none(),
            shown_to: BTreeMap::new(),
            accepted_by: BTreeSet::new(),
            superseded: false,
            persist: PersistQueue::default(),
            clock: EntryClock { ts_ms: state.last_ts_ms(), at_mono_ms: now.mono_ms },
            state,
            lead_wanted: lead_at_start,
            lead_waiting: Vec::new(),
            campaign_at_ms: now.mono_ms,
            campaigns_in_vain: 0,
            heartbeat_at_ms: now.mono_ms,
            check_at_ms: now.mono_ms,
            storage_full: false,
            deposed: false,
            leaving: false,
            catch_up_to: None,
            installing: false,
            waiting_append: None,
            refill_number: 0,
            damage_told: None,
            needs_snapshot: false,
            stopped: false,
            random: SplitMix(seed),
            effects: Vec::new(),
            announced_peers: Vec::new(),
            announced_view: None,
            urls: Arc::default(),
            hard,
        };
        replica.log.lost_at(lost.declared_at);
        replica.begin(now);
        replica
    }

    /// What a start does before anything has arrived.
    fn begin(&mut self, now: Now) {
        if mutant::on(Mutant::ForgetQuarantineAtRestart) {
            self.hard.quarantine = None;
        }
        self.ask_anew();
        self.persist.start(self.log.last().id, self.hard.promise);
        self.baseline = self.on_disk();
        self.schedule_election(now);
        if self.wants_to_lead_now() {
            self.campaign_at_ms = now.mono_ms;
        }
    }

    /// Changes state; what follows from it is gathered by [`Self::take_effects`].
    pub fn step(&mut self, now: Now, input: Input) {
        if self.stopped {
            return;
        }
        match input {
            Input::Tick => {}
            Input::Request { token, request } => self.on_request(now, token, request),
            Input::Cancelled { token } => self.on_cancelled(token),
            Input::Connected { hello } => self.on_connected(now, hello),
            Input::Disconnected { peer, refused } => self.on_disconnected(now, peer, refused),
            Input::Received { from, message } => self.on_message(now, from, message),
            Input::Persisted { seq } => self.on_persisted(now, seq),
            Input::Storage { full } => self.storage_full = full,
            Input::Fetched { peer, from, entries } => self.on_fetched(now, peer, from, entries),
            Input::SnapshotSent { peer, result } => self.on_snapshot_sent(now, peer, result),
            Input::SnapshotStaged { from, epoch, position, cluster_id } => {
                self.on_snapshot_staged(now, from, epoch, position, cluster_id);
            }
            Input::Compacted { horizon } => {
                self.log.compacted(horizon);
                self.state.forget_refused_up_to(horizon.id);
            }
            Input::Installed { boot } => self.on_installed(now, *boot),
            Input::Damaged { reason } => self.on_damaged(now, reason),
        }
        if now.mono_ms >= self.deadline_ms() {
            self.on_tick(now);
        }
    }

    /// Settles what the steps since the last call have made possible, and hands out all effects.
    pub fn take_effects(&mut self, now: Now) -> Vec<Effect> {
        if !self.stopped {
            self.settle(now);
        }
        std::mem::take(&mut self.effects)
    }

    /// The monotonic time of the next [`Input::Tick`].
    pub fn deadline_ms(&self) -> u64 {
        let campaign = if self.may_campaign() { self.campaign_at_ms } else { u64::MAX };
        let lead = self.lead_waiting.iter().map(|&(_, until)| until).min().unwrap_or(u64::MAX);
        let transfer = match &self.role {
            Role::Leader(leader) => leader.transfer_deadline_ms(),
            _ => u64::MAX,
        };
        self.heartbeat_at_ms.min(self.check_at_ms).min(campaign).min(lead).min(transfer)
    }

    pub fn keyspace(&self) -> Arc<Keyspace> {
        Arc::clone(self.state.keyspace())
    }

    pub fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(self.state.sessions())
    }

    /// Whether a snapshot is being installed; another one that is staged meanwhile would be refused.
    pub fn is_installing(&self) -> bool {
        self.installing
    }

    /// As it was told last.
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    pub fn state(&self) -> &StateMachine {
        &self.state
    }

    fn on_request(&mut self, now: Now, token: Token, request: Request) {
        match request {
            Request::Write(command) => self.on_write(now, token, command),
            Request::ReadIndex => self.on_read_index(token),
            Request::RequestStatus { request, operation } => self.on_request_status(now, token, request, operation),
            Request::Status => self.reply(token, Reply::Status(Box::new(self.status(now)))),
            Request::Hello => self.reply(token, Reply::Hello(Box::new(self.hello()))),
            Request::Lead { target } => self.on_lead(now, token, target),
            Request::Bootstrap { target_member_id, if_config_id, cluster_id, voters, settings } => {
                self.on_bootstrap(token, target_member_id, if_config_id, cluster_id, voters, settings);
            }
            Request::AddMember { target, member, voter } => self.on_add_member(now, token, target, member, voter),
            Request::RemoveMember { target, member_id } => self.on_remove_member(now, token, target, member_id),
            Request::ChangeSettings { target, settings } => self.on_change_settings(now, token, target, settings),
            Request::Recover { target, accept_data_loss_at_epoch, new_cluster_id } => {
                self.on_recover(now, token, target, accept_data_loss_at_epoch, new_cluster_id);
            }
            Request::Tune { tuning } => self.on_tune(now, token, tuning),
            Request::HandOver => self.on_hand_over(now, token),
            Request::StepDown => self.step_down(now, token),
        }
    }

    fn on_message(&mut self, now: Now, from: MemberId, message: Message) {
        let is_heeded = matches!(message, Message::Heartbeat(_) | Message::Append(_));
        if self.hard.cluster_id.is_none() && !is_heeded && !mutant::on(Mutant::UninitialisedVotes) {
            return; // an empty volume neither votes nor answers for a group
        }
        let is_strange = self.is_of_another_group(from) && !matches!(message, Message::Show { .. });
        if is_strange {
            return;
        }
        self.peer(from).heard.mark(now.mono_ms);
        match message {
            Message::Heartbeat(heartbeat) => self.on_heartbeat(now, from, heartbeat),
            Message::HeartbeatAck { epoch, round } => self.on_heartbeat_ack(from, epoch, round),
            Message::Append(append) => self.on_append(now, from, append),
            Message::AppendAck(ack) => self.on_append_ack(now, from, ack),
            Message::VoteRequest(request) => self.on_vote_request(now, from, request),
            Message::VoteReply(reply) => self.on_vote_reply(now, from, reply),
            Message::TransferRequest { epoch } => self.on_transfer_request(now, from, epoch),
            Message::TimeoutNow { epoch } => self.on_timeout_now(now, from, epoch),
            Message::NotAMember { config_id } => self.on_not_a_member(now, from, config_id),
            Message::Accepted(accepted) => self.on_accepted(now, from, accepted),
            Message::Stale { seen, reason } => self.on_stale(now, from, seen, &reason),
            Message::Show { hello, answer } => self.on_show(from, *hello, answer),
            Message::RefillRequest { epoch, number } => self.on_refill_request(from, epoch, number),
            Message::RefillAnswer { epoch, number, until } => self.on_refill_answer(now, from, epoch, number, until),
            // Asked by the node around a damaged group of one; the log itself answers (driver).
            Message::LinesRequest { .. } | Message::Lines { .. } => {}
        }
    }

    fn on_tick(&mut self, now: Now) {
        self.expire_lead_directives(now);
        if now.mono_ms >= self.heartbeat_at_ms {
            self.heartbeat_at_ms = now.mono_ms + self.tuning.heartbeat_interval_ms;
            self.send_heartbeats(now);
        }
        if now.mono_ms >= self.check_at_ms {
            self.check_at_ms = now.mono_ms + CHECK_MS;
            self.note_health(now);
            self.ask_for_refill();
            self.ask_for_snapshot();
            self.pursue_lead_directives(now);
            self.show_again();
            self.check_majority(now);
        }
        match &self.role {
            Role::Leader(_) => self.tick_leader(now),
            _ if self.may_campaign() && now.mono_ms >= self.campaign_at_ms => self.campaign_by_time(now),
            _ => {}
        }
    }

    fn me(&self) -> MemberId {
        self.hard.member_id
    }

    fn epoch(&self) -> Epoch {
        self.hard.promise.epoch
    }

    fn applied(&self) -> EntryId {
        self.state.applied()
    }

    fn configuration(&self) -> &Configuration {
        &self.configurations.current().configuration
    }

    fn config_id(&self) -> EntryId {
        self.configurations.current().id
    }

    fn is_voter(&self) -> bool {
        self.configuration().contains(self.me())
    }

    fn is_only_voter(&self) -> bool {
        self.is_voter() && self.configuration().voters.len() == 1
    }

    fn other_voters(&self) -> Vec<MemberId> {
        let me = self.me();
        self.configuration().ids().filter(|&id| id != me).collect()
    }

    /// A leader of this epoch was heard within the time-out.
    fn leader_is_alive(&self, now: Now) -> bool {
        match (&self.role, self.leader) {
            (Role::Leader(_), _) => true,
            (_, Some(_)) => {
                let timeout_ms = self.tuning.heartbeat_timeout_ms;
                self.leader_heard.ago_ms(now.mono_ms).is_some_and(|ago| ago < timeout_ms)
            }
            (_, None) => false,
        }
    }

    fn reply(&mut self, token: Token, reply: Reply) {
        self.effects.push(Effect::Reply { token, reply });
    }

    fn refuse(&mut self, token: Token, refusal: Refusal) {
        self.reply(token, Reply::Refused(refusal));
    }

    /// Who is of another group by now is told so, and nothing else: it would take a heartbeat or a late vote for one of
    /// its own group.
    fn send(&mut self, to: MemberId, message: Message) {
        let is_strange = self.is_of_another_group(to) && !matches!(message, Message::Show { .. });
        if !is_strange || mutant::on(Mutant::SpeakToOtherGroups) {
            self.effects.push(Effect::Send { to, message });
        }
    }

    fn note(&mut self, note: Note) {
        self.effects.push(Effect::Note(note));
    }

    fn stop(&mut self, reason: String) {
        self.stopped = true;
        self.effects.push(Effect::Stop { reason });
    }

    /// Adopts a higher epoch, durably, following nobody yet.
    fn adopt_epoch(&mut self, now: Now, epoch: Epoch) {
        assert!(epoch > self.epoch(), "epochs only rise");
        self.judge_former_leader(now);
        self.become_follower(now, epoch);
        self.hard.promise = Promise { epoch, candidate: None };
        self.leader = None;
        self.persist_state();
    }

    /// To be asked when an epoch begins: a hand-over or a fast election follows soon upon the last word of the leader.
    fn judge_former_leader(&mut self, now: Now) {
        let long_ms = self.tuning.heartbeat_timeout_ms / 2;
        self.leader_fell_silent = self.leader_heard.ago_ms(now.mono_ms).is_none_or(|ago| ago >= long_ms);
    }

    /// What the positions promise each other; checked by tests and the simulator after every step.
    pub fn check_invariants(&self) {
        let last = self.log.last().id;
        assert!(self.log.horizon().id <= self.applied(), "horizon <= applied");
        assert!(self.applied() <= self.committed, "applied <= committed");
        assert!(self.applied() <= self.persist.durable(), "applied <= durable");
        assert!(self.persist.durable() <= last, "durable <= last");
        assert!(self.committed <= last, "committed <= last");
        assert!(self.log.last().epoch <= self.epoch(), "no entry is of a later epoch than the promise");
        if let Role::Leader(_) = self.role {
            assert_eq!(self.leader, Some(self.me()), "a leader knows itself");
            assert!(self.hard.quarantine.is_none(), "a quarantined member never leads");
        }
    }

    /// The position of the last entry, and the committed id: for tests and the simulator.
    pub fn positions(&self) -> (LogPosition, EntryId) {
        (self.log.last(), self.committed)
    }
}
