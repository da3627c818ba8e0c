//! What to do next: a pure function of what is desired, what was seen and what is remembered. At most one
//! action that disturbs anybody in each plan; the next one is decided on what is seen after it. Never
//! sees a Kubernetes client; a plan for a cluster at rest is empty.
//!
//! The order is that of danger: found the group, then who leads, then its members, then restarts. Who only waits
//! lets the next one have the turn.

mod bootstrap;
mod labels;
mod leadership;
mod live;
mod membership;
mod recovery;
mod rollout;
#[cfg(test)]
pub(crate) mod scene;
mod volumes;

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::contract::SettingsChange;
use kv_core::entry::Epoch;
use kv_core::group::{ClusterId, MemberId, MemberInfo, Settings};

use crate::crd::{KvClusterSpec, PodRole, Reason};
use crate::group::{Addressee, Group, addressee};
use crate::names::Identity;
use crate::observed::Observed;
use crate::resources::{self, Child, Choices, Kind, spec_hash};
use crate::validate::Desired;

pub use leadership::Memory;
pub use live::NodeTuning;
use rollout::Outdated;

/// How soon to look again while something is under way.
const SOON: Duration = Duration::from_secs(1);
/// How soon to look again at a cluster at rest: its status must be true within 10 s.
pub(crate) const AT_REST: Duration = Duration::from_secs(5);

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
    fn new(reason: Reason, message: impl Into<String>) -> Self {
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

/// What a part of the plan comes to.
#[derive(Debug, Default)]
struct Step {
    directive: Option<Directive>,
    progress: Option<Progress>,
}

impl Step {
    fn waits(reason: Reason, message: impl Into<String>) -> Self {
        Self { directive: None, progress: Some(Progress::new(reason, message)) }
    }

    fn does(directive: Directive, reason: Reason, message: impl Into<String>) -> Self {
        Self { directive: Some(directive), progress: Some(Progress::new(reason, message)) }
    }

    /// This one if it does anything, else the next one. What is waited for first is told.
    fn or(self, next: impl FnOnce() -> Self) -> Self {
        if self.directive.is_some() {
            return self;
        }
        let Self { directive, progress } = next();
        let (first, second) = if directive.is_some() { (progress, self.progress) } else { (self.progress, progress) };
        Self { directive, progress: first.or(second) }
    }

    /// What it does, and what it waits for.
    fn apart(self) -> (Self, Self) {
        if self.directive.is_some() { (self, Self::default()) } else { (Self::default(), self) }
    }
}

/// A group that exists, and what is desired of it.
#[derive(Clone, Copy)]
struct Case<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    group: &'a Group<'a>,
    roll: &'a Outdated,
    /// Pods that there are to be.
    set_replicas: u32,
    now_ms: u64,
}

/// The plan for a spec that makes sense.
pub fn plan(desired: &Desired, observed: &Observed, memory: &Memory, draw: &Draw) -> Plan {
    let whole = whole(desired, observed, memory, draw);
    match (ownership(observed), desired.spec.paused) {
        (None, false) => whole,
        (taken, _) => held_back(desired, observed, memory, taken, whole),
    }
}

/// What of a plan is done while the spec is paused, or something of ours is `taken`.
fn held_back(desired: &Desired, observed: &Observed, memory: &Memory, taken: Option<Progress>, whole: Plan) -> Plan {
    let paused = desired.spec.paused;
    let why = "spec.paused is set, and changes wait until it is unset";
    let waits = whole.has_changes().then(|| Progress::new(Reason::PausedBySpec, why));
    // What has the names of our pods is not ours when it is a stranger's set that they belong to.
    let is_ours = taken.is_none() || observed.set().is_some();
    let goes_on = is_ours && !paused;
    let Plan { tune, directive, leadership, image, updated, memory: changed, .. } = whole;
    // The group goes on. Nobody is restarted: the template that is to be restarted with may not be written.
    let directive = directive.filter(|directive| goes_on && !matches!(directive, Directive::Restart { .. }));
    Plan {
        ensure: Vec::new(),
        remove: Vec::new(),
        grow: Vec::new(),
        replace_set: false,
        labels: if is_ours { look(&desired.identity, &desired.spec, observed).labels } else { Vec::new() },
        assignment: None,
        tune: if goes_on { tune } else { Vec::new() },
        directive,
        progress: taken.or(waits),
        leadership,
        image,
        updated,
        memory: if goes_on { changed } else { memory.clone() },
        next: if paused { AT_REST } else { SOON },
    }
}

