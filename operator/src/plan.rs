//! What to do next: a pure function of what is desired, what was seen and what is remembered. At most one
//! action that disturbs anybody in each plan; the next one is decided on what is seen after it. Never
//! sees a Kubernetes client; a plan for a cluster at rest is empty.
//!
//! In reading order: `vocabulary`, what a plan can say; this file, which puts one together; `turns`, the order of the
//! parts of which one at a time has something done; each of these; `hold`, what is held back in the end.

mod bootstrap;
mod hold;
mod labels;
mod leadership;
mod live;
mod membership;
mod recovery;
mod rollout;
#[cfg(test)]
pub(crate) mod scene;
mod turns;
mod vocabulary;
mod volumes;

use std::time::Duration;

use crate::crd::KvClusterSpec;
use crate::group::Group;
use crate::names::Identity;
use crate::observed::Observed;
use crate::resources::{Child, Choices, Kind, children, spec_hash};
use crate::validate::Desired;

pub use leadership::Memory;
pub use live::NodeTuning;
use turns::{Case, Step};
pub use vocabulary::{Assignment, Defaults, Directive, Draw, Founder, Growth, Labelled, Plan, Progress, Relabel};

/// How soon to look again while something is under way.
const SOON: Duration = Duration::from_secs(1);
/// How soon to look again at a cluster at rest: its status must be true within 10 s.
pub(crate) const AT_REST: Duration = Duration::from_secs(5);

/// The plan for a spec that makes sense.
pub fn plan(desired: &Desired, observed: &Observed, memory: &Memory, draw: &Draw) -> Plan {
    hold::hold_back(whole(desired, observed, memory, draw), desired, observed, memory)
}

/// What is to be done if nothing keeps it from being done.
fn whole(desired: &Desired, observed: &Observed, memory: &Memory, draw: &Draw) -> Plan {
    let group = group(&desired.identity, &desired.spec, observed);
    let group = group.as_ref();
    let image = image(desired, observed, draw);
    let spec_hash = spec_hash(desired, &image);
    let volumes = volumes::plan(desired, observed);
    let choices = Choices {
        image: image.clone(),
        set_replicas: membership::set_replicas(desired, observed, group),
        claim_size: volumes.claim_size,
        token: observed.token().unwrap_or_else(|| draw.token.clone()),
        pull_secrets: draw.defaults.pull_secrets.clone(),
        pod_monitors: observed.pod_monitors,
    };
    let (ensure, remove) = compare(children(desired, &choices), observed);
    let mut memory = memory.clone();
    memory.note_wish(desired, observed);
    let roll = rollout::outdated(observed, &spec_hash);
    let case = Case { desired, observed, group, roll: &roll, set_replicas: choices.set_replicas, draw };
    let Step { directive, progress, aside: _, assignment, leadership } = turns::take(case, &mut memory);
    // A pod that goes while there is no set does not come back.
    let has_set = observed.set().is_some() && !volumes.replace_set;
    let mut plan = Plan {
        ensure,
        remove,
        grow: volumes.grow,
        replace_set: volumes.replace_set,
        labels: labels::of_nodes(observed, group).chain(labels::edited(observed)).collect(),
        assignment,
        tune: group.map(|group| live::plan(desired, observed, group)).unwrap_or_default(),
        directive: directive.filter(|directive| has_set || !matches!(directive, Directive::Restart { .. })),
        progress: progress.or(volumes.progress),
        leadership,
        image,
        updated: updated(observed, &spec_hash),
        memory,
        next: SOON,
    };
    if plan.is_at_rest() {
        plan.next = AT_REST;
    }
    plan
}

/// What may always be done, whatever the spec says: the labels that say what the nodes do. The pods that count as
/// updated are those with the settings of the last spec that made sense.
pub fn look(identity: &Identity, spec: &KvClusterSpec, observed: &Observed, memory: &Memory) -> Plan {
    Plan {
        labels: labels::of_nodes(observed, group(identity, spec, observed).as_ref()).collect(),
        updated: observed.set().map_or(0, |set| updated(observed, &set.spec_hash)),
        memory: memory.clone(),
        next: AT_REST,
        ..Plan::default()
    }
}

/// The group as its nodes show it.
pub(crate) fn group<'a>(identity: &Identity, spec: &KvClusterSpec, observed: &'a Observed) -> Option<Group<'a>> {
    Group::seen(identity, observed, recovery::recovered_as(spec, &observed.status).as_ref())
}

/// The spec's, or what the cluster was created with: an operator's new default restarts nobody.
fn image(desired: &Desired, observed: &Observed, draw: &Draw) -> String {
    let seen = || observed.set().map(|set| set.image).or_else(|| observed.status.image.clone());
    desired.spec.image.clone().or_else(seen).unwrap_or_else(|| draw.defaults.image.clone())
}

/// What is not as it should be, and what should not be.
fn compare(wanted: Vec<Child>, observed: &Observed) -> (Vec<Child>, Vec<(Kind, String)>) {
    let is_wanted = |seen: &&Child| wanted.iter().any(|child| child.kind == seen.kind && child.name == seen.name);
    let superfluous = observed.children.iter().filter(|seen| !is_wanted(seen));
    let remove = superfluous.map(|seen| (seen.kind, seen.name.clone())).collect();
    let is_met = |child: &Child| observed.child(child.kind, &child.name).is_some_and(|seen| child.is_met_by(seen));
    (wanted.into_iter().filter(|child| !is_met(child)).collect(), remove)
}

fn updated(observed: &Observed, spec_hash: &str) -> u32 {
    let updated = observed.pods.values().filter(|pod| pod.spec_hash.as_deref() == Some(spec_hash)).count();
    u32::try_from(updated).expect("a handful")
}

#[cfg(test)]
mod tests;
