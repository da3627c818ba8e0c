//! Who is told to lead. A directive only starts a campaign or a hand-over: a majority of the nodes
//! decides, so a late, repeated or wrong one costs no data. `spec.leader` is followed at once when it
//! changes; given back after a loss only to a node that has been steady for a while.

use kv_core::status::{NodeStatus, Role};

use super::{Case, Directive, Progress, Step};
use crate::crd::{Failover, Reason};
use crate::group::{Group, addressee};
use crate::observed::Observed;
use crate::validate::{Desired, Wish};

/// How long a wished leader must have been fit before leadership is given back to it; doubled each time
/// it is lost again, up to the second number.
const STEADY_MS: (u64, u64) = (60_000, 600_000);
/// Pause between two directives to lead: a hand-over takes a second at most, and is answered later.
const ASK_AGAIN_MS: u64 = 2_000;

/// What is remembered of a cluster between two plans. Lost with the process, which costs only time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The `spec.leader` that was seen last and made sense, once anything was seen.
    wish: Option<Wish>,
    /// The wish is new: it has not led yet.
    is_new: bool,
    /// Since when the wished leader has been fit without leading.
    steady_since_ms: Option<u64>,
    /// How long it must be; 0: as long as the first time.
    patience_ms: u64,
    /// It was told to lead after it had been steady, and has not led since.
    given_back: bool,
    asked_at_ms: Option<u64>,
    /// Directives since anybody led: the candidates take turns.
    asked: u32,
    /// Since when a roll has waited for the same pod.
    pub(super) roll_waits_since_ms: Option<u64>,
    /// Since when some pod that needs a restart has said nothing, and was not ready.
    pub(super) silent_since_ms: Option<u64>,
}

/// What it waits for is told aside: nobody else waits for that.
pub(super) fn plan(case: Case<'_>, memory: &mut Memory) -> Step {
    let Some(group) = case.group else { return Step::default() };
    let now_ms = case.draw.now_ms;
    let step = match group.leader {
        Some(leader) => {
            memory.asked = 0;
            with_leader(case, group, leader.ordinal, memory)
        }
        None => without_leader(case, group, memory),
    };
    let asked_just_now = memory.asked_at_ms.is_some_and(|at| now_ms < at + ASK_AGAIN_MS);
    if step.directive.is_none() || asked_just_now {
        return Step { directive: None, progress: None, aside: step.progress, ..step };
    }
    memory.asked_at_ms = Some(now_ms);
    memory.asked += 1;
    step
}

impl Memory {
    /// A first look is no change, unless the group has never been led: then the wish is the first assignment. One
    /// that names no pod leaves the last one that did.
    pub(super) fn note_wish(&mut self, desired: &Desired, observed: &Observed) {
        let wish = match (desired.leader, self.wish) {
            (Wish::NoPod, Some(Wish::Pod(known))) if known >= desired.replicas => Wish::NoPod,
            (Wish::NoPod, Some(known)) => known,
            (wish, _) => wish,
        };
        let changed = match self.wish {
            Some(known) => known != wish,
            None => {
                observed.status.leader.is_none() || observed.status.observed_generation != Some(observed.generation)
            }
        };
        if changed {
            *self = Self { is_new: matches!(wish, Wish::Pod(_)), asked_at_ms: None, ..Self::default() };
        }
        self.wish = Some(wish);
    }

    fn wish(&self) -> Wish {
        self.wish.expect("a plan notes it first")
    }

    /// Whether the wished leader has been fit for long enough.
    fn is_steady(&mut self, fit: bool, now_ms: u64) -> bool {
        if !fit {
            self.steady_since_ms = None;
            return false;
        }
        let since = *self.steady_since_ms.get_or_insert(now_ms);
        now_ms >= since + self.patience_ms.max(STEADY_MS.0)
    }

    /// Lost once more, it waits longer. A hand-over that came to nothing is no loss.
    fn note_led(&mut self) {
        if std::mem::take(&mut self.given_back) {
            self.patience_ms = (self.patience_ms.max(STEADY_MS.0) * 2).min(STEADY_MS.1);
        }
        (self.is_new, self.steady_since_ms) = (false, None);
    }
}

/// Somebody leads: whether another should.
fn with_leader(case: Case<'_>, group: &Group<'_>, leader: u32, memory: &mut Memory) -> Step {
    let Case { desired, observed, .. } = case;
    let wish = memory.wish();
    if wish == Wish::Pod(leader) {
        memory.note_led();
    }
    if observed.pods[&leader].cordoned
        && desired.spec.failover == Failover::Automatic
        && let Some(node) = group.successor(|_| true)
    {
        let message = format!("{} takes over: the host of the leader is being drained", node.pod);
        return Step::does(Directive::Lead { node, why: "drain" }, Reason::SwitchingOver, message);
    }
    match wish {
        Wish::Pod(wished) if wished != leader => towards(case, group, wished, memory),
        _ => Step::default(),
    }
}

