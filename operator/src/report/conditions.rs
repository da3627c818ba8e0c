//! The conditions: each a function of the facts. Unknown where nobody could say.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kv_core::quorum::{CAUGHT_UP_ENTRIES, majority};
use kv_core::status::DiskStatus;

use crate::apply::Applied;
use crate::crd::{ConditionType, KvClusterSpec, Reason};
use crate::error::Error;
use crate::group::{Group, Voter};
use crate::names::Identity;
use crate::observed::{ClaimSeen, Observed, PodSeen, Trouble};
use crate::plan::Progress;
use crate::validate::{self, Problem};

/// A volume with less room than this is nearly full, in percent of what its node uses and has room for.
const NEARLY_FULL_PERCENT: u64 = 10;
/// Longest message, in characters; Kubernetes allows 32,768.
const MESSAGE_CHARACTERS_MAX: usize = 1000;

/// What conditions are made from.
#[derive(Debug)]
pub struct Facts<'a> {
    pub identity: &'a Identity,
    pub spec: &'a KvClusterSpec,
    pub observed: &'a Observed,
    pub group: Option<&'a Group<'a>>,
    pub applied: &'a Applied,
    pub problems: &'a [Problem],
}

/// True, False or Unknown, and why.
struct Finding {
    status: &'static str,
    reason: Reason,
    message: String,
}

fn is(reason: Reason, message: impl Into<String>) -> Finding {
    Finding { status: "True", reason, message: message.into() }
}

fn is_not(reason: Reason, message: impl Into<String>) -> Finding {
    Finding { status: "False", reason, message: message.into() }
}

fn unknown(reason: Reason, message: impl Into<String>) -> Finding {
    Finding { status: "Unknown", reason, message: message.into() }
}

/// A transition's time stays while its status does.
pub(super) fn conditions(facts: &Facts<'_>, old: &[Condition], now: &Time) -> Vec<Condition> {
    let all = ConditionType::ALL.iter().map(|kind| {
        let Finding { status, reason, message } = match kind {
            ConditionType::Available => available(facts),
            ConditionType::QuorumHealthy => quorum_healthy(facts),
            ConditionType::Progressing => progressing(facts),
            ConditionType::Degraded => degraded(facts),
            ConditionType::Paused => paused(facts),
            ConditionType::SpecInvalid => spec_invalid(facts),
        };
        let before = old.iter().find(|condition| condition.type_ == kind.as_str() && condition.status == status);
        Condition {
            type_: kind.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.as_str().to_owned(),
            message: message.chars().take(MESSAGE_CHARACTERS_MAX).collect(),
            last_transition_time: before.map_or(now, |condition| &condition.last_transition_time).clone(),
            observed_generation: facts.applied.cluster.metadata.generation,
        }
    });
    all.collect()
}

fn available(facts: &Facts<'_>) -> Finding {
    let Some(group) = facts.group else {
        // What answered before and does not now may be well.
        let known = facts.observed.status.epoch.is_some();
        let why = why_no_group(facts);
        return if known { unknown(Reason::WaitingForMembers, why) } else { is_not(Reason::WaitingForMembers, why) };
    };
    if let Some(leader) = group.leader {
        return match facts.observed.pods.values().any(|pod| pod.ready) {
            true => is(Reason::LeaderConfirmed, format!("{} leads, and a majority confirms it", leader.pod.name)),
            false => is_not(Reason::WaitingForMembers, "no pod is ready yet"),
        };
    }
    let (answering, needed) = (group.answering().count(), majority(group.voters.len()));
    let count = format!("{answering} of {} voters answer, {needed} are needed", group.voters.len());
    match &facts.applied.leadership {
        Some(Progress { reason: Reason::ManualLeaderDown, message }) => {
            is_not(Reason::ManualLeaderDown, message.clone())
        }
        _ if answering >= needed => is_not(Reason::NoLeader, "no node leads with a majority behind it"),
        _ if gone(facts, group) > group.voters.len() - needed => is_not(Reason::QuorumLost, count),
        _ => unknown(Reason::WaitingForMembers, count),
    }
}

