//! The contract between the replica and its surroundings: what goes in, what comes out, what it is
//! started from. Plain data; the meaning is in [`crate::replica`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::command::{Command, OperationKind, RequestId};
use crate::entry::{Entry, EntryId, Epoch, LogPosition};
use crate::group::{ClusterId, Configuration, ConfigurationAt, FeatureLevel, MemberId, MemberInfo, NodeName, Settings};
use crate::message::{Hello, Message, Promise, Seen};
use crate::mutant::{self, Mutant};
use crate::state_machine::StateMachine;
use crate::status::ReplicaStatus;

/// Both clocks, read by the driver. `mono_ms` counts from an arbitrary start and never goes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    pub mono_ms: u64,
    /// Unix milliseconds; used for the first timestamp of a group alone.
    pub wall_ms: u64,
}

/// Names a waiting request; drawn by the driver, echoed in [`Effect::Reply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// When and how a node campaigns without being told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failover {
    Manual,
    Automatic,
}

impl std::fmt::Display for Failover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Manual => "manual",
            Self::Automatic => "automatic",
        })
    }
}

impl std::str::FromStr for Failover {
    type Err = &'static str;

    /// As people write it: in capitals or not.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.to_ascii_lowercase().as_str() {
            "manual" => Ok(Self::Manual),
            "automatic" => Ok(Self::Automatic),
            _ => Err("must be manual or automatic"),
        }
    }
}

/// What a running node can be tuned to; changes with [`Request::Tune`] until the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    pub heartbeat_interval_ms: u64,
    pub heartbeat_timeout_ms: u64,
    pub failover: Failover,
}

/// The part of the manifest that the replica owns. Saved whole by [`Persist::State`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HardState {
    pub name: NodeName,
    pub member_id: MemberId,
    /// None: uninitialised.
    pub cluster_id: Option<ClusterId>,
    pub promise: Promise,
    /// Raised durably by the node before the replica exists.
    pub incarnation: u64,
    /// Set while the member must first be refilled.
    pub quarantine: Option<Quarantine>,
    /// What was seen of the other members, by member id.
    pub seen: BTreeMap<MemberId, Seen>,
    /// Known to be committed; never above what is durable here.
    pub committed: EntryId,
}

/// Why a member is kept from voting and serving, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantine {
    pub reason: String,
    /// The last id that the leader had when it was asked; None: not asked yet.
    pub until: Option<EntryId>,
    /// False where the log may lack what was acknowledged, and for a copied or restored volume: its promise may be
    /// older than one it gave.
    pub may_vote: bool,
}

/// The state of the group just below the first entry of the log proper.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// The last position that compaction has covered; 0 when nothing was compacted.
    pub horizon: LogPosition,
    /// In force at the horizon (its id may be above it after a recovery by hand).
    pub configuration: ConfigurationAt,
    pub settings: Settings,
    pub feature_level: FeatureLevel,
    /// Entries above the horizon that apply is known to have refused.
    pub refused: Vec<EntryId>,
    /// The highest `ts` of the lines up to the horizon: time in the log goes on from there. 0: none had one, or the
    /// group's feature level is below [`crate::group::TIME_IN_BASE`].
    #[serde(default, skip_serializing_if = "is_none")]
    pub ts_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_none(ts_ms: &u64) -> bool {
    *ts_ms == 0
}

/// What a replica is started from: what recovery found.
#[derive(Debug)]
pub struct Boot {
    pub hard: HardState,
    pub base: Base,
    /// Drawn at random by the node for this start.
    pub start_id: u64,
    pub url: String,
    pub peer_url: String,
    pub tuning: Tuning,
    /// Seeds election time-outs.
    pub seed: u64,
    /// State up to and including `hard.committed` (everything, for a group of one).
    pub state: StateMachine,
    /// The first id of each run of entries with one epoch, above the horizon, rising.
    pub epoch_runs: Vec<LogPosition>,
    /// CONFIG entries above the horizon, rising.
    pub configurations: Vec<ConfigurationAt>,
    /// The entries above the applied id, without a gap.
    pub tail: Vec<Entry>,
    pub lost: Lost,
    /// A member named to lead at start: campaigns until it leads, hears a leader or is named behind.
    pub lead_at_start: bool,
    pub limits: Limits,
}