/// What is to be done if nothing keeps it from being done.
fn whole(desired: &Desired, observed: &Observed, memory: &Memory, draw: &Draw) -> Plan {
    let group = group(&desired.identity, &desired.spec, observed);
    let image = image(desired, observed, draw);
    let seen = look(&desired.identity, &desired.spec, observed);
    let spec_hash = spec_hash(desired, &image);
    let updated = updated(observed, &spec_hash);
    let mut plan = Plan { memory: memory.clone(), image: image.clone(), updated, ..seen };
    plan.labels.extend(labels::edited(observed));
    plan.memory.note_wish(desired, observed);
    let volumes = volumes::plan(desired, observed);
    let choices = choices(desired, observed, group.as_ref(), draw, image, volumes.claim_size);
    compare(desired, observed, &choices, &mut plan);
    (plan.grow, plan.replace_set) = (volumes.grow, volumes.replace_set);
    if let Some(group) = &group {
        plan.tune = live::plan(desired, observed, group);
    }
    let roll = rollout::outdated(observed, &spec_hash);
    let step = match &group {
        None => {
            let mended = rollout::mend(observed, &roll, &mut plan.memory, draw.now_ms);
            mended.or(|| bootstrap::found(desired, observed, choices.set_replicas, draw, &mut plan.assignment))
        }
        Some(group) => {
            let set_replicas = choices.set_replicas;
            govern(Case { desired, observed, group, roll: &roll, set_replicas, now_ms: draw.now_ms }, &mut plan)
        }
    };
    // A pod that goes while there is no set does not come back.
    let has_set = observed.set().is_some() && !plan.replace_set;
    plan.directive = step.directive.filter(|directive| has_set || !matches!(directive, Directive::Restart { .. }));
    plan.progress = step.progress.or(volumes.progress);
    plan.next = if plan.is_at_rest() { AT_REST } else { SOON };
    plan
}

/// What may always be done, whatever the spec says: the role labels. The pods that count as updated are those
/// with the settings of the last spec that made sense.
pub fn look(identity: &Identity, spec: &KvClusterSpec, observed: &Observed) -> Plan {
    let group = group(identity, spec, observed);
    let roles = labels::roles(observed, group.as_ref()).into_iter();
    let labels = roles.chain(labels::serving(observed, group.as_ref())).collect();
    let updated = observed.set().map_or(0, |set| updated(observed, &set.spec_hash));
    Plan { labels, updated, next: AT_REST, ..Plan::default() }
}

/// The group as its nodes show it.
pub(crate) fn group<'a>(identity: &Identity, spec: &KvClusterSpec, observed: &'a Observed) -> Option<Group<'a>> {
    Group::seen(identity, observed, recovery::recovered_as(spec, &observed.status).as_ref())
}

impl Plan {
    /// Nothing to write, nothing under way.
    fn is_at_rest(&self) -> bool {
        !self.has_changes() && self.labels.is_empty() && self.leadership.is_none()
    }

    /// Besides the labels that say what the nodes do.
    fn has_changes(&self) -> bool {
        !self.ensure.is_empty()
            || !self.remove.is_empty()
            || !self.grow.is_empty()
            || self.replace_set
            || self.assignment.is_some()
            || !self.tune.is_empty()
            || self.directive.is_some()
            || self.progress.is_some()
    }
}

/// The first part that has something to do has the turn.
fn govern(case: Case<'_>, plan: &mut Plan) -> Step {
    let Case { desired, observed, group, roll, now_ms, .. } = case;
    let (recover, unrecovered) = recovery::plan(desired, observed, group).apart();
    let urgent = bootstrap::finish(observed, group).or(|| recover);
    if urgent.directive.is_some() {
        return urgent;
    }
    let led = leadership::plan(case, &mut plan.memory);
    plan.leadership = led.without_leader;
    let (lead, unled) = led.step.apart();
    if group.leader.is_none() {
        let mended = || rollout::mend(observed, roll, &mut plan.memory, now_ms);
        return lead.or(mended).or(|| unled).or(|| unrecovered);
    }
    lead.or(|| membership::plan(desired, observed, group))
        .or(|| settings(desired, group))
        .or(|| rollout::mend(observed, roll, &mut plan.memory, now_ms))
        .or(|| rollout::plan(case, &mut plan.memory))
        .or(|| unled)
        .or(|| membership::awaited(desired, observed, group))
}

