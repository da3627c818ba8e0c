//! Events for transitions, shown by `kubectl describe`: what changed between two statuses, and which pods
//! a roll restarts. What to say is pure; an Event that cannot be written is logged and stops nothing.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder};

use crate::crd::{ConditionType, KvCluster, KvClusterStatus};

/// The API server refuses an Event with a longer note.
const NOTE_BYTES_MAX: usize = 1024;

/// What happened, in an Event's words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Happening {
    reason: String,
    note: String,
    action: &'static str,
    warning: bool,
    /// The pod that it is about. Events of one reason about different pods are counted apart.
    pod: Option<String>,
}

pub(crate) async fn publish(recorder: &Recorder, cluster: &KvCluster, old: &KvClusterStatus) {
    let new = cluster.status.clone().unwrap_or_default();
    for happening in transitions(old, &new) {
        tell(recorder, cluster, happening).await;
    }
}

/// Of each pod in a roll; no status shows it.
pub(crate) async fn restarted(recorder: &Recorder, cluster: &KvCluster, pod: &str) {
    let happening = Happening {
        reason: "PodRestarted".to_owned(),
        note: format!("{pod} is evicted, to start again with the settings of the spec"),
        action: "Restart",
        warning: false,
        pod: Some(pod.to_owned()),
    };
    tell(recorder, cluster, happening).await;
}

/// It has no status that could say so.
pub(crate) async fn unreadable(recorder: &Recorder, cluster: &impl Resource<DynamicType = ()>, why: &str) {
    let happening = Happening {
        reason: "Unreadable".to_owned(),
        note: format!("nothing is done for this KvCluster, which cannot be read: {why}"),
        action: "Read",
        warning: true,
        pod: None,
    };
    tell(recorder, cluster, happening).await;
}

async fn tell(recorder: &Recorder, cluster: &impl Resource<DynamicType = ()>, happening: Happening) {
    let Happening { reason, note, action, warning, pod } = happening;
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason,
        note: Some(cut(note)),
        action: action.to_owned(),
        secondary: pod.map(|pod| pod_reference(cluster, pod)),
    };
    if let Err(error) = recorder.publish(&event, &cluster.object_ref(&())).await {
        tracing::warn!(%error, "an Event could not be written");
    }
}

fn cut(mut note: String) -> String {
    note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
    note
}

fn pod_reference(cluster: &impl Resource, pod: String) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod),
        namespace: cluster.meta().namespace.clone(),
        ..ObjectReference::default()
    }
}

fn transitions(old: &KvClusterStatus, new: &KvClusterStatus) -> Vec<Happening> {
    let mut happenings = Vec::new();
    if new.leader.is_some() && new.leader != old.leader {
        let leader = new.leader.as_deref().unwrap_or_default();
        let note = match &old.leader {
            Some(former) => format!("{leader} leads after {former}"),
            None => format!("{leader} leads"),
        };
        happenings.push(Happening {
            reason: "LeaderChanged".to_owned(),
            note,
            action: "Lead",
            warning: false,
            pod: new.leader.clone(),
        });
    }
    // Without a leader nobody can say.
    if new.leader.is_some() {
        happenings.extend(membership(old, new));
    }
    for condition in &new.conditions {
        let before = old.conditions.iter().find(|before| before.type_ == condition.type_);
        let same = before.is_some_and(|b| b.status == condition.status && b.reason == condition.reason);
        // What was never otherwise is no transition.
        if same || (before.is_none() && condition.status != "True") {
            continue;
        }
        let note = format!("{} is {}: {}", condition.type_, condition.status, condition.message);
        let warning = is_bad(&condition.type_, &condition.status);
        happenings.push(Happening { reason: condition.reason.clone(), note, action: "Report", warning, pod: None });
    }
    happenings
}

