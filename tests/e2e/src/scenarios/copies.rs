//! Old copies of volumes that come back, as a restored snapshot does: they must not count before they hold what was
//! acknowledged since, and overwrite nothing.

use std::sync::Arc;
use std::time::Duration;

use kv_operator::crd::{KvClusterStatus, MemberReport};
use kv_tests::pass;
use serde_json::json;

use crate::copies::Copy;
use crate::faults::{Signal, signal};
use crate::scenario::{Report, Target};
use crate::store::Store;
use crate::suite::Suite;
use crate::trial::Trial;

/// Of a follower, and of the leader. At the end one that came back leads, so that it is what everything is read from.
pub(crate) async fn put_back(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let store = trial.store.clone();
    let (former_leader, follower) = (store.leader().await, store.follower().await);
    outdated(&suite, &mut trial, &follower, &former_leader).await;
    outdated(&suite, &mut trial, &former_leader, &follower).await;
    leads(&store, &former_leader).await;
    let report = trial.end().await;
    store
        .wait("all hold the same", 30, |_, status| {
            status.members.iter().all(|member| {
                let positions = |m: &MemberReport| (m.last_id, m.durable_id, m.lag_entries);
                positions(member) == positions(&status.members[0]) && member.lag_entries == Some(0)
            })
        })
        .await;
    report
}

/// For how long nothing is confirmed by it.
const STANDING: Duration = Duration::from_secs(3);

/// A copy of a pod's volume is made, another one leads and goes on, and the copy comes back while the third stands
/// still: what has forgotten what it promised makes no majority.
async fn outdated(suite: &Suite, trial: &mut Trial, pod: &str, next: &str) {
    let store = trial.store.clone();
    let copy = Copy::of(&store, pod).await;
    leads(&store, next).await;
    trial.load.flows(60).await;
    store.healthy(60).await;
    let members = store.status().await.members;
    let mut others = members.into_iter().map(|member| member.name);
    let third = others.find(|name| name != pod && name != next).expect("there are three");
    trial.open().await;
    copy.put_back(suite).await;
    signal(&store, &third, Signal::Stop).await;
    copy.start(suite).await;
    let is_told = |status: &KvClusterStatus| status.members.iter().any(|m| m.name == pod && is_quarantined(m));
    store.wait("the copy is told from its original", 30, |_, status| is_told(status)).await;
    let before = trial.load.counted().await.written;
    pass(STANDING).await;
    assert_eq!(trial.load.counted().await.written, before, "it makes no majority");
    signal(&store, &third, Signal::Cont).await;
    trial.close(120, Target::Outage).await;
}

fn is_quarantined(member: &MemberReport) -> bool {
    member.message.as_ref().is_some_and(|message| message.contains("a copied or restored volume"))
}

async fn leads(store: &Store, pod: &str) {
    store.patch(json!({ "leader": pod })).await;
    store.wait(&format!("{pod} leads"), 60, |_, status| status.leader.as_deref() == Some(pod)).await;
}
