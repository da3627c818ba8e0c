//! What replicas say to each other, and what a node shows when it introduces itself. Plain data: the
//! transport frames it, the replica means it. Entries travel as the lines they are.

use serde::{Deserialize, Serialize};

use crate::entry::{Entry, EntryId, Epoch, LogPosition};
use crate::group::{ClusterId, FeatureLevel, MemberId, NodeName};

/// One number for one round of confirmation by a majority; rises while a replica leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Round(pub u64);

/// A promise not to follow or vote for anything older. Durable before it is told to anyone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Promise {
    pub epoch: Epoch,
    /// Whom this member voted for in that epoch.
    pub candidate: Option<MemberId>,
}

/// What a start of a member found on its disk, or a refill has made of it: what it is judged by. What it has taken on since
/// is no sign of what its disk had held before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    pub promise: Epoch,
    pub durable: LogPosition,
}

/// What a member shows of itself when a connection opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub name: NodeName,
    pub member_id: MemberId,
    /// None: uninitialised.
    pub cluster_id: Option<ClusterId>,
    /// Rises durably at each start.
    pub incarnation: u64,
    /// Drawn at random at each start.
    pub start_id: u64,
    pub promise: Promise,
    /// The last durable entry; ordered by epoch first, it never goes back on one volume.
    pub durable: LogPosition,
    /// None: what it has now, as far as is said: nothing was taken on yet, or an earlier release shows itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    pub feature_level: FeatureLevel,
    /// Where clients reach the node, for forwarding.
    pub url: String,
    pub peer_url: String,
}

/// What a voter remembers of another member, to know a copied or restored volume by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    pub incarnation: u64,
    pub start_id: u64,
    pub promise: Epoch,
    pub durable: LogPosition,
}

/// Who votes by the last configuration in a log, committed or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VotersAt {
    pub config_id: EntryId,
    pub member_ids: Vec<MemberId>,
}

/// A message between two members of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Heartbeat(Heartbeat),
    /// To a leader: its heartbeat or append of `round` arrived, and this member follows it in `epoch`.
    HeartbeatAck {
        epoch: Epoch,
        round: Round,
    },
    Append(Append),
    AppendAck(AppendAck),
    VoteRequest(VoteRequest),
    VoteReply(VoteReply),
    /// To the leader: hand leadership over to the sender.
    TransferRequest {
        epoch: Epoch,
    },
    /// From the leader: campaign at once, without PreVote.
    TimeoutNow {
        epoch: Epoch,
    },
    /// The receiver is not of the group any more, or never was; it stops campaigning and registers itself again.
    NotAMember {
        config_id: EntryId,
    },
    Accepted(Accepted),
    /// What a member showed is older than what this voter saw of it: a copied or restored volume.
    Stale {
        seen: Seen,
        reason: String,
    },
    /// What a member shows of itself, over a connection that is older than its membership.
    Show {
        hello: Box<Hello>,
        answer: bool,
    },
    /// To whoever leads: the sender is quarantined, or about to be; what is your last id? The number comes
    /// back with the answer: 0 in a group with members of a release that had none.
    RefillRequest {
        epoch: Epoch,
        number: u64,
    },
    /// From a leader that a majority has confirmed since it was asked: be durable up to here.
    RefillAnswer {
        epoch: Epoch,
        number: u64,
        until: EntryId,
    },
    /// From a damaged group of one to its learners: the lines of these ids, as far as held.
    LinesRequest {
        first: EntryId,
        last: EntryId,
    },
    /// `compacted`: at or below it the sender has forgotten lines, and may know more than what it sends.
    Lines {
        first: EntryId,
        last: EntryId,
        compacted: EntryId,
        entries: Vec<Entry>,
    },
}

/// What a member showed was accepted, and is remembered durably: it may vote and acknowledge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub incarnation: u64,
    /// It answers one start; another one of the same incarnation is a copy's. 0: from a release that didn't say which.
    #[serde(default)]
    pub start_id: u64,
    /// Those that count for the sender, whom the receiver may know less of. None: from a release that didn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voters: Option<VotersAt>,
}

/// Sent every interval to every known member; by the leader with a round, at once when needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub epoch: Epoch,
    /// Some: the sender leads in `epoch`; acknowledge this round.
    pub lead: Option<Lead>,
    /// The leader that the sender follows or is.
    pub leader: Option<MemberId>,
    /// Information only, never counted.
    pub last: EntryId,
    pub durable: EntryId,
    pub applied: EntryId,
    pub storage_full: bool,
    /// Quarantined, damaged or uninitialised: counts in no quorum.
    pub unfit: bool,
    /// Shutting down: leadership is not to be handed to it.
    pub leaving: bool,
    pub feature_level: FeatureLevel,
}

/// What only a leader's heartbeat carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    pub round: Round,
    /// The receiver believes it only up to what it has matched with this leader.
    pub committed: EntryId,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    pub epoch: Epoch,
    pub round: Round,
    /// The position just below the first entry.
    pub prev: LogPosition,
    pub committed: EntryId,
    /// May be empty: a probe, or a commit id that no entry carries.
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendAck {
    pub epoch: Epoch,
    pub round: Round,
    pub result: AppendResult,
    pub storage_full: bool,
    /// Quarantined: what it holds counts in no quorum.
    pub unfit: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppendResult {
    /// Durable and matched with this leader in this epoch up to here: all that ever counts.
    Durable(EntryId),
    /// `prev` did not match; try at or below this position.
    Mismatch { rejected: EntryId, hint: LogPosition },
    /// Below the follower's horizon or the follower is empty: only a snapshot helps.
    NeedSnapshot,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRequest {
    /// The epoch campaigned for (for PreVote: that would be).
    pub epoch: Epoch,
    pub kind: VoteKind,
    pub last: LogPosition,
    /// Of the candidate: 0 from a release that does not name it.
    #[serde(default)]
    pub start_id: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoteKind {
    /// Would you vote? Changes nothing at the voter, and is refused while a leader is heard.
    Pre,
    /// A campaign by election time-out: refused while a leader is heard.
    Election,
    /// A campaign that was told to start (directive, transfer): a live leader is no reason to refuse.
    Directed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteReply {
    /// The epoch that was asked for; of a refusal, the higher epoch seen.
    pub epoch: Epoch,
    pub kind: VoteKind,
    pub granted: bool,
    /// The voter's own last position: a refusal names who is ahead.
    pub last: LogPosition,
    /// The start that asked. Another process of its member, on a copy of its volume, may campaign in the same epoch.
    #[serde(default)]
    pub start_id: u64,
}
