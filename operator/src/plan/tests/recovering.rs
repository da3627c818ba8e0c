//! A majority lost for good.

use kv_core::entry::Epoch;
use kv_core::group::MemberId;
use kv_core::status::{NodeStatus, Role};

use super::*;
use crate::plan::recovery::recovered_as;
use crate::plan::scene::{record, status};

const ACCEPTED: &str = "{recovery: {forceLeader: demo-2, acceptDataLossAtEpoch: 3}, storage: {size: 1Gi}}";

/// Two of three are gone; the third says what it holds.
fn survivor(spec: &str) -> Scene {
    let mut scene = Scene::leaderless(spec, 3);
    scene.silence(0);
    scene.silence(1);
    scene.observed.status.leader = None;
    scene
}

fn recovered(scene: &mut Scene, plan: &Plan) -> NodeStatus {
    let Some(Directive::Recover { node, epoch, new_cluster_id }) = &plan.directive else { panic!("{plan:#?}") };
    assert_eq!((node.pod.as_str(), *epoch), ("demo-2", Epoch(3)));
    let mut alone = scene.tuned(status(2, Role::Leader, Some(2), &[2]));
    (alone.replica.cluster_id, alone.replica.epoch) = (Some(new_cluster_id.clone()), Epoch(5));
    alone
}

#[test]
fn a_recovery_is_sent_when_the_epoch_is_the_accepted_one_and_never_again() {
    let mut scene = survivor(ACCEPTED);
    let plan = scene.plan();
    assert_eq!(reason(&plan), Some(Reason::Recovering));
    let alone = recovered(&mut scene, &plan);
    scene.answers(2, alone);
    // An operator that ended before it could report knows the new cluster by its id.
    let plan = scene.plan();
    assert!(!matches!(plan.directive, Some(Directive::Recover { .. })), "{plan:#?}");
    let group = group(&scene.desired.identity, &scene.desired.spec, &scene.observed).unwrap();
    let recovered = recovered_as(&scene.desired.spec, &scene.observed.status);
    assert_eq!((Some(&group.cluster_id), group.voters.len()), (recovered.as_ref(), 1));
}

#[test]
fn another_epoch_or_another_pod_recovers_nothing() {
    let mut scene = survivor("{recovery: {forceLeader: demo-2, acceptDataLossAtEpoch: 2}, storage: {size: 1Gi}}");
    let plan = scene.plan();
    assert_eq!((reason(&plan), &plan.directive), (Some(Reason::Recovering), &None));
    assert!(plan.progress.unwrap().message.contains("the epoch is 3"));
    let mut scene = survivor("{recovery: {forceLeader: demo-1, acceptDataLossAtEpoch: 3}, storage: {size: 1Gi}}");
    assert_eq!(scene.plan().directive, None, "demo-1 does not answer");
}

#[test]
fn a_leader_that_came_and_went_since_the_last_status_is_another_epoch() {
    let mut scene = survivor(ACCEPTED);
    scene.status(2).replica.epoch = Epoch(4);
    let plan = scene.plan();
    assert_eq!((reason(&plan), &plan.directive), (Some(Reason::Recovering), &None));
    assert!(plan.progress.unwrap().message.contains("the epoch is 4"));
}

#[test]
fn nothing_is_recovered_while_somebody_leads_or_nobody_asked() {
    assert_eq!(Scene::led(ACCEPTED, 3, 0).plan().directive, None);
    assert_eq!(survivor(SPEC).plan().directive, None);
}

#[test]
fn nothing_is_recovered_while_a_majority_answers_that_can_elect() {
    let mut scene = Scene::leaderless(ACCEPTED, 3);
    scene.silence(0);
    let plan = scene.plan();
    assert_eq!((&plan.directive, reason(&plan)), (&None, Some(Reason::Recovering)));
    assert!(plan.progress.unwrap().message.contains("nothing is lost for good"));
    scene.status(1).replica.quarantined = Some("an old copy of a volume".to_owned());
    assert!(matches!(scene.plan().directive, Some(Directive::Recover { .. })), "it gives no vote");
}

#[test]
fn an_order_that_was_carried_out_or_means_another_situation_keeps_nobody_from_being_told_to_lead() {
    let mut scene =
        survivor("{failover: Manual, recovery: {forceLeader: demo-2, acceptDataLossAtEpoch: 3}, storage: {size: 1Gi}}");
    let plan = scene.plan();
    let mut alone = recovered(&mut scene, &plan);
    (alone.replica.role, alone.replica.lease_held, alone.replica.leader_heard_ms_ago) = (Role::Follower, false, None);
    let report = &mut scene.observed.status;
    (report.cluster_id, report.epoch) = (alone.replica.cluster_id.as_ref().map(ToString::to_string), Some(5));
    scene.answers(2, alone);
    let plan = scene.plan();
    let Some(Directive::Lead { node, .. }) = &plan.directive else { panic!("{plan:#?}") };
    assert_eq!((node.pod.as_str(), reason(&plan)), ("demo-2", Some(Reason::SwitchingOver)));
    let mut scene = Scene::leaderless(
        "{failover: Manual, leader: demo-0, recovery: {forceLeader: demo-2, acceptDataLossAtEpoch: 2}, storage: {size: 1Gi}}",
        3,
    );
    scene.silence(0);
    let plan = scene.plan();
    assert_eq!(plan.leadership.as_ref().map(|why| why.reason), Some(Reason::ManualLeaderDown));
    assert_eq!((&plan.directive, reason(&plan)), (&None, Some(Reason::Recovering)));
}

#[test]
fn after_a_recovery_empty_pods_join_and_old_volumes_stay_outside_until_they_are_emptied() {
    let mut scene = survivor(ACCEPTED);
    let plan = scene.plan();
    let mut alone = recovered(&mut scene, &plan);
    let mut learner = record(1, false, false);
    (learner.member_id, learner.lag) = (MemberId(7), 1_000_000);
    alone.replica.members.push(learner);
    scene.answers(2, alone);
    scene.answers(0, status(0, Role::Follower, None, &[0, 1, 2]));
    let mut empty = status(1, Role::Uninitialised, None, &[]);
    empty.replica.member_id = MemberId(7);
    scene.answers(1, empty);
    let plan = scene.plan();
    let Some(Directive::Join { leader, member, voter: false }) = &plan.directive else { panic!("{plan:#?}") };
    assert_eq!((leader.pod.as_str(), member.name.as_str()), ("demo-2", "demo-1"));
    scene.observed.pods.remove(&1);
    let plan = scene.plan();
    assert_eq!(plan.directive, None, "demo-0 is not let in");
    let of_demo_0 = plan.labels.iter().filter(|relabel| relabel.name == "demo-0");
    let mut serves = of_demo_0.filter_map(|relabel| relabel.labels.get("kvcluster.dev/serves")?.as_deref());
    assert_eq!(serves.next(), Some("false"), "clients are not sent to it");
    assert!(plan.progress.unwrap().message.contains("kubectl delete pvc data-demo-0"));
}
