//! Restarting pods whose settings are not those of the spec: one at a time, through the eviction API.
//! What does not run anyway first, then followers, most lagging first, the leader last and only after a
//! hand-over. Never while a voter is missing.

use crate::crd::{Reason, UpdateStrategy};
use crate::group::Group;
use crate::observed::{Observed, PodSeen};
use crate::validate::Desired;

use super::{Directive, Memory, Step};

/// A pod that was restarted, and nothing says what it lacks, may take this long to be back: it is what a Deployment
/// takes for stuck, too.
const STUCK_AFTER_MS: u64 = 600_000;

/// The pods that need a restart, by ordinal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outdated(Vec<u32>);

impl Outdated {
    pub(super) fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

pub(super) fn outdated(observed: &Observed, spec_hash: &str) -> Outdated {
    let differs = |pod: &PodSeen| pod.spec_hash.as_deref() != Some(spec_hash);
    Outdated(observed.pods.iter().filter(|(_, pod)| differs(pod)).map(|(ordinal, _)| *ordinal).collect())
}

pub(super) fn plan(
    desired: &Desired,
    observed: &Observed,
    group: &Group<'_>,
    roll: &Outdated,
    memory: &mut Memory,
    now_ms: u64,
) -> Step {
    let mut step = next(desired, observed, group, roll);
    let Some(progress) = step.progress.as_mut().filter(|_| step.directive.is_none()) else {
        memory.roll_waits_since_ms = None;
        return step;
    };
    let since = *memory.roll_waits_since_ms.get_or_insert(now_ms);
    if progress.reason == Reason::Rolling && now_ms >= since + STUCK_AFTER_MS {
        progress.reason = Reason::RolloutStuck;
        progress.message = format!("{}, for over {} min", progress.message, (now_ms - since) / 60_000);
    }
    step
}

fn next(desired: &Desired, observed: &Observed, group: &Group<'_>, roll: &Outdated) -> Step {
    let Some(leader) = group.leader.filter(|_| !roll.is_over()) else { return Step::default() };
    let left = roll.0.len();
    let rolling = |pod: &str| format!("{pod} is being restarted; {left} to go");
    let pods = || roll.0.iter().map(|ordinal| (*ordinal, &observed.pods[ordinal]));
    if let Some((_, pod)) = pods().find(|(_, pod)| pod.trouble.is_some() && !pod.ready && !pod.terminating) {
        return restart(pod, rolling(&pod.name));
    }
    if let Some(why) = why_wait(observed, group) {
        return Step::waits(if is_stuck(observed) { Reason::RolloutStuck } else { Reason::Rolling }, why);
    }
    let lag = |pod: &PodSeen| {
        pod.status().and_then(|status| group.record(status.replica.member_id)).map_or(u64::MAX, |record| record.lag)
    };
    if let Some((_, pod)) =
        pods().filter(|(ordinal, _)| *ordinal != leader.ordinal).max_by_key(|(o, pod)| (lag(pod), *o))
    {
        return restart(pod, rolling(&pod.name));
    }
    last(desired, group, leader.pod, rolling(&leader.pod.name))
}

/// Only the leader is left.
fn last(desired: &Desired, group: &Group<'_>, leader: &PodSeen, rolling: String) -> Step {
    if group.voters.len() == 1 {
        return restart(leader, rolling);
    }
    let name = &leader.name;
    if desired.spec.update_strategy == UpdateStrategy::Supervised {
        let message = format!("{name} leads and still runs with the old settings: set spec.leader to another pod");
        return Step::waits(Reason::WaitingForSwitchover, message);
    }
    match group.successor(|_| true) {
        Some(node) => {
            let message = format!("{} takes over from {name}, which is to be restarted", node.pod);
            Step::does(Directive::Lead { node, why: "rollout" }, Reason::Rolling, message)
        }
        None => Step::waits(Reason::RolloutStuck, format!("{name} leads, and nobody is fit to take over")),
    }
}

fn restart(pod: &PodSeen, message: String) -> Step {
    let directive = Directive::Restart { pod: pod.name.clone(), uid: pod.uid.clone() };
    Step::does(directive, Reason::Rolling, message)
}

/// Nobody is restarted while somebody is missing: that one might be needed.
fn why_wait(observed: &Observed, group: &Group<'_>) -> Option<String> {
    let missing = group.missing();
    if !missing.is_empty() {
        return Some(format!("waiting until {} has caught up", missing.join(", ")));
    }
    let unready = observed.pods.values().filter(|pod| !pod.ready || pod.terminating);
    let unready: Vec<&str> = unready.map(|pod| pod.name.as_str()).collect();
    (!unready.is_empty()).then(|| format!("waiting until {} is ready", unready.join(", ")))
}

/// A pod that was restarted already does not come up.
fn is_stuck(observed: &Observed) -> bool {
    observed.pods.values().any(|pod| pod.trouble.is_some() && !pod.ready)
}
