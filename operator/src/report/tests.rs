//! Statuses of clusters in some state.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::crd::{ConditionType, Reason};
use crate::observed::{Answer, Trouble, VolumeHost};
use crate::plan::scene::{Scene, crashes};
use crate::validate::tests::cluster;

const SPEC: &str = "{storage: {size: 1Gi}}";

fn now() -> Time {
    Time(Timestamp::UNIX_EPOCH)
}

/// The status after the plan of the scene was carried out.
fn reported(scene: &mut Scene, spec: &str) -> KvClusterStatus {
    let plan = scene.plan();
    let applied = Applied {
        cluster: KvCluster { status: Some(scene.observed.status.clone()), ..cluster(spec) },
        progress: plan.progress,
        leadership: plan.leadership,
        image: plan.image,
        updated: plan.updated,
        memory: plan.memory,
        switched: None,
        restarted: None,
        error: None,
    };
    status(&scene.desired.identity, &scene.observed, &applied, &[], &now())
}

#[track_caller]
fn assert_condition(status: &KvClusterStatus, kind: ConditionType, value: &str, reason: Reason) {
    let condition: &Condition = status.conditions.iter().find(|c| c.type_ == kind.as_str()).unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), (value, reason.as_str()), "{condition:?}");
}

#[test]
fn a_cluster_at_rest_is_available_and_stable() {
    let status = reported(&mut Scene::led(SPEC, 3, 1), SPEC);
    assert_eq!((status.leader.as_deref(), status.epoch, status.ready_replicas), (Some("demo-1"), Some(3), 3));
    assert_eq!(status.followers, ["demo-0", "demo-2"]);
    assert_condition(&status, ConditionType::Available, "True", Reason::LeaderConfirmed);
    assert_condition(&status, ConditionType::QuorumHealthy, "True", Reason::AllVotersReachable);
    assert_condition(&status, ConditionType::Progressing, "False", Reason::Stable);
    assert_condition(&status, ConditionType::Degraded, "False", Reason::AllMembersFine);
}

#[test]
fn a_pause_that_something_waits_for_is_not_called_stable() {
    let paused = "{paused: true, replicas: 5, storage: {size: 1Gi}}";
    let status = reported(&mut Scene::led(paused, 3, 1), paused);
    assert_condition(&status, ConditionType::Progressing, "False", Reason::PausedBySpec);
    assert_condition(&status, ConditionType::Available, "True", Reason::LeaderConfirmed);
}

#[test]
fn a_silent_voter_is_named_and_the_cluster_stays_available() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.silence(2);
    let status = reported(&mut scene, SPEC);
    assert_condition(&status, ConditionType::Available, "True", Reason::LeaderConfirmed);
    assert_condition(&status, ConditionType::QuorumHealthy, "False", Reason::MembersMissing);
    assert_eq!(status.members[2].message.as_deref(), Some("timed out"));
    assert_eq!(status.followers, ["demo-0", "demo-2"], "membership assigns them, not an answer");
}

#[test]
fn a_member_that_falls_behind_is_named_even_if_it_says_nothing() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.silence(2);
    scene.record(2, |record| record.lag = 5000);
    let status = reported(&mut scene, SPEC);
    assert_condition(&status, ConditionType::Degraded, "True", Reason::MemberLagging);
}

fn message(status: &KvClusterStatus, kind: ConditionType) -> &str {
    &status.conditions.iter().find(|condition| condition.type_ == kind.as_str()).unwrap().message
}

#[test]
fn a_pod_monitor_that_cannot_be_made_is_told_and_is_no_fault_of_the_spec() {
    let spec = "{monitoring: {podMonitor: true}, storage: {size: 1Gi}}";
    let mut scene = Scene::led(spec, 3, 1);
    let status = reported(&mut scene, spec);
    assert_condition(&status, ConditionType::SpecInvalid, "False", Reason::Valid);
    assert_condition(&status, ConditionType::Progressing, "False", Reason::Stable);
    assert!(message(&status, ConditionType::SpecInvalid).contains("PodMonitor is not installed"));
    scene.observed.pod_monitors = true;
    assert_eq!(message(&reported(&mut scene, spec), ConditionType::SpecInvalid), "");
}

fn unscheduled(message: &str) -> Trouble {
    Trouble::Unscheduled { message: message.to_owned() }
}

