//! Who is told to lead, and when.

use super::*;
use crate::validate::Wish;

const MANUAL: &str = "{failover: Manual, storage: {size: 1Gi}}";
const MANUAL_0: &str = "{failover: Manual, leader: demo-0, storage: {size: 1Gi}}";

fn told(plan: &Plan) -> Option<&str> {
    match &plan.directive {
        Some(Directive::Lead { node, .. }) => Some(node.pod.as_str()),
        _ => None,
    }
}

fn wish(scene: &mut Scene, leader: u32) {
    scene.desired.leader = Wish::Pod(leader);
    scene.desired.spec.leader = Some(format!("demo-{leader}"));
    scene.observed.generation += 1;
}

#[test]
fn a_changed_wish_is_followed_at_once() {
    let mut scene = Scene::led(SPEC, 3, 0);
    assert_eq!(told(&scene.plan()), None);
    wish(&mut scene, 2);
    assert_eq!(told(&scene.plan()), Some("demo-2"));
    assert_eq!(told(&scene.later(100)), None, "not asked twice at once");
    assert_eq!(told(&scene.later(2000)), Some("demo-2"), "asked again when it did not come to pass");
}

#[test]
fn a_wish_waits_for_a_target_that_has_caught_up() {
    let mut scene = Scene::led(SPEC, 3, 0);
    scene.plan();
    wish(&mut scene, 2);
    scene.record(2, |record| record.lag = 100_000);
    let plan = scene.plan();
    assert_eq!((told(&plan), reason(&plan)), (None, Some(Reason::SwitchingOver)));
    scene.record(2, |record| record.lag = 0);
    assert_eq!(told(&scene.plan()), Some("demo-2"));
}

#[test]
fn leadership_lost_is_given_back_after_a_steady_minute_and_later_after_two() {
    let now_leads = |scene: Scene, leader| Scene {
        memory: scene.memory,
        draw: scene.draw,
        ..Scene::led("{leader: demo-0, storage: {size: 1Gi}}", 3, leader)
    };
    let mut scene = Scene::led("{leader: demo-0, storage: {size: 1Gi}}", 3, 0);
    scene.plan();
    let mut scene = now_leads(scene, 1);
    assert_eq!(told(&scene.plan()), None);
    assert_eq!(told(&scene.later(59_000)), None);
    assert_eq!(told(&scene.later(1_000)), Some("demo-0"));
    assert_eq!(told(&scene.later(2_000)), None);
    assert_eq!(told(&scene.later(60_000)), Some("demo-0"), "a hand-over that came to nothing is no loss");
    let mut scene = now_leads(scene, 0);
    scene.plan();
    let mut scene = now_leads(scene, 1);
    assert_eq!(told(&scene.later(1_000)), None);
    assert_eq!(told(&scene.later(61_000)), None);
    assert_eq!(told(&scene.later(59_000)), Some("demo-0"));
}

#[test]
fn a_minute_that_is_interrupted_begins_anew() {
    let mut scene = Scene::led("{leader: demo-0, storage: {size: 1Gi}}", 3, 1);
    scene.plan();
    scene.later(50_000);
    scene.record(0, |record| record.lag = 100_000);
    scene.later(5_000);
    scene.record(0, |record| record.lag = 0);
    assert_eq!(told(&scene.later(30_000)), None);
    assert_eq!(told(&scene.later(60_000)), Some("demo-0"));
}

#[test]
fn an_operator_that_starts_gives_nothing_back_at_once() {
    let mut scene = Scene::led("{leader: demo-0, storage: {size: 1Gi}}", 3, 1);
    assert_eq!(told(&scene.plan()), None);
}

#[test]
fn with_automatic_failover_nobody_is_told_after_a_loss() {
    let mut scene = Scene::leaderless("{leader: demo-0, storage: {size: 1Gi}}", 3);
    let plan = scene.plan();
    assert_eq!(told(&plan), None);
    assert_eq!(plan.leadership.unwrap().reason, Reason::NoLeader);
}

#[test]
fn the_first_leader_is_the_wished_one() {
    let mut scene = Scene::leaderless("{leader: demo-1, storage: {size: 1Gi}}", 3);
    scene.observed.status.leader = None;
    assert_eq!(told(&scene.plan()), Some("demo-1"));
}

#[test]
fn a_manual_leader_that_is_down_is_named_with_the_way_out() {
    let mut scene = Scene::leaderless(MANUAL_0, 3);
    scene.silence(0);
    let plan = scene.plan();
    assert_eq!(told(&plan), None);
    let Progress { reason, message } = plan.leadership.unwrap();
    assert_eq!(reason, Reason::ManualLeaderDown);
    assert!(message.contains("kubectl patch kvcluster demo --namespace apps"), "{message}");
}

