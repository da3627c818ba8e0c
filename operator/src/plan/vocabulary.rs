//! What a plan says, in plain data: what is to be written, what the nodes are told, and why. And what it draws from
//! outside. Filled by the parts of `plan`, carried out by `apply`, folded into the status by `report`.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::contract::SettingsChange;
use kv_core::entry::Epoch;
use kv_core::group::{ClusterId, MemberId, MemberInfo, Settings};

use super::{Memory, NodeTuning};
use crate::crd::Reason;
use crate::group::Addressee;
use crate::resources::{Child, Kind};

/// What is to be written, and what that is good for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Children that are not as they should be, in the order in which they are written.
    pub ensure: Vec<Child>,
    /// Children that should not be.
    pub remove: Vec<(Kind, String)>,
    /// Claims that are to grow.
    pub grow: Vec<Growth>,
    /// The StatefulSet is to be deleted without its pods, since its claim template cannot be changed.
    pub replace_set: bool,
    /// Pods and claims whose labels are wrong, in the order in which they are written.
    pub labels: Vec<Relabel>,
    /// Who founds the group; written to the status before anybody is told.
    pub assignment: Option<Assignment>,
    /// Nodes that run with other settings than the spec's, as far as they can be changed at once.
    pub tune: Vec<NodeTuning>,
    /// What the nodes are told, or the one pod that is restarted.
    pub directive: Option<Directive>,
    /// What is under way, or why nothing can be.
    pub progress: Option<Progress>,
    /// Why nobody leads although somebody could.
    pub leadership: Option<Progress>,
    /// The image that the nodes are to run.
    pub image: String,
    /// Pods that run with the settings of the spec.
    pub updated: u32,
    pub memory: Memory,
    /// When to look again at the latest.
    pub next: Duration,
}

impl Plan {
    /// Nothing to write, nothing under way.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.has_changes() && self.labels.is_empty() && self.leadership.is_none()
    }

    /// Besides labels.
    pub(super) fn has_changes(&self) -> bool {
        let Self {
            ensure,
            remove,
            grow,
            replace_set,
            labels: _,
            assignment,
            tune,
            directive,
            progress,
            leadership: _,
            image: _,
            updated: _,
            memory: _,
            next: _,
        } = self;
        let writes = !ensure.is_empty() || !remove.is_empty() || !grow.is_empty() || *replace_set;
        writes || assignment.is_some() || !tune.is_empty() || directive.is_some() || progress.is_some()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    pub claim: String,
    /// As the spec says it.
    pub size: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relabel {
    pub what: Labelled,
    pub name: String,
    /// None: the label goes.
    pub labels: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Labelled {
    Pod,
    Claim,
}

/// The body that founds a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub cluster_id: ClusterId,
    pub voters: Vec<MemberInfo>,
}

/// A condition's reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub reason: Reason,
    pub message: String,
}

impl Progress {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// One thing that nodes or the eviction API are asked to do. All can be asked again.
#[derive(Debug, Clone, PartialEq)]
pub enum Directive {
    /// The same body to every member that is empty.
    Bootstrap {
        nodes: Vec<Founder>,
        assignment: Assignment,
        settings: Settings,
    },
    /// A learner first; a voter, too, once the leader finds that it has caught up.
    Join {
        leader: Addressee,
        member: MemberInfo,
        voter: bool,
    },
    Remove {
        leader: Addressee,
        member_id: MemberId,
        name: String,
    },
    /// By transfer while a leader lives, else by campaign.
    Lead {
        node: Addressee,
        why: &'static str,
    },
    ChangeSettings {
        leader: Addressee,
        change: SettingsChange,
    },
    /// A survivor goes on alone, as another cluster.
    Recover {
        node: Addressee,
        epoch: Epoch,
        new_cluster_id: ClusterId,
    },
    /// Through the eviction API.
    Restart {
        pod: String,
        uid: String,
    },
}

/// An empty node that is to be bootstrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founder {
    pub pod: String,
    pub url: String,
    pub member_id: MemberId,
}

/// What a plan draws from outside: a clock that never goes back, and chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draw {
    /// Milliseconds since an arbitrary start.
    pub now_ms: u64,
    /// For a group that has to be founded.
    pub cluster_id: ClusterId,
    /// For a Secret that has to be minted.
    pub token: String,
    pub defaults: Defaults,
}

/// What the operator was told for clusters that say nothing. Another default restarts nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults {
    pub image: String,
    /// Names of Secrets with which it is pulled.
    pub pull_secrets: Vec<String>,
}
