//! What of a plan is held back: nearly all of it while the spec is paused, what is written while something of
//! ours is somebody else's. Who waits for that is told, and what is wrong with the group is told as ever.

use super::{AT_REST, Directive, Memory, Plan, Progress, SOON, labels};
use crate::crd::Reason;
use crate::observed::Observed;
use crate::validate::Desired;

/// `before`: what was remembered before the whole plan was made.
pub(super) fn hold_back(whole: Plan, desired: &Desired, observed: &Observed, before: &Memory) -> Plan {
    let (taken, paused) = (taken(observed), desired.spec.paused);
    if taken.is_none() && !paused {
        return whole;
    }
    // What has the names of our pods is not ours when it is a stranger's set that they belong to.
    let is_ours = taken.is_none() || observed.set().is_some();
    let goes_on = is_ours && !paused;
    let why = "spec.paused is set, and changes wait until it is unset";
    let waits = whole.has_changes().then(|| Progress::new(Reason::PausedBySpec, why));
    // A part that is new is held back or not, but not forgotten.
    let Plan {
        ensure: _,
        remove: _,
        grow: _,
        replace_set: _,
        labels,
        assignment: _,
        tune,
        directive,
        progress: _,
        leadership,
        image,
        updated,
        memory,
        next: _,
    } = whole;
    // Nobody is restarted: the template that is to be restarted with may not be written.
    let directive = directive.filter(|directive| goes_on && !matches!(directive, Directive::Restart { .. }));
    Plan {
        labels: labels.into_iter().filter(|relabel| is_ours && labels::is_of_nodes(relabel)).collect(),
        tune: if goes_on { tune } else { Vec::new() },
        directive,
        progress: taken.or(waits),
        leadership,
        image,
        updated,
        memory: if goes_on { memory } else { before.clone() },
        next: if paused { AT_REST } else { SOON },
        ..Plan::default()
    }
}

/// Nothing is written while something of ours is somebody else's.
fn taken(observed: &Observed) -> Option<Progress> {
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