/// What nobody holds any more of the log of a group of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// Ranges of ids, rising, both ends included, that no LOST entry declares yet.
    pub undeclared: Vec<(EntryId, EntryId)>,
    /// The last LOST entry above the horizon; 0: none.
    pub declared_at: EntryId,
}

/// Named bounds of a replica's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Writes proposed and not yet applied; over it: `Overloaded`.
    pub proposals_max: usize,
    pub proposal_bytes_max: usize,
    /// Writes parked during a hand-over.
    pub parked_max: usize,
    /// Reads and refusals that wait for a round.
    pub reads_max: usize,
    /// Entries on the way to one peer.
    pub window_entries_max: usize,
    pub window_bytes_max: usize,
    /// Applied entries kept in memory for peers that are a little behind.
    pub cache_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            proposals_max: 8192,
            proposal_bytes_max: 64 << 20,
            parked_max: 4096,
            reads_max: 16_384,
            window_entries_max: 8192,
            window_bytes_max: 8 << 20,
            cache_bytes_max: 16 << 20,
        }
    }
}

/// What can happen to a replica.
#[derive(Debug)]
pub enum Input {
    /// Time has passed; due at [`crate::Replica::deadline_ms`] at the latest.
    Tick,
    Request {
        token: Token,
        request: Request,
    },
    /// The client behind the token has gone; what was proposed goes on.
    Cancelled {
        token: Token,
    },
    /// A connection to `hello.member_id` is open in both directions.
    Connected {
        hello: Hello,
    },
    /// The connection to a peer has ended. `refused`: the next attempt was refused, so its process is dead.
    Disconnected {
        peer: MemberId,
        refused: bool,
    },
    Received {
        from: MemberId,
        message: Message,
    },
    /// Everything up to this [`Effect::Persist`] number is durable.
    Persisted {
        seq: u64,
    },
    /// The volume or the storage limit is full, or has room again.
    Storage {
        full: bool,
    },
    /// The answer to [`Effect::Fetch`]; empty: not held any more.
    Fetched {
        peer: MemberId,
        from: EntryId,
        entries: Vec<Entry>,
    },
    /// The answer to [`Effect::SendSnapshot`].
    SnapshotSent {
        peer: MemberId,
        result: Result<LogPosition, String>,
    },
    /// A snapshot was received whole and verified, and waits to be installed.
    SnapshotStaged {
        from: MemberId,
        epoch: Epoch,
        position: LogPosition,
        cluster_id: ClusterId,
    },
    /// Compaction has moved the horizon: entries at or below it can no longer be fetched.
    Compacted {
        horizon: LogPosition,
    },
    /// The state recovered from an installed snapshot; answers [`Persist::Install`].
    Installed {
        boot: Box<Boot>,
    },
    /// A sealed file is damaged, and its bytes are not to be had: only a snapshot helps. Told again until it did.
    Damaged {
        reason: String,
    },
}