#[test]
fn a_manual_leader_that_is_quarantined_cannot_lead() {
    let mut scene = Scene::leaderless(MANUAL_0, 3);
    scene.status(0).replica.quarantined = Some("restored".to_owned());
    let plan = scene.plan();
    assert_eq!((told(&plan), plan.leadership.as_ref().unwrap().reason), (None, Reason::ManualLeaderDown));
}

#[test]
fn a_manual_leader_that_was_told_and_lacks_entries_is_named_with_who_holds_them() {
    let mut scene = Scene::leaderless(MANUAL_0, 3);
    scene.status(0).replica.last_id.0 -= 1;
    let plan = scene.plan();
    assert_eq!((told(&plan), plan.leadership.as_ref().unwrap().reason), (Some("demo-0"), Reason::NoLeader));
    let plan = scene.later(2_000);
    let Progress { reason, message } = plan.leadership.clone().unwrap();
    assert_eq!((told(&plan), reason), (Some("demo-0"), Reason::ManualLeaderDown), "it may be able to, all the same");
    assert!(message.starts_with("demo-0 is the manual leader, and demo-2 holds entries that it lacks"), "{message}");
}

#[test]
fn a_manual_leader_that_is_back_is_told_again() {
    assert_eq!(told(&Scene::leaderless(MANUAL_0, 3).plan()), Some("demo-0"));
}

#[test]
fn a_wish_that_names_no_pod_leaves_the_last_one_and_everything_else_as_it_is() {
    let mut scene = Scene::leaderless(MANUAL_0, 3);
    scene.plan();
    scene.desired.leader = Wish::NoPod;
    scene.observed.children.retain(|child| child.kind != Kind::Service);
    let plan = scene.later(2_000);
    assert_eq!((told(&plan), plan.ensure.len()), (Some("demo-0"), 3), "what was deleted by hand is put back");
    scene.silence(0);
    assert_eq!(scene.plan().leadership.unwrap().reason, Reason::ManualLeaderDown);
    wish(&mut scene, 2);
    assert_eq!(told(&scene.later(100)), Some("demo-2"), "one that is corrected is followed at once");
}

#[test]
fn an_operator_that_knows_no_wish_but_one_that_names_no_pod_tells_nobody() {
    let mut scene = Scene::leaderless("{failover: Manual, leader: demo-7, storage: {size: 1Gi}}", 3);
    let plan = scene.plan();
    let why = plan.leadership.as_ref().map(|why| why.reason);
    assert_eq!((told(&plan), why), (None, Some(Reason::ManualLeaderDown)));
    let mut scene = Scene::led("{leader: demo-7, storage: {size: 1Gi}}", 3, 1);
    let plan = scene.plan();
    assert_eq!((plan.directive, plan.progress, plan.next), (None, None, AT_REST));
}

#[test]
fn a_wish_that_a_scale_down_leaves_behind_does_not_stop_it() {
    let mut scene = Scene::led("{replicas: 5, leader: demo-4, storage: {size: 1Gi}}", 5, 4);
    scene.plan();
    scene.desired = Scene::nothing("{replicas: 3, leader: demo-4, storage: {size: 1Gi}}").desired;
    assert_eq!(told(&scene.plan()), Some("demo-0"), "it hands over before it is removed");
}

#[test]
fn without_a_wish_the_voter_that_holds_most_is_told_not_the_first_one_back() {
    let mut scene = Scene::leaderless(MANUAL, 3);
    scene.status(2).replica.durable_id.0 = 200;
    assert_eq!(told(&scene.plan()), Some("demo-2"));
    assert_eq!(told(&scene.later(2_000)), Some("demo-0"), "whoever is refused passes the turn on");
    scene.silence(2);
    scene.silence(1);
    assert_eq!(told(&scene.later(2_000)), None, "one of three may lack what the others acknowledged");
}

#[test]
fn nobody_is_told_while_somebody_hears_a_leader() {
    let mut scene = Scene::leaderless(MANUAL, 3);
    scene.status(1).replica.leader_heard_ms_ago = Some(500);
    assert_eq!(told(&scene.plan()), None);
}

#[test]
fn a_leader_on_a_host_that_is_drained_hands_over_to_one_that_stays() {
    let mut scene = Scene::led(SPEC, 3, 0);
    scene.pod(0).cordoned = true;
    scene.pod(1).cordoned = true;
    assert_eq!(told(&scene.plan()), Some("demo-2"));
    scene.pod(2).cordoned = true;
    assert_eq!(told(&scene.later(5_000)), None);
}

#[test]
fn a_leader_that_a_majority_does_not_confirm_is_none() {
    let mut scene = Scene::led(SPEC, 3, 0);
    scene.status(0).replica.lease_held = false;
    assert_eq!(scene.plan().leadership.unwrap().reason, Reason::NoLeader);
}
