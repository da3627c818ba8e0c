//! Restarting pods whose settings are not those of the spec: one at a time, through the eviction API.
//! What does not run anyway first, whether or not anybody leads; then followers, most lagging first, the
//! leader last and only after a hand-over, and never while a voter is missing.

use super::{Case, Directive, Memory, Step};
use crate::crd::{Reason, UpdateStrategy};
use crate::group::{Group, Leader};
use crate::observed::{Observed, PodSeen};
use crate::validate::Desired;

/// A pod of which nothing says what it lacks may take this long to start: it is what a Deployment takes for stuck, too.
const STUCK_AFTER_MS: u64 = 600_000;

/// The pods that need a restart, by ordinal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outdated(Vec<u32>);

impl Outdated {
    pub(super) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn pods<'a>(&self, observed: &'a Observed) -> impl Iterator<Item = (u32, &'a PodSeen)> {
        self.0.iter().map(|ordinal| (*ordinal, &observed.pods[ordinal]))
    }

    fn progress(&self, pod: &PodSeen) -> String {
        format!("{} is being restarted; {} to go", pod.name, self.0.len())
    }
}

pub(super) fn outdated(observed: &Observed, spec_hash: &str) -> Outdated {
    let differs = |pod: &PodSeen| pod.spec_hash.as_deref() != Some(spec_hash);
    Outdated(observed.pods.iter().filter(|(_, pod)| differs(pod)).map(|(ordinal, _)| *ordinal).collect())
}

/// A pod that does not run is missed by nobody who does not miss it already, and its restart may be what a leader
/// waits for: the spec was wrong, and has been corrected. Silence alone says little, and must last, unless nobody has
/// ever led.
pub(super) fn mend(case: Case<'_>, memory: &mut Memory) -> Step {
    let Case { observed, roll, draw, .. } = case;
    let down = || roll.pods(observed).map(|(_, pod)| pod).filter(|pod| !pod.ready && !pod.terminating);
    let failed = down().find(|pod| pod.trouble.is_some());
    let silent = down().find(|pod| pod.status().is_none());
    let since = silent.map(|_| memory.silent_since_ms.unwrap_or(draw.now_ms));
    memory.silent_since_ms = since;
    let patience_ms = if observed.status.epoch.is_some() { STUCK_AFTER_MS } else { 0 };
    let silent = silent.filter(|_| since.is_some_and(|since| draw.now_ms >= since + patience_ms));
    failed.or(silent).map_or_else(Step::default, |pod| restart(pod, roll.progress(pod)))
}

pub(super) fn plan(case: Case<'_>, memory: &mut Memory) -> Step {
    let Some((group, leader)) = case.led() else { return Step::default() };
    let (mut step, now_ms) = (next(case, group, leader), case.draw.now_ms);
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

fn next(case: Case<'_>, group: &Group<'_>, leader: Leader<'_>) -> Step {
    let Case { desired, observed, roll, .. } = case;
    if roll.is_over() {
        return Step::default();
    }
    if let Some(why) = why_wait(case, group) {
        return Step::waits(if is_stuck(observed) { Reason::RolloutStuck } else { Reason::Rolling }, why);
    }
    let lag = |pod: &PodSeen| {
        pod.status().and_then(|status| group.record(status.replica.member_id)).map_or(u64::MAX, |record| record.lag)
    };
    let followers = roll.pods(observed).filter(|(ordinal, _)| *ordinal != leader.ordinal);
    match followers.max_by_key(|(ordinal, pod)| (lag(pod), *ordinal)) {
        Some((_, pod)) => restart(pod, roll.progress(pod)),
        None => last(desired, group, leader.pod, roll.progress(leader.pod)),
    }
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

/// Nobody is restarted while somebody is missing: that one might be needed. Nor while pods are added: the budget
/// counts them from the start, and has no room before they are ready.
fn why_wait(case: Case<'_>, group: &Group<'_>) -> Option<String> {
    let Case { desired, observed, set_replicas, .. } = case;
    let missing = group.missing();
    if !missing.is_empty() {
        return Some(format!("waiting until {} has caught up", missing.join(", ")));
    }
    let unready = observed.pods.values().filter(|pod| !pod.ready || pod.terminating);
    let to_come = (0..set_replicas).filter(|ordinal| !observed.pods.contains_key(ordinal));
    let to_come = to_come.map(|ordinal| desired.identity.pod(ordinal));
    let unready: Vec<String> = unready.map(|pod| pod.name.clone()).chain(to_come).collect();
    (!unready.is_empty()).then(|| format!("waiting until {} is ready", unready.join(", ")))
}

/// A pod that was restarted already does not come up.
fn is_stuck(observed: &Observed) -> bool {
    observed.pods.values().any(|pod| pod.trouble.is_some() && !pod.ready)
}
