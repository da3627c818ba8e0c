//! The tables: a cluster in some state, and the one thing that is done about it.

mod founding;
mod leading;
mod live;
mod members;
mod recovering;
mod rolling;

use std::collections::BTreeMap;

use kv_core::group::ClusterId;

use super::scene::Scene;
use super::*;
use crate::crd::Reason;
use crate::names::ROLE_LABEL;
use crate::observed::Foreign;

const SPEC: &str = "{storage: {size: 1Gi}}";

fn reason(plan: &Plan) -> Option<Reason> {
    plan.progress.as_ref().map(|progress| progress.reason)
}

/// The role labels that are to be written.
fn roles(plan: &Plan) -> Vec<(&str, Option<&str>)> {
    plan.labels.iter().map(|relabel| (relabel.name.as_str(), relabel.labels[ROLE_LABEL].as_deref())).collect()
}

#[test]
fn a_cluster_at_rest_needs_nothing() {
    let plan = Scene::led(SPEC, 3, 1).plan();
    assert_eq!((&plan.ensure, &plan.remove, &plan.labels), (&vec![], &vec![], &vec![]));
    assert_eq!((plan.directive, plan.progress, plan.leadership, plan.assignment), (None, None, None, None));
    assert_eq!((plan.updated, plan.next), (3, AT_REST));
}

#[test]
fn a_paused_cluster_is_labelled_and_otherwise_left_alone() {
    let mut scene = Scene::led("{paused: true, replicas: 5, storage: {size: 1Gi}}", 3, 1);
    scene.observed.children.clear();
    scene.pod(1).role_label = None;
    let plan = scene.plan();
    assert_eq!(roles(&plan), [("demo-1", Some("leader"))]);
    assert_eq!((reason(&plan), plan.next), (Some(Reason::PausedBySpec), AT_REST));
    assert_eq!((plan.ensure, plan.directive), (vec![], None));
    let plan = Scene::led("{paused: true, storage: {size: 1Gi}}", 3, 1).plan();
    assert_eq!((plan.progress, plan.next), (None, AT_REST), "nothing waits");
}

#[test]
fn a_paused_cluster_still_says_what_is_wrong_with_it() {
    let mut scene = Scene::leaderless("{paused: true, failover: Manual, leader: demo-0, storage: {size: 1Gi}}", 3);
    scene.silence(0);
    let plan = scene.plan();
    assert_eq!(plan.leadership.as_ref().map(|why| why.reason), Some(Reason::ManualLeaderDown));
    scene.observed.foreign = vec![Foreign { kind: "Service", name: "demo".to_owned(), former: false }];
    let plan = scene.plan();
    assert_eq!((reason(&plan), plan.directive), (Some(Reason::NameTaken), None));
    let mut scene = Scene::leaderless("{paused: true, failover: Manual, storage: {size: 1Gi}}", 3);
    assert_eq!((scene.plan().directive, &scene.memory), (None, &Memory::default()), "nobody was told anything");
}

#[test]
fn a_name_that_is_taken_from_a_running_cluster_stops_writes_and_not_its_group() {
    let claim = Foreign { kind: "PersistentVolumeClaim", name: "data-demo-4".to_owned(), former: false };
    let mut scene = Scene::led("{replicas: 5, image: 'kvcluster/kv-node:2', storage: {size: 1Gi}}", 3, 1);
    scene.pod(0).spec_hash = Some("old".to_owned());
    scene.pod(0).role_label = Some("leader".to_owned());
    scene.pod(1).role_label = None;
    scene.observed.foreign = vec![claim.clone()];
    let plan = scene.plan();
    assert_eq!(roles(&plan), [("demo-0", Some("follower")), ("demo-1", Some("leader"))]);
    assert_eq!((reason(&plan), plan.ensure, plan.directive), (Some(Reason::NameTaken), vec![], None));
    let mut scene = Scene::leaderless("{failover: Manual, storage: {size: 1Gi}}", 3);
    scene.observed.foreign = vec![claim];
    scene.status(0).replica.tuning.heartbeat_timeout_ms = 2000;
    let plan = scene.plan();
    assert!(matches!(plan.directive, Some(Directive::Lead { .. })), "{plan:#?}");
    assert_eq!((reason(&plan), plan.tune.len()), (Some(Reason::NameTaken), 1));
    scene.observed.children.retain(|child| child.kind != Kind::StatefulSet);
    let plan = scene.later(5_000);
    assert_eq!((plan.directive, plan.tune, plan.labels), (None, vec![], vec![]), "the pods may be a stranger's");
}

#[test]
fn a_child_that_was_changed_or_deleted_by_hand_is_written_again() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.observed.children.retain(|child| child.kind != Kind::ConfigMap);
    let service = scene.observed.children.iter_mut().find(|child| child.name == "demo-leader").unwrap();
    service.object["spec"]["selector"]["kvcluster.dev/role"] = "follower".into();
    let written: Vec<String> = scene.plan().ensure.into_iter().map(|child| child.name).collect();
    assert_eq!(written, ["demo", "demo-leader"]);
}

#[test]
fn the_token_that_was_minted_stays() {
    let mut scene = Scene::nothing(SPEC);
    assert_eq!(scene.plan().ensure[0].object["data"]["token"], "ZHJhd24tdG9rZW4=");
    scene.settle_children(3);
    assert!(scene.plan().ensure.is_empty());
}

#[test]
fn the_image_of_a_cluster_without_one_stays_when_the_default_changes() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.draw.defaults.image = "kvcluster/kv-node:2".to_owned();
    let plan = scene.plan();
    assert_eq!((plan.image.as_str(), plan.ensure, plan.directive), (super::scene::IMAGE, vec![], None));
}