/// Voters that certainly do not run: no pod, one that cannot, or one that says that it has another volume.
fn gone(facts: &Facts<'_>, group: &Group<'_>) -> usize {
    let is_gone = |voter: &&Voter<'_>| {
        let pod = voter.ordinal.and_then(|ordinal| facts.observed.pods.get(&ordinal));
        let is_another = |pod: &PodSeen| pod.status().is_some_and(|s| s.replica.member_id != voter.info.member_id);
        pod.is_none_or(|pod| (pod.trouble.is_some() && !pod.ready) || is_another(pod))
    };
    group.voters.iter().filter(is_gone).count()
}

fn why_no_group(facts: &Facts<'_>) -> String {
    let progress = facts.applied.progress.as_ref().map(|progress| progress.message.clone());
    let trouble = facts.observed.pods.values().find_map(|pod| Some(format!("{}: {}", pod.name, pod.trouble.as_ref()?)));
    let problem = facts.problems.first().map(|problem| problem.message.clone());
    problem.or(trouble).or(progress).unwrap_or_else(|| "no node answers".to_owned())
}

fn quorum_healthy(facts: &Facts<'_>) -> Finding {
    let Some(group) = facts.group.filter(|group| group.leader.is_some()) else {
        return unknown(Reason::MembersMissing, "nobody leads who could say");
    };
    let missing = group.missing();
    if !missing.is_empty() {
        return is_not(Reason::MembersMissing, format!("missing or behind: {}", missing.join(", ")));
    }
    match group.voters.len() {
        voters @ (1 | 2) => is_not(Reason::NoVoterCanBeLost, format!("{voters} of {voters} voters are needed")),
        voters => is(Reason::AllVotersReachable, format!("all {voters} voters are reachable and caught up")),
    }
}

fn progressing(facts: &Facts<'_>) -> Finding {
    match (&facts.applied.progress, &facts.applied.error) {
        (Some(Progress { reason: Reason::PausedBySpec, message }), None) => {
            is_not(Reason::PausedBySpec, message.clone())
        }
        (Some(Progress { reason, message }), Some(error)) => is(*reason, format!("{message}; {error}")),
        (Some(Progress { reason, message }), None) => is(*reason, message.clone()),
        (None, Some(error)) => is(Reason::Retrying, error.to_string()),
        (None, None) => is_not(Reason::Stable, "nothing is to be done"),
    }
}

fn degraded(facts: &Facts<'_>) -> Finding {
    let unavailable = of_pods(facts, |pod| volume_unavailable(facts, pod));
    let corrupt = of_pods(facts, |pod| {
        let status = pod.status()?;
        // What was repaired is in the node's own report.
        let files = status.corruption.unrepaired.len();
        let quarantined = status.replica.quarantined.as_ref().map(|why| format!("quarantined: {why}"));
        quarantined.or_else(|| (files > 0).then(|| format!("{files} files are damaged and not repaired yet")))
    });
    let full = of_pods(facts, |pod| nearly_full(&pod.status()?.disk));
    let lagging = lagging(facts);
    let found = [
        (Reason::VolumeUnavailable, unavailable),
        (Reason::CorruptionFound, corrupt),
        (Reason::DiskNearlyFull, full),
        (Reason::MemberLagging, lagging),
    ];
    let first = found.into_iter().find(|(_, places)| !places.is_empty());
    first.map_or_else(
        || is_not(Reason::AllMembersFine, "no member that answers is behind, damaged or short of space"),
        |(reason, places)| is(reason, places.join("; ")),
    )
}

