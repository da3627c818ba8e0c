//! The first assignment, and what looks like one.

use kv_core::status::Role;

use super::*;
use crate::crd::MemberReport;
use crate::observed::Answer;
use crate::plan::scene::{member_id, status};

fn assigned(scene: &mut Scene, ordinals: &[u32]) {
    scene.observed.status.cluster_id = Some("c9".to_owned());
    let report = |ordinal: &u32| MemberReport {
        name: format!("demo-{ordinal}"),
        member_id: Some(member_id(*ordinal).to_string()),
        voter: true,
        ..MemberReport::default()
    };
    scene.observed.status.members = ordinals.iter().map(report).collect();
}

#[test]
fn all_children_are_written_before_anybody_is_asked() {
    let plan = Scene::nothing(SPEC).plan();
    let kinds: Vec<Kind> = plan.ensure.iter().map(|child| child.kind).collect();
    assert_eq!(kinds.last(), Some(&Kind::StatefulSet));
    assert_eq!((kinds.len(), plan.assignment, plan.directive), (8, None, None));
}

#[test]
fn a_group_is_assigned_when_every_pod_answers_and_is_empty() {
    let mut scene = Scene::empty(SPEC, 3);
    let plan = scene.plan();
    let assignment = plan.assignment.unwrap();
    assert_eq!(assignment.cluster_id.as_str(), "drawn");
    let names: Vec<&str> = assignment.voters.iter().map(|voter| voter.name.as_str()).collect();
    assert_eq!(names, ["demo-0", "demo-1", "demo-2"]);
    assert_eq!(plan.directive, None, "nobody is told before the status holds it");
}

#[test]
fn one_silent_pod_keeps_a_group_from_being_founded() {
    let mut scene = Scene::empty(SPEC, 3);
    scene.pod(2).answer = Answer::Unknown("timed out".to_owned());
    let plan = scene.plan();
    assert_eq!((plan.assignment, plan.directive), (None, None));
    assert!(plan.progress.unwrap().message.contains("demo-2"));
}

#[test]
fn what_was_assigned_is_sent_to_everybody() {
    let mut scene = Scene::empty(SPEC, 3);
    assigned(&mut scene, &[0, 1, 2]);
    let plan = scene.plan();
    let Some(Directive::Bootstrap { nodes, assignment, .. }) = plan.directive else { panic!() };
    assert_eq!((nodes.len(), assignment.cluster_id.as_str(), plan.assignment), (3, "c9", None));
}

#[test]
fn a_volume_lost_before_the_group_was_founded_is_assigned_anew() {
    let mut scene = Scene::empty(SPEC, 3);
    assigned(&mut scene, &[0, 1, 7]);
    assert!(scene.plan().assignment.is_some());
}

#[test]
fn a_group_that_has_led_is_never_founded_anew_over_empty_volumes() {
    let mut scene = Scene::empty(SPEC, 3);
    assigned(&mut scene, &[0, 1, 7]);
    scene.observed.status.epoch = Some(4);
    let plan = scene.plan();
    assert_eq!((plan.assignment, plan.directive), (None, None));
    assert!(plan.progress.unwrap().message.contains("has held data"));
}

#[test]
fn a_half_done_founding_goes_on_with_what_a_member_holds() {
    let mut scene = Scene::empty(SPEC, 3);
    scene.answers(0, status(0, Role::Follower, None, &[0, 1, 2]));
    let Some(Directive::Bootstrap { nodes, assignment, .. }) = scene.plan().directive else { panic!() };
    let told: Vec<&str> = nodes.iter().map(|node| node.pod.as_str()).collect();
    assert_eq!((told, assignment.cluster_id.as_str()), (vec!["demo-1", "demo-2"], "c1"));
}

#[test]
fn an_old_volume_among_new_ones_is_a_group_and_not_overwritten() {
    let mut scene = Scene::empty(SPEC, 3);
    scene.answers(2, status(2, Role::Follower, None, &[2, 3, 4]));
    let plan = scene.plan();
    assert_eq!((plan.assignment, plan.directive), (None, None));
}

#[test]
fn volumes_that_were_kept_all_start_first() {
    let mut scene = Scene::nothing(SPEC);
    (0..5).for_each(|ordinal| scene.add_claim(ordinal));
    let plan = scene.plan();
    let set = plan.ensure.iter().find(|child| child.kind == Kind::StatefulSet).unwrap();
    assert_eq!(set.object["spec"]["replicas"], 5);
}