/// What the driver asks on behalf of clients and administrators.
#[derive(Debug, Clone)]
pub enum Request {
    Write(Command),
    /// A linearizable read: answered with the id that must be applied before reading.
    ReadIndex,
    /// Looks a request up in the deduplication table.
    RequestStatus {
        request: RequestId,
        operation: OperationKind,
    },
    Status,
    Hello,
    Lead {
        target: Option<Target>,
    },
    Bootstrap {
        target_member_id: Option<MemberId>,
        if_config_id: Option<EntryId>,
        cluster_id: ClusterId,
        voters: Vec<MemberInfo>,
        settings: Settings,
    },
    AddMember {
        target: Option<Target>,
        member: MemberInfo,
        voter: bool,
    },
    RemoveMember {
        target: Option<Target>,
        member_id: MemberId,
    },
    ChangeSettings {
        target: Option<Target>,
        settings: SettingsChange,
    },
    Recover {
        target: Option<Target>,
        accept_data_loss_at_epoch: Epoch,
        new_cluster_id: ClusterId,
    },
    Tune {
        tuning: TuningChange,
    },
    /// Shutting down: hand leadership over to the most advanced voter that is healthy and stays. Answered when done or
    /// given up; from now on nobody hands over to this member.
    HandOver,
    /// Damaged: hand leadership over as for [`Self::HandOver`], and stay. Answered when done or given up.
    StepDown,
}

/// What a directive was decided on; a mismatch is refused with the node's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub cluster_id: ClusterId,
    pub target_member_id: MemberId,
    pub if_config_id: EntryId,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsChange {
    pub history_limit: Option<u32>,
    pub dedup_expiry_seconds: Option<u64>,
    pub dedup_limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TuningChange {
    pub heartbeat_interval_ms: Option<u64>,
    pub heartbeat_timeout_ms: Option<u64>,
    pub failover: Option<Failover>,
}

/// The answer to a request that was carried out.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A write took effect, or had: `replay` when this is the result of an earlier copy.
    Written {
        written: Written,
        replay: bool,
    },
    /// DELETE of an absent key.
    NotFound,
    VersionConflict {
        provided: u64,
        current: u64,
    },
    PreconditionFailed,
    /// The same request id and operation with another key, value or precondition.
    RequestReused,
    /// Read when this id is applied here.
    ReadAt(EntryId),
    RequestStatus(Option<Written>),
    Status(Box<ReplicaStatus>),
    Hello(Box<Hello>),
    /// Lead, Bootstrap, AddMember, RemoveMember, ChangeSettings, Recover, Tune, HandOver, StepDown: done.
    Done {
        config_id: EntryId,
    },
    Refused(Refusal),
}

/// The result of a write that took effect; all that a replay needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub id: EntryId,
    pub operation: OperationKind,
    pub key: crate::command::Key,
    /// The version made by a SET; 0 for a DELETE.
    pub version: u64,
}

/// Why a request was not carried out. Nothing was proposed, except for `OutcomeUnknown`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// This replica does not lead; the leader, if known. Nothing was proposed.
    NotLeader {
        leader: Option<MemberId>,
    },
    /// It leads, but no majority confirmed it in time.
    NotConfirmed,
    /// It was proposed, and this replica can no longer tell whether it takes effect.
    OutcomeUnknown,
    Overloaded,
    StorageFull,
    /// Uninitialised, quarantined, shutting down, or still applying what it inherited.
    NotReady(String),
    /// A member is ahead of the one told to lead.
    Behind {
        ahead: NodeName,
    },
    /// The directive was decided on other identities than the node's own.
    IdentityMismatch {
        cluster_id: Option<ClusterId>,
        member_id: MemberId,
        config_id: EntryId,
        epoch: Epoch,
    },
    NameTaken {
        holder: MemberId,
    },
    /// Another change is under way, or a rule forbids this one now; the text says which.
    Conflict(String),
    /// The request itself can never succeed; the text says why.
    Invalid(String),
}

/// What the surroundings must do, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Make it durable after all lower numbers; then feed [`Input::Persisted`].
    Persist {
        seq: u64,
        op: Persist,
    },
    /// Best effort; may be lost, repeated or late.
    Send {
        to: MemberId,
        message: Message,
    },
    Reply {
        token: Token,
        reply: Reply,
    },
    /// The members to hold connections with, besides those that connect by themselves.
    Peers(Vec<MemberInfo>),
    /// Dial this peer at once, without waiting for the back-off.
    Redial {
        peer: MemberId,
    },
    /// Read entries of the log from `from` on, at most `bytes_max` (but at least one entry).
    Fetch {
        peer: MemberId,
        from: EntryId,
        bytes_max: usize,
    },
    /// Stream a snapshot at the present applied id to the peer over a connection of its own.
    SendSnapshot {
        peer: MemberId,
        epoch: Epoch,
    },
    /// The replica's public view changed; see [`crate::Replica::view`].
    ViewChanged,
    /// Someone should read this in the log.
    Note(Note),
    /// The replica's rules or its disk are broken: stop the process, answer nothing.
    Stop {
        reason: String,
    },
}

