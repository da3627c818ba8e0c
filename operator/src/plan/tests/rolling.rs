//! Restarts, one at a time.

use super::*;
use crate::plan::scene::crashes;

const NEW_IMAGE: &str = "{image: 'kvcluster/kv-node:2', storage: {size: 1Gi}}";
const SUPERVISED: &str = "{updateStrategy: Supervised, image: 'kvcluster/kv-node:2', storage: {size: 1Gi}}";

/// All pods run with an older image.
fn outdated(spec: &str, pods: u32, leader: u32) -> Scene {
    let mut scene = Scene::led(spec, pods, leader);
    (0..pods).for_each(|ordinal| scene.pod(ordinal).spec_hash = Some("old".to_owned()));
    scene
}

fn update(scene: &mut Scene, ordinal: u32) {
    let hash = spec_hash(&scene.desired, "kvcluster/kv-node:2");
    scene.pod(ordinal).spec_hash = Some(hash);
}

fn restarted(plan: &Plan) -> Option<&str> {
    match &plan.directive {
        Some(Directive::Restart { pod, .. }) => Some(pod.as_str()),
        _ => None,
    }
}

#[test]
fn followers_are_restarted_first_the_most_lagging_one_before_the_others() {
    let mut scene = outdated(NEW_IMAGE, 3, 1);
    scene.record(0, |record| record.lag = 10);
    let plan = scene.plan();
    assert_eq!((restarted(&plan), reason(&plan), plan.updated), (Some("demo-0"), Some(Reason::Rolling), 0));
    update(&mut scene, 0);
    assert_eq!(restarted(&scene.plan()), Some("demo-2"));
}

#[test]
fn the_leader_is_last_and_hands_over_first() {
    let mut scene = outdated(NEW_IMAGE, 3, 1);
    update(&mut scene, 0);
    update(&mut scene, 2);
    let Some(Directive::Lead { node, .. }) = scene.plan().directive else { panic!() };
    assert_eq!(node.pod, "demo-0");
}

#[test]
fn nobody_is_restarted_while_a_voter_is_missing_behind_or_not_ready() {
    let mut scene = outdated(NEW_IMAGE, 3, 1);
    scene.silence(0);
    assert_eq!(restarted(&scene.plan()), None);
    let mut scene = outdated(NEW_IMAGE, 3, 1);
    scene.record(0, |record| record.lag = 100_000);
    assert_eq!(restarted(&scene.plan()), None);
    let mut scene = outdated(NEW_IMAGE, 3, 1);
    scene.pod(0).terminating = true;
    assert_eq!(restarted(&scene.plan()), None);
}

#[test]
fn nobody_is_restarted_while_pods_are_added() {
    let mut scene = outdated("{replicas: 5, image: 'kvcluster/kv-node:2', storage: {size: 1Gi}}", 3, 1);
    let plan = scene.plan();
    assert_eq!((restarted(&plan), reason(&plan)), (None, Some(Reason::Rolling)));
    assert_eq!(plan.progress.unwrap().message, "waiting until demo-3, demo-4 is ready");
    scene.settle_children(5);
    assert_eq!(restarted(&scene.plan()), None, "they do not exist yet");
}

#[test]
fn an_image_that_crashes_stops_the_roll_and_going_back_replaces_that_pod_alone() {
    let mut scene = outdated(NEW_IMAGE, 3, 1);
    update(&mut scene, 2);
    scene.silence(2);
    scene.pod(2).trouble = Some(crashes());
    let plan = scene.plan();
    assert_eq!((restarted(&plan), reason(&plan)), (None, Some(Reason::RolloutStuck)));
    let mut back = Scene::led(SPEC, 3, 1);
    back.silence(2);
    back.pod(2).trouble = Some(crashes());
    back.pod(2).spec_hash = Some("crashing".to_owned());
    assert_eq!(restarted(&back.plan()), Some("demo-2"));
}

/// The pods with these ordinals cannot run with what the spec said before it was corrected.
fn broken(mut scene: Scene, ordinals: &[u32]) -> Scene {
    for ordinal in ordinals {
        scene.silence(*ordinal);
        scene.pod(*ordinal).trouble = Some(crashes());
        scene.pod(*ordinal).spec_hash = Some("mistyped".to_owned());
    }
    scene
}

#[test]
fn a_first_spec_that_is_corrected_replaces_the_pods_that_never_started_one_by_one() {
    let mut scene = broken(Scene::empty(SPEC, 3), &[0, 1, 2]);
    for pod in 0..3 {
        let plan = scene.plan();
        assert_eq!((restarted(&plan), reason(&plan)), (Some(&*format!("demo-{pod}")), Some(Reason::Rolling)));
        scene.pod(pod).terminating = true;
    }
    let plan = scene.plan();
    assert_eq!((plan.directive, plan.assignment), (None, None), "those that go are waited for");
}

