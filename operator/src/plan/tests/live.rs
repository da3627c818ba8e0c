//! Settings that are changed while nodes run.

use kv_core::status::Failover;

use super::*;
use crate::plan::live::NodeTuning;

const SLOW: &str = "{heartbeat: {interval: 5s, timeout: 20s}, storage: {size: 1Gi}}";

/// The nodes take on what they are told.
fn obey(scene: &mut Scene, plan: &Plan) {
    for tuning in &plan.tune {
        let ordinal = scene.desired.identity.ordinal(&tuning.pod).unwrap();
        let status = scene.status(ordinal);
        let present = &mut status.replica.tuning;
        present.heartbeat_interval_ms = tuning.heartbeat_interval_ms.unwrap_or(present.heartbeat_interval_ms);
        present.heartbeat_timeout_ms = tuning.heartbeat_timeout_ms.unwrap_or(present.heartbeat_timeout_ms);
        present.failover = tuning.failover.unwrap_or(present.failover);
        status.disk.limit_bytes = tuning.storage_limit_bytes.or(status.disk.limit_bytes);
        status.compaction = tuning.compaction.unwrap_or(status.compaction);
    }
}

/// A cluster at rest whose spec has become another one.
fn changed(spec: &str) -> Scene {
    let mut scene = Scene { desired: Scene::nothing(spec).desired, ..Scene::led(SPEC, 3, 1) };
    scene.settle_children(3);
    scene
}

fn tuned(plan: &Plan, what: impl Fn(&NodeTuning) -> bool) -> usize {
    plan.tune.iter().filter(|tuning| what(tuning)).count()
}

#[test]
fn slower_heartbeats_wait_until_everybody_is_patient_enough() {
    let mut scene = changed(SLOW);
    let first = scene.plan();
    assert_eq!(tuned(&first, |t| t.heartbeat_timeout_ms == Some(20_000)), 3);
    assert_eq!(tuned(&first, |t| t.heartbeat_interval_ms.is_some()), 0, "{:#?}", first.tune);
    assert_eq!(first.next, SOON);
    obey(&mut scene, &first);
    scene.status(2).replica.tuning.heartbeat_timeout_ms = 1000;
    let refused = scene.plan();
    assert_eq!(tuned(&refused, |t| t.heartbeat_interval_ms.is_some()), 0, "demo-2 would campaign");
    obey(&mut scene, &refused);
    let second = scene.plan();
    assert_eq!(tuned(&second, |t| t.heartbeat_interval_ms == Some(5000)), 3);
    obey(&mut scene, &second);
    assert_eq!((scene.plan().tune, scene.plan().next), (vec![], AT_REST));
}

#[test]
fn quicker_heartbeats_come_before_less_patience() {
    let mut scene = Scene { desired: Scene::nothing(SPEC).desired, ..Scene::led(SLOW, 3, 1) };
    let first = scene.plan();
    assert_eq!(tuned(&first, |t| t.heartbeat_interval_ms == Some(100) && t.heartbeat_timeout_ms.is_none()), 3);
    obey(&mut scene, &first);
    assert_eq!(tuned(&scene.plan(), |t| t.heartbeat_timeout_ms == Some(1000)), 3);
}

#[test]
fn only_what_differs_is_sent_and_nobody_restarts_for_it() {
    let mut scene = changed("{failover: Manual, compaction: {interval: 2h, minInterval: 30s}, storage: {size: 1Gi}}");
    scene.status(0).replica.tuning.failover = Failover::Manual;
    let plan = scene.plan();
    assert_eq!(tuned(&plan, |t| t.failover == Some(Failover::Manual)), 2);
    let schedule = |t: &NodeTuning| t.compaction.map(|c| (c.enabled, c.interval_seconds, c.min_interval_seconds));
    assert_eq!(tuned(&plan, |t| schedule(t) == Some((true, 7200, 30))), 3);
    assert_eq!(tuned(&plan, |t| t.heartbeat_interval_ms.is_some() || t.storage_limit_bytes.is_some()), 0);
    assert_eq!((plan.directive, plan.updated), (None, 3));
}

#[test]
fn a_volume_that_has_grown_raises_the_limit_of_its_node_and_not_before() {
    let mut scene = changed("{storage: {size: 200M}}");
    scene
        .observed
        .claims
        .values_mut()
        .for_each(|claim| (claim.requested, claim.capacity) = (200_000_000, Some(100_000_000)));
    scene.observed.claims.get_mut(&2).unwrap().capacity = Some(200_000_000);
    let limits: Vec<Option<u64>> = scene.plan().tune.iter().map(|tuning| tuning.storage_limit_bytes).collect();
    assert_eq!(limits, [Some(80_000_000), Some(80_000_000), Some(160_000_000)]);
}

#[test]
fn a_node_that_says_nothing_or_belongs_to_another_group_is_not_tuned() {
    let mut scene = changed("{failover: Manual, storage: {size: 1Gi}}");
    scene.silence(0);
    scene.status(2).replica.cluster_id = Some(ClusterId::new("other").unwrap());
    let told: Vec<String> = scene.plan().tune.into_iter().map(|tuning| tuning.pod).collect();
    assert_eq!(told, ["demo-1"]);
}

#[test]
fn settings_of_the_group_do_not_wait_for_a_scale_down_that_cannot_go_on() {
    let mut scene = Scene::led("{replicas: 1, historyLimit: 7, storage: {size: 1Gi}}", 3, 0);
    scene.silence(1);
    let plan = scene.plan();
    assert!(matches!(plan.directive, Some(Directive::ChangeSettings { .. })), "{plan:#?}");
    assert_eq!(reason(&plan), Some(Reason::ScaleDownUnsafe));
}

#[test]
fn a_paused_cluster_is_not_tuned() {
    assert_eq!(changed("{paused: true, failover: Manual, storage: {size: 1Gi}}").plan().tune, []);
}