#[test]
fn a_volume_whose_host_is_only_full_or_may_come_back_is_not_to_be_deleted() {
    let full = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had volume node affinity conflict.";
    let nowhere = "0/3 nodes are available: 3 node(s) had volume node affinity conflict.";
    let silent = "0/3 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, \
                  2 node(s) had volume node affinity conflict.";
    let host = |is_gone| Some(VolumeHost { name: "n2".to_owned(), is_gone });
    for (message, host, is_advised) in [
        (full, None, false),
        (full, host(true), false),
        (nowhere, host(false), false),
        (nowhere, host(true), true),
        (silent, None, false),
        (silent, host(true), true),
    ] {
        let mut scene = Scene::led(SPEC, 3, 1);
        scene.silence(2);
        scene.pod(2).trouble = Some(unscheduled(message));
        scene.observed.claims.get_mut(&2).unwrap().host = host;
        let status = reported(&mut scene, SPEC);
        assert_condition(&status, ConditionType::Degraded, "True", Reason::VolumeUnavailable);
        let said = self::message(&status, ConditionType::Degraded);
        assert_eq!(said.contains("delete pvc"), is_advised, "{said}");
    }
}

#[test]
fn a_pod_that_was_not_made_is_told_with_where_to_look_for_the_reason() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.observed.pods.remove(&2);
    let status = reported(&mut scene, SPEC);
    let said = status.members[2].message.as_deref().unwrap();
    assert!(said.contains("kubectl describe statefulset demo --namespace apps"), "{said}");
    let mut scene = Scene::empty(SPEC, 3);
    scene.observed.pods.clear();
    let said = reported(&mut scene, SPEC);
    let said = message(&said, ConditionType::Available);
    assert!(said.contains("demo-0, demo-1, demo-2") && said.contains("describe statefulset demo"), "{said}");
}

#[test]
fn a_lost_volume_is_named_with_the_two_commands_that_replace_the_member() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.silence(2);
    scene.pod(2).trouble = Some(unscheduled("0/3 nodes are available: 3 node(s) had volume node affinity conflict."));
    let status = reported(&mut scene, SPEC);
    assert_condition(&status, ConditionType::Degraded, "True", Reason::VolumeUnavailable);
    let said = message(&status, ConditionType::Degraded);
    for command in ["kubectl delete pvc data-demo-2 --namespace apps", "kubectl delete pod demo-2 --namespace apps"] {
        assert!(said.contains(command), "{said}");
    }
}

#[test]
fn a_claim_that_nobody_provides_for_is_told_apart_from_a_lost_volume() {
    let mut scene = Scene::empty(SPEC, 3);
    scene.silence(0);
    scene.pod(0).trouble = Some(unscheduled("pod has unbound immediate PersistentVolumeClaims"));
    scene.observed.claims.get_mut(&0).unwrap().capacity = None;
    let status = reported(&mut scene, SPEC);
    assert_condition(&status, ConditionType::Degraded, "True", Reason::VolumeUnavailable);
    let said = message(&status, ConditionType::Degraded);
    assert!(said.contains("kubectl describe pvc data-demo-0") && !said.contains("delete"), "{said}");
}

#[test]
fn a_disk_is_nearly_full_by_its_own_limit_too_and_damage_is_named_first() {
    let mut scene = Scene::led(SPEC, 3, 1);
    let disk = &mut scene.status(0).disk;
    (disk.used_bytes, disk.available_bytes, disk.limit_bytes) = (95 << 20, Some(1 << 30), Some(100 << 20));
    let status = reported(&mut scene, SPEC);
    assert_condition(&status, ConditionType::Degraded, "True", Reason::DiskNearlyFull);
    assert!(message(&status, ConditionType::Degraded).starts_with("demo-0: 5 MiB"), "{status:#?}");
    scene.status(2).replica.quarantined = Some("a copied volume".to_owned());
    let status = reported(&mut scene, SPEC);
    assert_condition(&status, ConditionType::Degraded, "True", Reason::CorruptionFound);
}

#[test]
fn a_quorum_that_can_lose_nobody_is_not_healthy() {
    for (replicas, status, reason) in [
        (1, "False", Reason::NoVoterCanBeLost),
        (2, "False", Reason::NoVoterCanBeLost),
        (3, "True", Reason::AllVotersReachable),
    ] {
        let spec = format!("{{replicas: {replicas}, storage: {{size: 1Gi}}}}");
        let report = reported(&mut Scene::led(&spec, replicas, 0), &spec);
        assert_condition(&report, ConditionType::QuorumHealthy, status, reason);
    }
}