/// Leadership to the wished leader, by transfer: its target is picked before the old one stops.
fn towards(case: Case<'_>, group: &Group<'_>, wished: u32, memory: &mut Memory) -> Step {
    let Case { desired, observed, roll, draw, .. } = case;
    let name = desired.identity.pod(wished);
    let pod = observed.pods.get(&wished);
    let fit = pod.filter(|pod| {
        let fit = pod
            .status()
            .is_some_and(|status| group.votes(status.replica.member_id) && group.is_fit(status.replica.member_id));
        fit && pod.ready && !pod.terminating
    });
    let steady = memory.is_steady(fit.is_some_and(|pod| !pod.cordoned) && roll.is_over(), draw.now_ms);
    let Some(node) = fit.and_then(addressee) else {
        let message = format!("{name} is to lead, but it is not a ready voter that has caught up");
        return if memory.is_new { Step::waits(Reason::SwitchingOver, message) } else { Step::default() };
    };
    if !memory.is_new && !steady {
        return Step::default();
    }
    if !memory.is_new {
        (memory.given_back, memory.steady_since_ms) = (true, None);
    }
    let message = format!("leadership moves to {name}");
    Step::does(Directive::Lead { node, why: "spec.leader" }, Reason::SwitchingOver, message)
}

/// Nobody leads. With automatic failover the nodes see to it by themselves.
fn without_leader(case: Case<'_>, group: &Group<'_>, memory: &Memory) -> Step {
    let desired = case.desired;
    let step = match (desired.spec.failover, memory.wish()) {
        // The first assignment; after a loss they elect.
        (Failover::Automatic, Wish::Pod(wished)) if memory.is_new => only(case, group, wished).unwrap_or_default(),
        (Failover::Automatic, _) => Step::default(),
        (Failover::Manual, Wish::Pod(wished)) => ordered(case, group, wished, memory),
        (Failover::Manual, Wish::NoPod) => {
            let why = "spec.leader names no pod of this cluster, and nobody is told to lead";
            Step { leadership: Some(manual_leader_down(desired, why)), ..Step::default() }
        }
        (Failover::Manual, Wish::Anybody) => most_advanced(desired, group, memory),
    };
    let nobody = || Progress::new(Reason::NoLeader, "no node leads with a majority behind it");
    Step { leadership: Some(step.leadership.unwrap_or_else(nobody)), ..step }
}

/// The manual leader, and nobody else, however long it takes.
fn ordered(case: Case<'_>, group: &Group<'_>, wished: u32, memory: &Memory) -> Step {
    let name = case.desired.identity.pod(wished);
    let (told, why) = match (only(case, group, wished), ahead_of(case, group, wished)) {
        (None, _) => (Step::default(), format!("{name} is the manual leader and cannot lead")),
        // It was told, and the others did not elect it.
        (Some(told), Some(ahead)) if memory.asked > 0 => {
            (told, format!("{name} is the manual leader, and {ahead} holds entries that it lacks"))
        }
        (Some(told), _) => return told,
    };
    Step { leadership: Some(manual_leader_down(case.desired, &why)), ..told }
}

/// Only the wished leader is directed; None: it cannot be.
fn only(case: Case<'_>, group: &Group<'_>, wished: u32) -> Option<Step> {
    let Case { desired, observed, .. } = case;
    let pod = observed.pods.get(&wished)?;
    let status = pod.status().filter(|status| group.votes(status.replica.member_id))?;
    if status.replica.quarantined.is_some() {
        return None;
    }
    let (node, message) = (addressee(pod)?, format!("{} is told to lead", desired.identity.pod(wished)));
    Some(match status.replica.role {
        // A campaign that is under way needs no second directive.
        Role::Candidate => Step::waits(Reason::SwitchingOver, message),
        _ => Step::does(Directive::Lead { node, why: "spec.leader" }, Reason::SwitchingOver, message),
    })
}

/// A voter that holds more than the wished leader does. Who holds less may still be elected, if the rest of the
/// other was never acknowledged: it is told to lead all the same.
fn ahead_of(case: Case<'_>, group: &Group<'_>, wished: u32) -> Option<String> {
    let held = case.observed.pods.get(&wished)?.status()?.replica.last_id;
    let others = group.answering().filter(|(_, status)| status.replica.quarantined.is_none());
    let most = others.max_by_key(|(_, status)| status.replica.durable_id)?;
    let pod = most.0.pod.filter(|_| most.1.replica.durable_id > held)?;
    Some(pod.name.clone())
}

fn manual_leader_down(desired: &Desired, why: &str) -> Progress {
    let (cluster, namespace) = (&desired.identity.name, &desired.identity.namespace);
    let message = format!(
        "{why}; to let another lead: kubectl patch kvcluster {cluster} \
         --namespace {namespace} --type merge --patch '{{\"spec\":{{\"leader\":\"<pod>\"}}}}'"
    );
    Progress::new(Reason::ManualLeaderDown, message)
}

/// The most advanced voter, once a majority answers and none of it has heard a leader for the time-out.
/// The nodes refuse whoever is behind, so the next candidate is the next one's turn.
fn most_advanced(desired: &Desired, group: &Group<'_>, memory: &Memory) -> Step {
    let timeout_ms = desired.live.heartbeat_timeout_ms;
    let hears = |status: &NodeStatus| status.replica.leader_heard_ms_ago.is_some_and(|ago| ago < timeout_ms);
    if !group.majority_answers() || group.answering().any(|(_, status)| hears(status)) {
        return Step::default();
    }
    let mut candidates: Vec<_> = group.answering().filter(|(_, s)| s.replica.quarantined.is_none()).collect();
    candidates.sort_by_key(|(_, status)| std::cmp::Reverse((status.replica.durable_id, status.replica.epoch)));
    let turn = memory.asked as usize % candidates.len().max(1);
    let Some(node) = candidates.get(turn).and_then(|(voter, _)| addressee(voter.pod?)) else { return Step::default() };
    let message = format!("{} is told to lead: nobody does, and it holds the most", node.pod);
    Step::does(Directive::Lead { node, why: "no leader" }, Reason::SwitchingOver, message)
}
