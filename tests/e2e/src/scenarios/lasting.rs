//! What the data survives: the KvCluster deleted and created again, all pods gone at once, a majority of the
//! volumes lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::DeleteParams;
use kv_operator::crd::KvClusterStatus;
use serde_json::json;

use crate::kept::Kept;
use crate::load::Load;
use crate::scenario::{Report, Target};
use crate::store::{Store, because, condition, is};
use crate::suite::Suite;
use crate::trial::Trial;
use crate::waiting::eventually;

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
    trial.open().await;
    laggard_comes_first(&suite, &trial).await;
    trial.close(120, Target::Outage).await;
    trial.end().await
}

/// After an outage of all, the first pod that is back lacks what the other two acknowledged without it: it serves
/// nobody alone, and does not lead when the next one is back. Volumes stay on their hosts.
async fn laggard_comes_first(suite: &Suite, trial: &Trial) {
    let store = &trial.store;
    let (leader, laggard) = (store.leader().await, store.follower().await);
    let mut pods: Vec<String> = store.pods().await.iter().map(ResourceExt::name_any).collect();
    // The leader's host is the last to be cordoned: there is none to which leadership could be moved then.
    pods.sort_by_key(|pod| *pod == leader);
    let mut hosts = BTreeMap::new();
    for pod in &pods {
        let host = store.host(pod).await;
        suite.faults.cordon(&suite.kube, &host).await;
        hosts.insert(pod.clone(), host);
    }
    let at_once = DeleteParams::default().grace_period(0);
    store.replace_pod(&laggard, &at_once).await;
    // Its process goes on for a moment when the API has forgotten its pod.
    eventually("the leader misses it", 60, || store.misses(&leader, &laggard)).await;
    trial.load.flows(60).await;
    let others: Vec<&String> = pods.iter().filter(|pod| **pod != laggard).collect();
    for pod in &others {
        store.delete_pod(pod, &at_once).await;
    }
    // Their processes go on for a moment when the API has forgotten them.
    trial.load.rests(30).await;
    suite.faults.uncordon(&suite.kube, &hosts[&laggard]).await;
    eventually("the first pod answers", 60, || store.node_status(&laggard)).await;
    let written = trial.load.counted().await.written;
    kv_tests::pass(STANDING).await;
    let alone = store.node_status(&laggard).await.expect("it still answers");
    assert_ne!(alone["role"], "leader", "it does not lead alone: {alone}");
    assert_eq!(trial.load.counted().await.written, written, "nothing is written while two of three are away");
    store.wait("nobody leads", 30, |_, s| s.leader.is_none() && !is(s, "Available", "True")).await;
    suite.faults.uncordon(&suite.kube, &hosts[others[0]]).await;
    assert_ne!(store.leader().await, laggard, "who lacks acknowledged writes does not lead");
    suite.faults.uncordon(&suite.kube, &hosts[others[1]]).await;
}

/// How many keys are read back after each recovery.
const KEPT: usize = 100;