/// Who became a voter, and who is none any more.
fn membership(old: &KvClusterStatus, new: &KvClusterStatus) -> impl Iterator<Item = Happening> {
    let voters = |status: &KvClusterStatus| -> BTreeSet<(String, Option<String>)> {
        let voters = status.members.iter().filter(|member| member.voter);
        voters.map(|member| (member.name.clone(), member.member_id.clone())).collect()
    };
    let (before, now) = (voters(old), voters(new));
    let told = |reason: &'static str, what: &'static str| {
        move |(name, member_id): &(String, Option<String>)| Happening {
            reason: reason.to_owned(),
            note: format!("{name} {what} (member {})", member_id.as_deref().unwrap_or("unknown")),
            action: "Report",
            warning: false,
            pod: Some(name.clone()),
        }
    };
    let left: Vec<Happening> = before.difference(&now).map(told("VoterRemoved", "votes no more")).collect();
    let joined: Vec<Happening> = now.difference(&before).map(told("VoterAdded", "votes from now on")).collect();
    left.into_iter().chain(joined)
}

fn is_bad(kind: &str, status: &str) -> bool {
    let good_when_true = [ConditionType::Available, ConditionType::QuorumHealthy];
    let bad_when_true = [ConditionType::Degraded, ConditionType::SpecInvalid];
    let among = |list: &[ConditionType]| list.iter().any(|condition| condition.as_str() == kind);
    (among(&good_when_true) && status != "True") || (among(&bad_when_true) && status == "True")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn status(leader: &str, conditions: &[(&str, &str, &str)]) -> KvClusterStatus {
        let condition = |(kind, status, reason): &(&str, &str, &str)| Condition {
            type_: (*kind).to_owned(),
            status: (*status).to_owned(),
            reason: (*reason).to_owned(),
            message: "why".to_owned(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        };
        KvClusterStatus {
            leader: Some(leader.to_owned()),
            conditions: conditions.iter().map(condition).collect(),
            ..KvClusterStatus::default()
        }
    }

    #[test]
    fn a_long_note_is_cut_between_two_characters() {
        assert_eq!(cut("n".to_owned()), "n");
        assert_eq!(cut(format!("n{}", "é".repeat(1000))), format!("n{}", "é".repeat(511)));
    }

    #[test]
    fn a_status_that_says_the_same_is_no_event() {
        let status = status("demo-0", &[("Available", "True", "LeaderConfirmed")]);
        assert_eq!(transitions(&status, &status), []);
    }

    #[test]
    fn a_voter_with_a_new_volume_is_one_that_left_and_one_that_joined() {
        let voters = |ids: &[&str]| {
            let member = |(ordinal, id): (usize, &&str)| crate::crd::MemberReport {
                name: format!("demo-{ordinal}"),
                member_id: Some((*id).to_owned()),
                voter: true,
                ..crate::crd::MemberReport::default()
            };
            KvClusterStatus { members: ids.iter().enumerate().map(member).collect(), ..status("demo-0", &[]) }
        };
        let notes = |old, new| -> Vec<String> { transitions(&old, &new).into_iter().map(|h| h.note).collect() };
        assert_eq!(
            notes(voters(&["a", "b"]), voters(&["a", "c"])),
            ["demo-1 votes no more (member b)", "demo-1 votes from now on (member c)"]
        );
        assert_eq!(notes(voters(&["a"]), voters(&["a"])), [""; 0]);
    }

    #[test]
    fn a_new_leader_and_a_lost_majority_are_told() {
        let old =
            status("demo-0", &[("Available", "True", "LeaderConfirmed"), ("Degraded", "False", "AllMembersFine")]);
        let new = status("demo-1", &[("Available", "False", "QuorumLost"), ("Degraded", "False", "AllMembersFine")]);
        let told: Vec<(String, bool)> = transitions(&old, &new).into_iter().map(|h| (h.note, h.warning)).collect();
        assert_eq!(
            told,
            [("demo-1 leads after demo-0".to_owned(), false), ("Available is False: why".to_owned(), true),]
        );
    }
}
