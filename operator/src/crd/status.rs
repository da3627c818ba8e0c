//! What the operator reports of a cluster: the status, its conditions and the fixed words in them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator last saw of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KvClusterStatus {
    /// Identity of the group of nodes, chosen once, before it is founded. A recovery chooses a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The pod that leads, as a majority confirms it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// When the operator first saw that leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader_since: Option<Time>,
    /// Rises with each change of leadership.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// The pods that follow, learners included.
    #[serde(default)]
    pub followers: Vec<String>,
    /// The image that the nodes are to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Pods that are ready for clients.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Pods that run with the settings of the spec, or of the last one that was valid.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Selects the pods; for autoscalers and `kubectl scale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// What is known of each node.
    #[serde(default)]
    pub members: Vec<MemberReport>,
    /// Available, QuorumHealthy, Progressing, Degraded, Paused, SpecInvalid.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// What is known of one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberReport {
    /// Name of its pod.
    pub name: String,
    /// Identity of its volume; unset while the node has not answered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member_id: Option<String>,
    /// The Kubernetes node that it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its part in the group; unset while it has none or does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<PodRole>,
    /// Whether it counts towards the majority.
    #[serde(default)]
    pub voter: bool,
    /// Whether clients are sent to it.
    #[serde(default)]
    pub ready: bool,
    /// The last entry of its log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_id: Option<i64>,
    /// The last entry that it has made durable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durable_id: Option<i64>,
    /// Entries of the leader that it has not applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_entries: Option<i64>,
    /// What is wrong with it, or being done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A pod's part in the group, as its label shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PodRole {
    Leader,
    Follower,
    Learner,
}

impl PodRole {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Learner => "learner",
        }
    }
}

/// Declares an enum of fixed words that are shown as they are spelt.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$word_doc])* $word),* }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$word),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$word => stringify!($word)),* }
            }
        }
    };
}

words!(
    /// The conditions, in the order in which they are shown.
    ConditionType { Available, QuorumHealthy, Progressing, Degraded, Paused, SpecInvalid }
);

words!(
    /// Why a condition is as it is.
    Reason {
        // Available
        LeaderConfirmed, WaitingForMembers, NoLeader, ManualLeaderDown, QuorumLost,
        // QuorumHealthy
        AllVotersReachable, MembersMissing, NoVoterCanBeLost,
        // Progressing
        Rolling, Scaling, Replacing, Growing, ScaleDownUnsafe, RolloutStuck, WaitingForSwitchover, WaitingForOldChildren,
        Founding, Recovering, SwitchingOver, Retrying, Stable,
        // Degraded
        MemberLagging, CorruptionFound, VolumeUnavailable, DiskNearlyFull, AllMembersFine,
        // Paused
        PausedBySpec, NotPaused,
        // SpecInvalid
        NameTaken, UnknownLeader, StorageCannotGrow, BadValue, EvenReplicas, Valid,
    }
);