/// Nothing that was acknowledged before is lost: the survivor had it all. What a recovery may lose is written
/// while it is behind.
pub(crate) async fn majority_lost(suite: Arc<Suite>, name: &'static str) -> Report {
    let trial = Trial::start(&suite, name, json!({})).await;
    let (store, survivor) = (trial.store.clone(), trial.store.follower().await);
    let mut report = trial.end().await;
    Load::remove(&store).await;
    let kept = Kept::some(&store, KEPT).await;
    kept.are_on(&survivor).await;
    let lost = store.pods().await.into_iter().map(|pod| pod.name_any()).filter(|pod| *pod != survivor);
    let lost: Vec<String> = lost.collect();
    // The volume of one is away: its pod finds no host. That of the other is gone.
    let host = store.host(&lost[0]).await;
    suite.faults.cordon(&suite.kube, &host).await;
    store.replace_pod(&lost[0], &DeleteParams::default().grace_period(0)).await;
    store.lose_volume(&lost[1]).await;
    store.wait("the loss is reported", 120, |_, status| because(status, "Available", "QuorumLost")).await;
    let (cluster_id, epoch) = (store.status().await.cluster_id, store.status().await.epoch.expect("it had led"));
    // A copy of a former epoch decides nothing.
    store.patch(json!({"recovery": {"forceLeader": survivor, "acceptDataLossAtEpoch": epoch + 1}})).await;
    kv_tests::pass(STANDING).await;
    store.wait("nothing was done", 30, |_, status| !is(status, "Available", "True")).await;
    store.patch(json!({"recovery": {"forceLeader": survivor, "acceptDataLossAtEpoch": epoch}})).await;
    let is_voter = |status: &KvClusterStatus| status.members.iter().any(|m| m.name == lost[1] && m.voter && m.ready);
    store.wait("it is another group now", 120, |_, s| s.cluster_id != cluster_id && is_voter(s)).await;
    suite.faults.uncordon(&suite.kube, &host).await;
    former_member_returns(&suite, &store, &lost[0]).await;
    kept.are_there().await;
    let again = Trial::over(&store).await.end().await;
    report.acknowledged += again.acknowledged;
    report.lost += again.lost;
    lost_again(&store, &survivor, &lost).await;
    kept.are_there().await;
    report
}

/// With failover by hand, and an order that was carried out left in the spec: that does nothing, and one about the
/// present epoch is carried out.
async fn lost_again(store: &Store, survivor: &str, lost: &[String]) {
    store.patch(json!({"failover": "Manual", "leader": lost[0]})).await;
    store.wait("the pod in spec.leader leads", 60, |_, s| s.leader.as_ref() == Some(&lost[0])).await;
    store.healthy(60).await;
    let cluster_id = store.status().await.cluster_id;
    for pod in lost {
        store.lose_volume(pod).await;
    }
    store.wait("the loss is reported", 120, |_, status| because(status, "Available", "ManualLeaderDown")).await;
    kv_tests::pass(STANDING).await;
    store.wait("nothing was done", 5, |_, status| because(status, "Available", "ManualLeaderDown")).await;
    let epoch = store.status().await.epoch;
    assert_eq!(store.status().await.cluster_id, cluster_id, "a former order does nothing");
    store.patch(json!({"recovery": {"forceLeader": survivor, "acceptDataLossAtEpoch": epoch}})).await;
    store.healthy(180).await;
    assert_ne!(store.status().await.cluster_id, cluster_id, "it is another group now");
}

/// A member of the former group comes back with its volume: it stays outside and changes nothing, and the two
/// commands that the message shows make a member of its pod.
async fn former_member_returns(suite: &Suite, store: &Store, pod: &str) {
    let before = store.status().await;
    let is_outside = |status: &KvClusterStatus| {
        let member = status.members.iter().find(|member| member.name == pod);
        let said = member.and_then(|member| member.message.as_ref());
        said.is_some_and(|said| said.contains("it stays outside until its claim is deleted"))
            && because(status, "Progressing", "Replacing")
    };
    store.wait("it stays outside", 60, |_, status| is_outside(status)).await;
    kv_tests::pass(STANDING).await;
    store.wait("it still stays outside", 5, |_, s| is_outside(s) && is(s, "Available", "True")).await;
    let after = store.status().await;
    let of_group = |status: &KvClusterStatus| (status.cluster_id.clone(), status.leader.clone(), status.epoch);
    assert_eq!(of_group(&after), of_group(&before), "it changed nothing");
    let said = condition(&after, "Progressing").map(|progress| progress.message.as_str()).unwrap_or_default();
    let (_, commands) = said.split_once("as an empty member: ").expect("the message shows what to do");
    for command in commands.split("; ") {
        let arguments = command.strip_prefix("kubectl ").expect("both are of kubectl").split(' ');
        let arguments: Vec<&str> = arguments.chain(["--namespace", &store.namespace]).collect();
        suite.kube.must("kubectl", &arguments).await;
    }
    store.healthy(120).await;
}
