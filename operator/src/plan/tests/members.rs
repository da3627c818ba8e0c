//! Scaling, lost volumes, old volumes.

use kv_core::entry::EntryId;
use kv_core::status::{Health, Role};

use super::*;
use crate::plan::scene::{record, status};

fn set_replicas(plan: &Plan) -> Option<u64> {
    plan.ensure.iter().find(|child| child.kind == Kind::StatefulSet)?.object["spec"]["replicas"].as_u64()
}

#[test]
fn a_new_pod_becomes_a_learner_first_and_a_voter_once_it_has_caught_up() {
    let mut scene = Scene::led("{replicas: 4, storage: {size: 1Gi}}", 3, 0);
    let plan = scene.plan();
    assert_eq!((set_replicas(&plan), reason(&plan), plan.directive), (Some(4), Some(Reason::Scaling), None));
    scene.add_pod(3, status(3, Role::Uninitialised, None, &[]));
    scene.settle_children(4);
    let plan = scene.plan();
    let Some(Directive::Join { member, voter: false, .. }) = &plan.directive else { panic!("{plan:#?}") };
    assert_eq!((member.name.as_str(), reason(&plan)), ("demo-3", Some(Reason::Scaling)));
    let mut learner = record(3, false, false);
    learner.lag = 1_000_000;
    scene.status(0).replica.members.push(learner);
    assert!(matches!(scene.plan().directive, Some(Directive::Join { voter: false, .. })));
    scene.record(3, |record| record.lag = 0);
    assert!(matches!(scene.plan().directive, Some(Directive::Join { voter: true, .. })));
}

#[test]
fn a_voter_goes_before_its_pod_and_the_highest_ordinal_first() {
    let mut scene = Scene::led(SPEC, 5, 0);
    let plan = scene.plan();
    let Some(Directive::Remove { name, .. }) = &plan.directive else { panic!("{plan:#?}") };
    assert_eq!((name.as_str(), set_replicas(&plan)), ("demo-4", None), "the set stays at 5");
    let without_4 =
        |ordinal| status(ordinal, if ordinal == 0 { Role::Leader } else { Role::Follower }, Some(0), &[0, 1, 2, 3]);
    (0..4).for_each(|ordinal| scene.answers(ordinal, without_4(ordinal)));
    assert_eq!(set_replicas(&scene.plan()), Some(4));
}

#[test]
fn a_leader_hands_over_before_it_is_removed() {
    let mut scene = Scene::led(SPEC, 5, 4);
    let Some(Directive::Lead { node, .. }) = scene.plan().directive else { panic!() };
    assert_eq!(node.pod, "demo-0");
}

#[test]
fn nobody_is_removed_when_the_others_would_have_no_majority() {
    let mut scene = Scene::led("{replicas: 1, storage: {size: 1Gi}}", 3, 0);
    scene.silence(1);
    let plan = scene.plan();
    assert_eq!((reason(&plan), plan.directive), (Some(Reason::ScaleDownUnsafe), None));
}

#[test]
fn without_a_leader_the_set_never_shrinks() {
    let mut scene = Scene::leaderless(SPEC, 5);
    (1..5).for_each(|ordinal| scene.silence(ordinal));
    scene.answers(0, status(0, Role::Follower, None, &[0, 1, 2]));
    assert_eq!(set_replicas(&scene.plan()), None);
}

#[test]
fn pods_that_are_lost_for_a_moment_shrink_nothing() {
    let mut scene = Scene::led(SPEC, 3, 0);
    scene.observed.pods.remove(&1);
    scene.observed.pods.remove(&2);
    scene.status(0).replica.lease_held = false;
    let plan = scene.plan();
    assert_eq!((set_replicas(&plan), plan.directive), (None, None));
}

#[test]
fn a_lost_volume_is_offered_to_the_leader_which_replaces_the_member() {
    let mut scene = Scene::led(SPEC, 3, 0);
    let mut empty = status(2, Role::Uninitialised, None, &[]);
    empty.replica.member_id = kv_core::group::MemberId(7);
    scene.answers(2, empty);
    scene.record(2, |record| record.health = Health::Down);
    let plan = scene.plan();
    let Some(Directive::Join { member, voter: false, .. }) = &plan.directive else { panic!("{plan:#?}") };
    assert_eq!((member.member_id.0, reason(&plan)), (7, Some(Reason::Replacing)));
}

#[test]
fn a_member_of_another_group_stays_outside() {
    let mut scene = Scene::led(SPEC, 3, 0);
    let mut foreign = status(2, Role::Follower, None, &[2]);
    foreign.replica.cluster_id = Some(ClusterId::new("other").unwrap());
    foreign.replica.member_id = kv_core::group::MemberId(7);
    scene.answers(2, foreign);
    assert_eq!(scene.plan().directive, None);
}

#[test]
fn a_founding_that_a_change_has_overtaken_is_not_sent_again() {
    let mut scene = Scene::led(SPEC, 3, 0);
    scene.answers(2, status(2, Role::Uninitialised, None, &[]));
    scene.status(0).replica.config_id = EntryId(50);
    assert_eq!(scene.plan().directive, None);
}