/// The pod cannot run where its volume is, or has none.
fn volume_unavailable(facts: &Facts<'_>, pod: &PodSeen) -> Option<String> {
    let trouble = pod.trouble.as_ref().filter(|trouble| trouble.is_about_its_volume())?;
    let (Identity { namespace, .. }, name) = (facts.identity, &pod.name);
    let ordinal = facts.identity.ordinal(name)?;
    let claim = facts.identity.claim(ordinal);
    let advice = match facts.observed.claims.get(&ordinal).filter(|claim| claim.capacity.is_some()) {
        None => format!("kubectl describe pvc {claim} --namespace {namespace} says what {claim} waits for"),
        Some(seen) if may_be_lost(seen, trouble) => format!(
            "if its volume is lost: kubectl delete pvc {claim} --namespace {namespace} --wait=false; \
             kubectl delete pod {name} --namespace {namespace}"
        ),
        Some(_) => "its volume is not known to be lost: a host that reaches it has to take the pod".to_owned(),
    };
    Some(format!("{trouble} ({advice})"))
}

/// Whoever follows advice to delete a claim must not lose a volume that only waits for room on its host.
fn may_be_lost(claim: &ClaimSeen, trouble: &Trouble) -> bool {
    match &claim.host {
        Some(host) => host.is_gone && trouble.has_its_volume_on_no_host_that_takes_pods(),
        None => trouble.has_its_volume_nowhere(),
    }
}

/// Short of space on the volume, or below its node's own limit.
fn nearly_full(disk: &DiskStatus) -> Option<String> {
    let below_limit = disk.limit_bytes.map(|limit| limit.saturating_sub(disk.used_bytes));
    let room = disk.available_bytes.into_iter().chain(below_limit).min()?;
    let nearly = room < (disk.used_bytes + room) / 100 * NEARLY_FULL_PERCENT;
    (disk.full || nearly).then(|| format!("{} MiB can be written yet; a larger spec.storage.size helps", room >> 20))
}

/// By the leader's records: a member that does not answer falls behind, too.
fn lagging(facts: &Facts<'_>) -> Vec<String> {
    let records =
        facts.group.iter().flat_map(|group| group.voters.iter().filter_map(|voter| group.record(voter.info.member_id)));
    let behind = records.filter(|record| record.lag > CAUGHT_UP_ENTRIES);
    behind.map(|record| format!("{}: {} entries behind", record.name, record.lag)).collect()
}

fn of_pods(facts: &Facts<'_>, say: impl Fn(&PodSeen) -> Option<String>) -> Vec<String> {
    facts.observed.pods.values().filter_map(|pod| Some(format!("{}: {}", pod.name, say(pod)?))).collect()
}

fn paused(facts: &Facts<'_>) -> Finding {
    if facts.spec.paused {
        is(Reason::PausedBySpec, "spec.paused is set: nothing is changed until it is unset")
    } else {
        is_not(Reason::NotPaused, "")
    }
}

fn spec_invalid(facts: &Facts<'_>) -> Finding {
    if let Some(first) = facts.problems.first() {
        let messages: Vec<&str> = facts.problems.iter().map(|problem| problem.message.as_str()).collect();
        let names_only = facts.problems.iter().all(|problem| problem.reason == Reason::UnknownLeader);
        let goes_on = if names_only { "the rest of the spec is carried out" } else { "what ran before goes on" };
        return is(first.reason, format!("{}; {goes_on}", messages.join("; ")));
    }
    match (&facts.applied.progress, &facts.applied.error) {
        (Some(Progress { reason: Reason::NameTaken, message }), _) => is(Reason::NameTaken, message.clone()),
        (_, Some(error @ Error::CannotGrow { .. })) => is(Reason::StorageCannotGrow, error.to_string()),
        (_, Some(error @ Error::Invalid { .. })) => is(Reason::BadValue, error.to_string()),
        _ => match validate::warning(facts.spec) {
            Some(warning) => is_not(Reason::EvenReplicas, warning),
            None => is_not(Reason::Valid, without_kind(facts)),
        },
    }
}

/// What is asked for where it cannot be made.
fn without_kind(facts: &Facts<'_>) -> &'static str {
    match facts.spec.monitoring.pod_monitor && !facts.observed.pod_monitors {
        true => {
            "spec.monitoring.podMonitor: the kind PodMonitor is not installed, and nothing is made of it until it is"
        }
        false => "",
    }
}