/// What to make durable.
#[derive(Debug)]
pub enum Persist {
    /// `committed` is information for the durable-id file.
    Append {
        entries: Vec<Entry>,
        committed: EntryId,
    },
    /// Cut all entries above `keep`, after saving them aside.
    Truncate {
        keep: EntryId,
    },
    State(Box<HardState>),
    /// An uninitialised node becomes a member: the state and the base of an empty log.
    Found {
        state: Box<HardState>,
        base: Box<Base>,
    },
    /// Majority lost for good: the state with its new cluster id, and the configuration from `last` on.
    Recover {
        state: Box<HardState>,
        configuration: ConfigurationAt,
    },
    /// Replace everything by the staged snapshot; then feed [`Input::Installed`] instead of `Persisted`.
    Install {
        state: Box<HardState>,
        position: LogPosition,
    },
}

/// A transition worth a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    BecameLeader {
        epoch: Epoch,
    },
    Deposed {
        by: Epoch,
        unknown_outcomes: usize,
    },
    /// No majority was heard within the time-out: it leads no more.
    Unheard {
        epoch: Epoch,
    },
    Follows {
        leader: MemberId,
        epoch: Epoch,
    },
    Campaigns {
        epoch: Epoch,
    },
    Behind {
        ahead: NodeName,
    },
    PeerDown(NodeName),
    PeerHealthy(NodeName),
    TailCut {
        keep: EntryId,
        last: EntryId,
    },
    ConfigurationApplied {
        id: EntryId,
        configuration: Configuration,
    },
    Quarantined {
        reason: String,
    },
    /// Another process runs as this member; this one stays out until it is started again.
    Superseded {
        reason: String,
    },
    Refilled,
    MemberReplaced {
        old: MemberId,
        new: MemberId,
    },
}

/// The part of a replica that HTTP handlers read on every request; published by the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub role: crate::status::Role,
    pub epoch: Epoch,
    pub leader: Option<MemberId>,
    /// On the leader: default reads are answered until then.
    pub lease_until_mono_ms: u64,
    /// It led, and has not heard since who leads now.
    pub deposed: bool,
    /// When this epoch began, the leader before had been silent for so long that no answer of it is to be expected.
    pub leader_fell_silent: bool,
    /// A learner that whoever leads does not know, and did not remove: it may register again.
    pub forgotten: bool,
    /// It was removed from the group, and stays away until it is added again or started again.
    pub let_go: bool,
    /// False: uninitialised, quarantined or damaged; answers no reads.
    pub serves: bool,
    /// A confirmed leader is known and this replica has applied what that leader had committed.
    pub caught_up: bool,
    pub committed: EntryId,
    /// Compaction may cover entries up to here: applied, and not needed by a live peer that is a little behind.
    pub compaction_limit: EntryId,
    /// Client URLs by member, for forwarding.
    pub urls: Arc<BTreeMap<MemberId, String>>,
}

impl View {
    /// A leader answers default reads only while it holds its lease. One that was deposed, perhaps because it is
    /// cut off from a majority that goes on without it, answers none until it has heard who leads, or leads again.
    pub fn answers_default_reads(&self, mono_ms: u64) -> bool {
        let leads = self.role == crate::status::Role::Leader;
        let is_deposed = self.deposed && !mutant::on(Mutant::DeposedAnswersReads);
        self.serves && !is_deposed && (!leads || self.lease_until_mono_ms > mono_ms)
    }
}
