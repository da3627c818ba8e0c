//! What befalls volumes: lost, full, grown.

use std::sync::Arc;

use serde_json::json;

use crate::kept::Kept;
use crate::scenario::{Report, Target};
use crate::store::{NAME, Store, because, is};
use crate::suite::Suite;
use crate::trial::Trial;
use crate::waiting::eventually;

/// Bytes of each value that fills a volume; the node's limit with a little room.
const FILLING_BYTES: usize = 1_000_000;
/// Values that more than fill the smallest volume that can grow everywhere.
const FILLINGS_MAX: usize = 600;

pub(crate) async fn lost_on_a_follower(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    trial.open().await;
    let pod = trial.store.follower().await;
    replaced(&trial.store, &pod).await;
    trial.close(120, Target::Planned).await;
    trial.store.describes(&["VoterRemoved", "VoterAdded"]).await;
    trial.end().await
}

pub(crate) async fn lost_on_the_leader(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    trial.open().await;
    let pod = trial.store.leader().await;
    replaced(&trial.store, &pod).await;
    trial.close(120, Target::Crash).await;
    trial.end().await
}

/// A pod loses its volume, and the group makes it a new member.
async fn replaced(store: &Store, pod: &str) {
    let lost = store.member_id(pod).await.expect("the member is reported");
    store.lose_volume(pod).await;
    eventually("another member has the pod's name", 120, || async {
        match store.member_id(pod).await {
            Some(found) if found != lost => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
}

pub(crate) async fn full_and_grown(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({"storage": {"size": "300Mi"}})).await;
    let before = trial.store.lives().await;
    trial.open().await;
    let kept = fill(&trial.store).await;
    let full = trial.load.counted().await.failures;
    trial.store.patch(json!({"storage": {"size": "600Mi"}})).await;
    trial.load.flows(120).await;
    trial.close(120, Target::Outage).await;
    kept.are_there().await;
    assert!(full.contains_key("storage_full"), "the client was told: {full:?}");
    assert_eq!(trial.store.lives().await, before, "no pod was restarted");
    trial.end().await
}

/// Until a write is refused for want of room.
async fn fill(store: &Store) -> Kept {
    let mut kept = Kept::new(store);
    for n in 0..FILLINGS_MAX {
        match kept.put(format!("filling-{n}"), format!("{n}: {}", "x".repeat(FILLING_BYTES))).await {
            Ok(()) => {}
            Err(said) if said.starts_with("507") => return kept,
            Err(said) => panic!("a write is refused for want of room alone: {said}"),
        }
    }
    panic!("{FILLINGS_MAX} writes of {FILLING_BYTES} bytes did not fill the volume");
}

/// Another than the default class, that is made for the suite: it does not grow.
const FIXED_CLASS: &str = "e2e-fixed";

/// What cannot grow is told, refused are sizes that shrink, and everything else goes on.
pub(crate) async fn cannot_grow(suite: Arc<Suite>, name: &'static str) -> Report {
    suite.kube.fixed_storage_class(FIXED_CLASS).await;
    let storage = |size: &str| json!({"storage": {"size": size, "storageClassName": FIXED_CLASS}});
    let mut trial = Trial::start(&suite, name, storage("300Mi")).await;
    let store = trial.store.clone();
    trial.open().await;
    for (spec, words) in [
        (storage("200Mi"), "size can grow and never shrink"),
        (json!({"storage": {"storageClassName": "other"}}), "cannot be changed"),
    ] {
        let patch = json!({ "spec": spec }).to_string();
        let arguments =
            ["patch", "kvcluster", NAME, "--type=merge", "--patch", &patch, "--namespace", &store.namespace];
        let said = store.kube.program("kubectl", &arguments).await.expect_err("the spec is refused");
        assert!(said.contains(words), "{said}");
    }
    store.patch(storage("400Mi")).await;
    store.wait("it cannot grow", 30, |_, status| because(status, "SpecInvalid", "StorageCannotGrow")).await;
    let next = store.follower().await;
    store.patch(json!({ "leader": next, "historyLimit": 7, "resources": {"requests": {"cpu": "1m"}} })).await;
    store
        .wait("everything else is done", 180, |_, status| {
            status.updated_replicas == 3 && status.ready_replicas == 3 && is(status, "QuorumHealthy", "True")
        })
        .await;
    trial.measure(Target::Planned).await;
    let verdict = trial.end().await;
    suite.kube.must("kubectl", &["delete", "storageclass", FIXED_CLASS]).await;
    verdict
}
