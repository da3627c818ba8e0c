//! What the data survives: the KvCluster deleted and created again, all pods gone at once, a majority of the
//! volumes lost.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::load::Load;
use crate::scenario::{Report, Target};
use crate::store::{because, is};
use crate::suite::Suite;
use crate::trial::Trial;

/// A cluster that may not be recovered has stood still for this long.
const STANDING: Duration = Duration::from_secs(5);

pub(crate) async fn recreated(suite: Arc<Suite>, name: &'static str) -> Report {
    recreated_with(&suite, name, 3).await
}

pub(crate) async fn recreated_smaller(suite: Arc<Suite>, name: &'static str) -> Report {
    recreated_with(&suite, name, 1).await
}

async fn recreated_with(suite: &Suite, name: &str, replicas: i32) -> Report {
    let mut trial = Trial::start(suite, name, json!({})).await;
    let member = trial.store.member_id("demo-0").await;
    trial.open().await;
    trial.store.delete().await;
    trial.store.create(json!({ "replicas": replicas })).await;
    trial.store.healthy(180).await;
    trial.close(60, Target::Outage).await;
    assert_eq!(trial.store.member_id("demo-0").await, member, "the volume is the former one");
    trial.end().await
}

pub(crate) async fn all_pods_deleted(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    trial.open().await;
    let at_once = DeleteParams::default().grace_period(0);
    for pod in trial.store.pods().await {
        trial.store.delete_pod(&pod.name_any(), &at_once).await;
    }
    trial.close(120, Target::Outage).await;
    trial.end().await
}

/// Nothing that was acknowledged before is lost: the survivor had it all. What a recovery may lose is written
/// while it is behind.
pub(crate) async fn majority_lost(suite: Arc<Suite>, name: &'static str) -> Report {
    let trial = Trial::start(&suite, name, json!({})).await;
    let (store, survivor) = (trial.store.clone(), trial.store.follower().await);
    let mut report = trial.end().await;
    Load::remove(&store).await;
    let lost = store.pods().await.into_iter().map(|pod| pod.name_any()).filter(|pod| *pod != survivor);
    for pod in lost.collect::<Vec<_>>() {
        store.lose_volume(&pod).await;
    }
    store.wait("the loss is reported", 120, |_, status| because(status, "Available", "QuorumLost")).await;
    let (cluster_id, epoch) = (store.status().await.cluster_id, store.status().await.epoch.expect("it had led"));
    // A copy of a former epoch decides nothing.
    store.patch(json!({"recovery": {"forceLeader": survivor, "acceptDataLossAtEpoch": epoch + 1}})).await;
    kv_tests::pass(STANDING).await;
    store.wait("nothing was done", 30, |_, status| !is(status, "Available", "True")).await;
    store.patch(json!({"recovery": {"forceLeader": survivor, "acceptDataLossAtEpoch": epoch}})).await;
    store.healthy(180).await;
    assert_ne!(store.status().await.cluster_id, cluster_id, "it is another group now");
    let again = Trial::over(&store).await.end().await;
    report.acknowledged += again.acknowledged;
    report.lost += again.lost;
    report
}