#[test]
fn pull_secrets_of_the_operator_are_for_clusters_that_name_none_and_restart_nobody() {
    let secrets = |scene: &mut Scene| {
        scene.draw.defaults.pull_secrets = vec!["site".to_owned()];
        let plan = scene.plan();
        let set = plan.ensure.iter().find(|child| child.kind == Kind::StatefulSet).cloned();
        (set.map(|set| set.object["spec"]["template"]["spec"]["imagePullSecrets"][0]["name"].clone()), plan.directive)
    };
    assert_eq!(secrets(&mut Scene::led(SPEC, 3, 1)), (Some("site".into()), None));
    let own = "{imagePullSecrets: [{name: own}], storage: {size: 1Gi}}";
    assert_eq!(secrets(&mut Scene::led(own, 3, 1)), (None, None), "nothing is to be written");
}

#[test]
fn nothing_is_written_while_a_name_is_taken() {
    let mut scene = Scene::nothing(SPEC);
    let foreign = Foreign { kind: "StatefulSet", name: "demo".to_owned(), former: false };
    scene.observed.foreign = vec![foreign.clone()];
    let plan = scene.plan();
    assert_eq!((reason(&plan), plan.ensure, plan.labels), (Some(Reason::NameTaken), vec![], vec![]));
    scene.observed.foreign = vec![Foreign { former: true, ..foreign }];
    let plan = scene.plan();
    assert_eq!((reason(&plan), plan.ensure), (Some(Reason::WaitingForOldChildren), vec![]));
}

#[test]
fn settings_of_the_group_are_changed_by_an_entry() {
    let mut scene = Scene::led("{historyLimit: 7, storage: {size: 1Gi}}", 3, 1);
    let Some(Directive::ChangeSettings { leader, change }) = scene.plan().directive else { panic!() };
    assert_eq!(leader.pod, "demo-1");
    assert_eq!((change.history_limit, change.dedup_expiry_seconds, change.dedup_limit), (Some(7), None, None));
}

#[test]
fn claims_grow_first_then_the_set_is_replaced_without_its_pods() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.desired.spec.storage.size.0 = "2Gi".to_owned();
    scene.desired.storage_bytes = 2 << 30;
    let plan = scene.plan();
    assert_eq!(plan.grow.len(), 3);
    assert!(!plan.replace_set && plan.ensure.iter().all(|child| child.kind != Kind::StatefulSet), "{plan:#?}");
    assert_eq!(reason(&plan), Some(Reason::Growing));
    scene.observed.claims.values_mut().for_each(|claim| claim.requested = 2 << 30);
    let plan = scene.plan();
    assert!(plan.grow.is_empty() && plan.replace_set);
    scene.observed.claims.values_mut().for_each(|claim| claim.capacity = Some(2 << 30));
    scene.observed.children.retain(|child| child.kind != Kind::StatefulSet);
    let plan = scene.plan();
    let set = plan.ensure.iter().find(|child| child.kind == Kind::StatefulSet).unwrap();
    assert_eq!(set.object["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"], "2Gi");
    assert!(!plan.replace_set);
}

#[test]
fn the_kept_claim_of_a_removed_pod_grows_when_the_pod_is_back_and_not_before() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.add_claim(3);
    scene.observed.claims.get_mut(&3).unwrap().requested = 1 << 20;
    scene.add_claim(4);
    scene.observed.claims.get_mut(&4).unwrap().capacity = Some(1 << 20);
    let plan = scene.plan();
    assert_eq!((plan.grow, plan.progress, plan.next), (vec![], None, AT_REST));
    scene.settle_children(4);
    let plan = scene.plan();
    assert_eq!((plan.grow[0].claim.as_str(), plan.grow.len()), ("data-demo-3", 1));
}

#[test]
fn a_full_disk_can_grow_while_nobody_answers() {
    let mut scene = Scene::led(SPEC, 3, 1);
    (0..3).for_each(|ordinal| scene.silence(ordinal));
    scene.desired.spec.storage.size.0 = "2Gi".to_owned();
    scene.desired.storage_bytes = 2 << 30;
    assert_eq!(scene.plan().grow.len(), 3);
}

#[test]
fn a_deposed_leader_that_went_silent_loses_the_label() {
    let mut scene = Scene::led(SPEC, 3, 1);
    scene.pod(0).role_label = Some("leader".to_owned());
    scene.silence(0);
    assert_eq!(roles(&scene.plan()), [("demo-0", None)]);
}

#[test]
fn a_deposed_leader_loses_the_label_before_another_gets_it() {
    let mut scene = Scene::led(SPEC, 3, 0);
    scene.pod(0).role_label = None;
    scene.pod(2).role_label = Some("leader".to_owned());
    scene.pod(2).terminating = true;
    assert_eq!(roles(&scene.plan()), [("demo-2", Some("follower")), ("demo-0", Some("leader"))]);
}

#[test]
fn labels_that_were_edited_are_put_back_on_pods_and_claims() {
    let mut scene = Scene::led(SPEC, 3, 0);
    let lost: BTreeMap<String, String> = [("app.kubernetes.io/instance".to_owned(), "demo".to_owned())].into();
    scene.pod(1).relabel = lost.clone();
    scene.observed.claims.get_mut(&2).unwrap().relabel = lost;
    let plan = scene.plan();
    let names: Vec<(Labelled, &str)> =
        plan.labels.iter().map(|relabel| (relabel.what, relabel.name.as_str())).collect();
    assert_eq!(names, [(Labelled::Pod, "demo-1"), (Labelled::Claim, "data-demo-2")]);
    assert_eq!(plan.labels[0].labels["app.kubernetes.io/instance"].as_deref(), Some("demo"));
    assert_eq!(plan.next, SOON);
}