#[test]
fn an_epoch_that_was_edited_by_hand_is_put_right() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.observed.status.epoch = Some(999);
    assert_eq!(reported(&mut scene, SPEC).epoch, Some(3));
}

#[test]
fn silence_is_unknown_and_pods_that_cannot_run_are_a_lost_majority() {
    let mut scene = Scene::leaderless(SPEC, 3);
    (1..3).for_each(|ordinal| scene.silence(ordinal));
    assert_condition(&reported(&mut scene, SPEC), ConditionType::Available, "Unknown", Reason::WaitingForMembers);
    (1..3).for_each(|ordinal| scene.pod(ordinal).trouble = Some(crashes()));
    assert_condition(&reported(&mut scene, SPEC), ConditionType::Available, "False", Reason::QuorumLost);
}

#[test]
fn a_majority_of_new_volumes_is_a_lost_majority() {
    let mut scene = Scene::leaderless(SPEC, 3);
    for ordinal in 0..2 {
        let mut empty = crate::plan::scene::status(ordinal, kv_core::status::Role::Uninitialised, None, &[]);
        empty.replica.member_id.0 += 0x100;
        scene.answers(ordinal, empty);
    }
    assert_condition(&reported(&mut scene, SPEC), ConditionType::Available, "False", Reason::QuorumLost);
}

#[test]
fn a_cluster_that_nobody_answers_for_is_unknown() {
    let mut scene = Scene::led(SPEC, 3, 1);
    (0..3).for_each(|ordinal| scene.silence(ordinal));
    let status = reported(&mut scene, SPEC);
    assert_condition(&status, ConditionType::Available, "Unknown", Reason::WaitingForMembers);
    assert_eq!((status.cluster_id.as_deref(), status.epoch), (Some("c1"), Some(3)), "what was known stays");
}

#[test]
fn before_the_group_exists_its_assignment_stays_in_the_status() {
    let mut scene = Scene::empty(SPEC, 3);
    let first = reported(&mut scene, SPEC);
    assert!(first.members.iter().all(|member| !member.voter), "not assigned yet");
    scene.observed.status = first;
    scene.observed.status.cluster_id = Some("c9".to_owned());
    scene.observed.status.members.iter_mut().for_each(|member| member.voter = true);
    let again = reported(&mut scene, SPEC);
    assert!(again.members.iter().all(|member| member.voter && member.member_id.is_some()));
    scene.pod(1).answer = Answer::Unknown("timed out".to_owned());
    assert!(reported(&mut scene, SPEC).members[1].voter, "silence takes no vote away");
    let other = crate::plan::scene::status(7, kv_core::status::Role::Uninitialised, None, &[]);
    scene.answers(1, other);
    assert!(!reported(&mut scene, SPEC).members[1].voter, "another volume was not assigned");
}

#[test]
fn positions_alone_are_written_rarely_and_other_changes_at_once() {
    let mut scene = Scene::led(SPEC, 3, 1);
    let status = reported(&mut scene, SPEC);
    let stored = KvCluster { status: Some(status.clone()), ..cluster(SPEC) };
    assert_eq!(changed(&stored, status.clone(), None), None, "nothing has changed");
    let mut moved = status;
    moved.members[0].last_id = Some(101);
    assert_eq!(changed(&stored, moved.clone(), Some(Duration::from_secs(9))), None);
    assert!(changed(&stored, moved.clone(), Some(Duration::from_secs(10))).is_some());
    moved.ready_replicas = 2;
    assert!(changed(&stored, moved, Some(Duration::ZERO)).is_some());
}

#[test]
fn a_transition_keeps_its_time_until_the_next_one() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.observed.status = reported(&mut scene, SPEC);
    let later = Time(Timestamp::from_second(60).unwrap());
    let plan = scene.plan();
    scene.silence(2);
    let applied = Applied {
        cluster: KvCluster { status: Some(scene.observed.status.clone()), ..cluster(SPEC) },
        progress: None,
        leadership: None,
        image: plan.image,
        updated: 3,
        memory: plan.memory,
        switched: None,
        restarted: None,
        error: None,
    };
    let status = status(&scene.desired.identity, &scene.observed, &applied, &[], &later);
    let time = |kind: ConditionType| {
        let condition = status.conditions.iter().find(|c| c.type_ == kind.as_str()).unwrap();
        condition.last_transition_time.clone()
    };
    assert_eq!((time(ConditionType::Available), time(ConditionType::QuorumHealthy)), (now(), later));
}
