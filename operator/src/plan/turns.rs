//! Whose turn it is: the parts of a plan that move the group or its pods, in one order. The first that has something
//! to do has the turn, so that at most one thing is under way; who only waits lets the next one have it.

use super::{
    Assignment, Directive, Draw, Memory, Progress, bootstrap, leadership, live, membership, recovery, rollout,
};
use crate::crd::Reason;
use crate::group::{Group, Leader};
use crate::observed::Observed;
use crate::validate::Desired;

/// In the order of danger: what the group is, then who leads it, then its members, then restarts. A group is founded
/// after what does not run was restarted, since that needs every pod; why nothing is recovered is told last.
const TURNS: [fn(Case<'_>, &mut Memory) -> Step; 9] = [
    bootstrap::finish,
    recovery::plan,
    leadership::plan,
    membership::plan,
    live::change_settings,
    rollout::mend,
    rollout::plan,
    bootstrap::found,
    recovery::why_not,
];

/// What every part decides on.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) desired: &'a Desired,
    pub(super) observed: &'a Observed,
    /// None: no node that answers is a member of one.
    pub(super) group: Option<&'a Group<'a>>,
    pub(super) roll: &'a rollout::Outdated,
    /// Pods that there are to be.
    pub(super) set_replicas: u32,
    pub(super) draw: &'a Draw,
}

impl<'a> Case<'a> {
    /// The group and its leader, if somebody leads.
    pub(super) fn led(&self) -> Option<(&'a Group<'a>, Leader<'a>)> {
        let group = self.group?;
        Some((group, group.leader?))
    }
}

/// What a part of the plan comes to.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) directive: Option<Directive>,
    /// What the directive is good for, or what is waited for.
    pub(super) progress: Option<Progress>,
    /// What is waited for, told only when nothing is done and nothing else is told.
    pub(super) aside: Option<Progress>,
    pub(super) assignment: Option<Assignment>,
    /// Why nobody leads.
    pub(super) leadership: Option<Progress>,
}

impl Step {
    pub(super) fn does(directive: Directive, reason: Reason, message: impl Into<String>) -> Self {
        Self { directive: Some(directive), ..Self::waits(reason, message) }
    }

    pub(super) fn waits(reason: Reason, message: impl Into<String>) -> Self {
        Self { progress: Some(Progress::new(reason, message)), ..Self::default() }
    }

    pub(super) fn waits_aside(reason: Reason, message: impl Into<String>) -> Self {
        Self { aside: Some(Progress::new(reason, message)), ..Self::default() }
    }

    /// This one, which only waits, and the one whose turn is next. What is waited for first is told.
    fn then(self, next: Self) -> Self {
        let Self { directive, progress, aside, assignment, leadership } = next;
        Self {
            progress: if directive.is_some() { progress.or(self.progress) } else { self.progress.or(progress) },
            directive,
            aside: self.aside.or(aside),
            assignment: self.assignment.or(assignment),
            leadership: self.leadership.or(leadership),
        }
    }
}

/// What all parts together come to.
pub(super) fn take(case: Case<'_>, memory: &mut Memory) -> Step {
    let mut step = Step::default();
    for part in TURNS {
        step = step.then(part(case, memory));
        if step.directive.is_some() {
            return step;
        }
    }
    Step { progress: step.progress.or(step.aside), aside: None, ..step }
}
