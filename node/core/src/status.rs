//! What a node reports of itself: the `/status` document. One type for the node that writes it and
//! for the operator and tests that read it. Holds no logic. A field that a release adds has a default: an
//! operator reads nodes of the release before.

use serde::{Deserialize, Serialize};

pub use crate::contract::{Failover, Tuning};
use crate::entry::{EntryId, Epoch};
use crate::group::{ClusterId, FeatureLevel, MemberId, NodeName, Settings};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
    /// An empty volume: neither bootstrapped nor added.
    Uninitialised,
}

/// Judged by heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Healthy,
    Down,
}

/// The `/status` document: what the replica knows and what the node adds around it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    #[serde(flatten)]
    pub replica: ReplicaStatus,
    /// Where clients reach the node.
    pub url: String,
    pub peer_url: String,
    /// Drawn at each start; 16 hexadecimal digits.
    pub start_id: String,
    /// The release.
    pub version: String,
    /// What `/readyz` answers.
    pub ready: bool,
    pub draining: bool,
    pub disk: DiskStatus,
    /// What the last recovery found.
    pub corruption: CorruptionReport,
    pub compaction: CompactionSchedule,
}

/// When the node compacts its log by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactionSchedule {
    pub enabled: bool,
    pub interval_seconds: u64,
    /// Without `force`, no run begins earlier after the last one.
    pub min_interval_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Bytes of the log's files; what is kept in `aside/` and `quarantine/` for people to look at comes on top.
    pub used_bytes: u64,
    /// Bytes free on the volume; None: it could not be asked.
    pub available_bytes: Option<u64>,
    /// Writes are refused for want of space.
    pub full: bool,
    /// Bytes that the log's files may have together; None: as many as there is room for.
    pub limit_bytes: Option<u64>,
}

/// What a recovery could not believe. All kept aside, nothing skipped in silence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptionReport {
    /// How many places are damaged; `places` may hold only the first.
    pub damaged_places: u64,
    pub places: Vec<DamagedPlace>,
    /// Sealed files that are damaged now; empty once they were repaired or replaced.
    #[serde(default)]
    pub unrepaired: Vec<String>,
    /// Ids that the log should hold and does not.
    pub missing: Vec<MissingIds>,
    /// What was cut off the end of the last segment; no damage, but an unfinished write.
    pub torn_tail: Option<TornTail>,
    /// Files that do not belong to the log.
    pub orphans: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPlace {
    pub file: String,
    /// Bytes from the file's start; None: the file as a whole.
    pub offset: Option<u64>,
    pub reason: String,
}

/// Both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingIds {
    pub first: EntryId,
    pub last: EntryId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TornTail {
    pub file: String,
    pub offset: u64,
    pub bytes: u64,
    pub saved_as: String,
}

/// What the replica knows; the node adds [`NodeStatus`] around it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    pub name: NodeName,
    pub member_id: MemberId,
    pub cluster_id: Option<ClusterId>,
    pub role: Role,
    pub epoch: Epoch,
    pub leader: Option<LeaderStatus>,
    pub last_id: EntryId,
    pub durable_id: EntryId,
    pub committed_id: EntryId,
    pub applied_id: EntryId,
    /// Entries known to exist on the leader and not applied here.
    pub lag: u64,
    /// The id of the last CONFIG entry; 0 after bootstrap.
    pub config_id: EntryId,
    pub members: Vec<MemberStatus>,
    pub settings: Settings,
    pub tuning: Tuning,
    pub feature_level: FeatureLevel,
    pub incarnation: u64,
    /// Why the member is quarantined; None: it is not.
    pub quarantined: Option<String>,
    /// Milliseconds since a leader was last heard; 0 on the leader; None: never.
    pub leader_heard_ms_ago: Option<u64>,
    /// On the leader: a majority confirmed it within the lease.
    pub lease_held: bool,
    /// When the `…_ms_ago` above were true, by the node's own monotonic clock: means nothing elsewhere.
    #[serde(skip)]
    pub at_mono_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaderStatus {
    pub name: NodeName,
    pub member_id: MemberId,
    pub url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub name: NodeName,
    pub member_id: MemberId,
    pub peer_url: String,
    pub url: Option<String>,
    pub role: Role,
    pub voter: bool,
    pub health: Health,
    /// Milliseconds since it was last heard; None: never.
    pub heard_ms_ago: Option<u64>,
    pub last_id: EntryId,
    pub durable_id: EntryId,
    pub applied_id: EntryId,
    /// Entries that the leader holds and the member has not made durable; on the leader only.
    pub lag: u64,
    pub storage_full: bool,
    /// Quarantined, damaged or empty: counts in no quorum.
    pub unfit: bool,
}