#[test]
fn a_pod_that_never_answered_is_replaced_at_once_when_nobody_has_ever_led() {
    let mut scene = broken(Scene::empty(SPEC, 3), &[1]);
    scene.pod(1).trouble = None;
    assert_eq!(restarted(&scene.plan()), Some("demo-1"), "its volume cannot be mounted there, or another program runs");
}

#[test]
fn what_does_not_run_is_replaced_without_a_leader_and_what_runs_is_not() {
    for spec in
        [SPEC, "{failover: Manual, storage: {size: 1Gi}}", "{failover: Manual, leader: demo-1, storage: {size: 1Gi}}"]
    {
        let mut scene = broken(Scene::leaderless(spec, 3), &[1, 2]);
        scene.pod(0).spec_hash = Some("mistyped".to_owned());
        assert_eq!(restarted(&scene.plan()), Some("demo-1"), "{spec}");
        scene.pod(1).terminating = true;
        assert_eq!(restarted(&scene.plan()), Some("demo-2"), "{spec}");
        scene.pod(2).terminating = true;
        assert_eq!(restarted(&scene.plan()), None, "{spec}: demo-0 is needed");
    }
}

#[test]
fn a_scale_down_that_cannot_go_on_keeps_no_broken_pod_from_being_replaced() {
    let mut scene = broken(Scene::led("{replicas: 1, storage: {size: 1Gi}}", 3, 0), &[1]);
    assert_eq!(restarted(&scene.plan()), Some("demo-1"));
}

#[test]
fn a_pod_that_says_nothing_and_not_why_is_replaced_after_a_while() {
    for mut scene in [Scene::led(SPEC, 3, 1), Scene::leaderless(SPEC, 3)] {
        scene.silence(2);
        scene.pod(2).spec_hash = Some("old".to_owned());
        assert_eq!(restarted(&scene.plan()), None, "its host may be cut off");
        assert_eq!(restarted(&scene.later(599_000)), None);
        assert_eq!(restarted(&scene.later(1_000)), Some("demo-2"));
    }
}

#[test]
fn a_pod_that_does_not_come_back_and_does_not_say_why_is_a_stuck_roll_after_a_while() {
    let mut scene = outdated(NEW_IMAGE, 3, 1);
    update(&mut scene, 2);
    scene.silence(2);
    assert_eq!(reason(&scene.plan()), Some(Reason::Rolling));
    assert_eq!(reason(&scene.later(599_000)), Some(Reason::Rolling));
    let plan = scene.later(1_000);
    assert_eq!((restarted(&plan), reason(&plan)), (None, Some(Reason::RolloutStuck)));
    assert!(plan.progress.unwrap().message.ends_with("for over 10 min"));
    scene.pod(2).ready = true;
    scene.record(2, |record| record.health = kv_core::status::Health::Healthy);
    assert_eq!(restarted(&scene.plan()), Some("demo-0"));
    update(&mut scene, 0);
    scene.silence(0);
    assert_eq!(reason(&scene.plan()), Some(Reason::Rolling), "the next pod has as much time");
}

#[test]
fn supervised_rolls_followers_and_waits_for_a_person() {
    let mut scene = outdated(SUPERVISED, 3, 1);
    assert_eq!(restarted(&scene.plan()), Some("demo-2"));
    update(&mut scene, 0);
    update(&mut scene, 2);
    let plan = scene.plan();
    assert_eq!((plan.directive.as_ref(), reason(&plan)), (None, Some(Reason::WaitingForSwitchover)));
    let message = plan.progress.unwrap().message;
    assert!(message.contains("spec.leader"), "{message}");
}

#[test]
fn a_group_of_one_is_restarted_as_it_is() {
    let mut scene = outdated("{replicas: 1, image: 'kvcluster/kv-node:2', storage: {size: 1Gi}}", 1, 0);
    assert_eq!(restarted(&scene.plan()), Some("demo-0"));
}

#[test]
fn nobody_is_restarted_while_the_set_is_being_replaced() {
    let mut scene = outdated(NEW_IMAGE, 3, 1);
    scene.desired.spec.storage.size.0 = "2Gi".to_owned();
    scene.desired.storage_bytes = 2 << 30;
    scene.observed.claims.values_mut().for_each(|claim| (claim.requested, claim.capacity) = (2 << 30, Some(2 << 30)));
    let plan = scene.plan();
    assert_eq!((plan.replace_set, restarted(&plan)), (true, None));
    scene.observed.children.retain(|child| child.kind != Kind::StatefulSet);
    assert_eq!(restarted(&scene.plan()), None, "a pod would not come back");
    scene.settle_children(3);
    assert_eq!(restarted(&scene.plan()), Some("demo-2"));
}

#[test]
fn nobody_is_restarted_without_a_leader() {
    let mut scene = Scene::leaderless(NEW_IMAGE, 3);
    (0..3).for_each(|ordinal| scene.pod(ordinal).spec_hash = Some("old".to_owned()));
    assert_eq!(restarted(&scene.plan()), None);
}