/// What decides what apply does is state of the group: an entry changes it.
fn settings(desired: &Desired, group: &Group<'_>) -> Step {
    Step { directive: change_settings(desired, group), progress: None }
}

fn change_settings(desired: &Desired, group: &Group<'_>) -> Option<Directive> {
    let leader = group.leader?;
    let (present, wanted) = (leader.status.replica.settings, desired.settings);
    let history = (present.history_limit != wanted.history_limit).then_some(wanted.history_limit);
    let expiry = (present.dedup_expiry_seconds != wanted.dedup_expiry_seconds).then_some(wanted.dedup_expiry_seconds);
    let node = addressee(leader.pod).filter(|_| history.is_some() || expiry.is_some())?;
    let change = SettingsChange { history_limit: history, dedup_expiry_seconds: expiry, dedup_limit: None };
    Some(Directive::ChangeSettings { leader: node, change })
}

/// Nothing is written while something of ours is somebody else's.
fn ownership(observed: &Observed) -> Option<Progress> {
    let named = |former: bool| -> Vec<String> {
        let those = observed.foreign.iter().filter(|foreign| foreign.former == former);
        those.map(|foreign| format!("{} {}", foreign.kind, foreign.name)).collect()
    };
    let (former, foreign) = (named(true), named(false));
    if !foreign.is_empty() {
        let message = format!("{} belongs to somebody else: delete it or choose another name", foreign.join(", "));
        return Some(Progress::new(Reason::NameTaken, message));
    }
    let message = || format!("waiting for {} of a former cluster of this name to go", former.join(", "));
    (!former.is_empty()).then(|| Progress::new(Reason::WaitingForOldChildren, message()))
}

/// The spec's, or what the cluster was created with: an operator's new default restarts nobody.
fn image(desired: &Desired, observed: &Observed, draw: &Draw) -> String {
    let seen = || observed.set().map(|set| set.image).or_else(|| observed.status.image.clone());
    desired.spec.image.clone().or_else(seen).unwrap_or_else(|| draw.defaults.image.clone())
}

fn choices(
    desired: &Desired,
    observed: &Observed,
    group: Option<&Group<'_>>,
    draw: &Draw,
    image: String,
    claim_size: String,
) -> Choices {
    Choices {
        image,
        set_replicas: membership::set_replicas(desired, observed, group),
        claim_size,
        token: observed.token().unwrap_or_else(|| draw.token.clone()),
        pull_secrets: draw.defaults.pull_secrets.clone(),
        pod_monitors: observed.pod_monitors,
    }
}

fn compare(desired: &Desired, observed: &Observed, choices: &Choices, plan: &mut Plan) {
    let wanted = resources::children(desired, choices);
    let is_met = |child: &Child| observed.child(child.kind, &child.name).is_some_and(|seen| child.is_met_by(seen));
    let superfluous = observed.children.iter().map(|seen| (seen.kind, seen.name.clone()));
    let superfluous = superfluous.filter(|(kind, name)| !wanted.iter().any(|w| w.kind == *kind && w.name == *name));
    plan.remove = superfluous.collect();
    plan.ensure = wanted.into_iter().filter(|child| !is_met(child)).collect();
}

fn updated(observed: &Observed, spec_hash: &str) -> u32 {
    let updated = observed.pods.values().filter(|pod| pod.spec_hash.as_deref() == Some(spec_hash)).count();
    u32::try_from(updated).expect("a handful")
}

pub(crate) fn role(group: Option<&Group<'_>>, member: MemberId, leads: bool) -> Option<PodRole> {
    let group = group?;
    match () {
        () if leads => Some(PodRole::Leader),
        () if group.votes(member) => Some(PodRole::Follower),
        () => group.record(member).map(|_| PodRole::Learner),
    }
}

#[cfg(test)]
mod tests;
