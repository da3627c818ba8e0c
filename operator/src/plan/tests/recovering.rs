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
    scene.observed.recovered_as = recovered_as(&scene.desired.spec, &scene.observed.status);
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
    let group = Group::seen(&scene.desired.identity, &scene.observed).unwrap();
    assert_eq!((Some(&group.cluster_id), group.voters.len()), (scene.observed.recovered_as.as_ref(), 1));
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
fn nothing_is_recovered_while_somebody_leads_or_nobody_asked() {
    let mut scene = Scene::led(ACCEPTED, 3, 0);
    scene.observed.recovered_as = recovered_as(&scene.desired.spec, &scene.observed.status);
    assert_eq!(scene.plan().directive, None);
    assert_eq!(survivor(SPEC).plan().directive, None);
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
