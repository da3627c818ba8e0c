//! What befalls the leader alone: it is asked to hand over, deleted, killed, stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::DeleteParams;
use kv_operator::crd::KvClusterStatus;
use serde_json::json;

use crate::faults::{Signal, signal};
use crate::scenario::{Report, Target};
use crate::store::{because, condition, is};
use crate::suite::Suite;
use crate::trial::{Trial, timed};
use crate::waiting::eventually;

/// Each of these is over in seconds; the longest pause of all rounds is reported.
const ROUNDS: u64 = 3;
/// What the operator counts: leadership moved at its word, by reason, and without it.
const SWITCHOVERS: &str = "kv_operator_switchovers_total";
const BY_SPEC: &str = r#"{reason="spec.leader"}"#;
const FAILOVERS: &str = "kv_operator_failovers_total";
/// Long enough for anybody to have been told to lead, and shorter than it takes a liveness probe to end a node.
const NOBODY_LEADS: Duration = Duration::from_secs(5);

pub(crate) async fn switched_over(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let asked = suite.operator.counter(SWITCHOVERS, BY_SPEC).await;
    for _ in 0..ROUNDS {
        trial.open().await;
        let next = trial.store.follower().await;
        let took = timed(async {
            trial.store.patch(json!({ "leader": next })).await;
            let leads = |leader: &Option<String>| leader.as_ref() == Some(&next);
            trial.store.wait("the pod in spec.leader leads", 30, |_, status| leads(&status.leader)).await;
        });
        let took = took.await;
        let pause_ms = trial.close(30, Target::Planned).await.pause_ms;
        trial.note(format!("reported after {:.1} s, pause {pause_ms} ms", took.as_secs_f64()));
    }
    assert_eq!(suite.operator.counter(SWITCHOVERS, BY_SPEC).await, asked + ROUNDS, "each is counted");
    trial.store.describes(&["LeaderChanged"]).await;
    trial.end().await
}

pub(crate) async fn killed(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let counted = suite.operator.counter(FAILOVERS, "").await;
    for _ in 0..ROUNDS {
        trial.open().await;
        let leader = trial.store.leader().await;
        signal(&trial.store, &leader, Signal::Kill).await;
        trial.told_that_another_leads(&leader).await;
        let pause_ms = trial.close(60, Target::Crash).await.pause_ms;
        trial.note(format!("pause {pause_ms} ms"));
    }
    assert_eq!(suite.operator.counter(FAILOVERS, "").await, counted + ROUNDS, "each is counted");
    trial.store.describes(&["LeaderChanged"]).await;
    trial.end().await
}

pub(crate) async fn stopped(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    for _ in 0..ROUNDS {
        trial.open().await;
        let leader = trial.store.leader().await;
        signal(&trial.store, &leader, Signal::Stop).await;
        trial.told_that_another_leads(&leader).await;
        // The pod of the former leader still counts as ready.
        trial.store.leader_service().await;
        signal(&trial.store, &leader, Signal::Cont).await;
        let pause_ms = trial.close(60, Target::Silence).await.pause_ms;
        trial.note(format!("pause {pause_ms} ms"));
    }
    trial.end().await
}

/// Nobody leads until a person says who; and with no order given, the operator does.
pub(crate) async fn manual(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({"failover": "Manual", "leader": "demo-0"})).await;
    let store = trial.store.clone();
    assert_eq!(store.leader().await, "demo-0");
    trial.open().await;
    signal(&store, "demo-0", Signal::Stop).await;
    store.wait("it is told that nobody leads", 20, |_, s| because(s, "Available", "ManualLeaderDown")).await;
    let conditions = store.status().await.conditions;
    let said = &conditions.iter().find(|c| c.type_ == "Available").expect("it was just seen").message;
    assert!(said.contains("kubectl patch kvcluster demo"), "the message names the patch: {said}");
    // An order to recover hides nothing, and waits: a majority answers, which could elect.
    let (cluster_id, epoch) = (store.status().await.cluster_id, store.status().await.epoch);
    store.patch(json!({"recovery": {"forceLeader": "demo-2", "acceptDataLossAtEpoch": epoch}})).await;
    kv_tests::pass(NOBODY_LEADS).await;
    store
        .wait("nobody was told to lead, or recovered", 5, |_, status| {
            status.leader.is_none()
                && status.cluster_id == cluster_id
                && because(status, "Available", "ManualLeaderDown")
                && because(status, "Progressing", "Recovering")
        })
        .await;
    store.patch(json!({ "leader": "demo-1" })).await;
    store.wait("the pod that was named leads", 30, |_, s| s.leader.as_deref() == Some("demo-1")).await;
    trial.load.flows(30).await;
    signal(&store, "demo-0", Signal::Cont).await;
    trial.close(60, Target::Outage).await;
    trial.open().await;
    store.patch(json!({ "leader": null, "recovery": null })).await;
    store.wait("no order is given any more", 30, |_, s| is(s, "Progressing", "False")).await;
    signal(&store, "demo-1", Signal::Stop).await;
    trial.another_leads("demo-1").await;
    signal(&store, "demo-1", Signal::Cont).await;
    trial.close(60, Target::Outage).await;
    trial.end().await
}

/// How long the pod in `spec.leader` must have been fit, once it has lost leadership.
const STEADY: Duration = Duration::from_secs(60);

/// Leadership goes back to `spec.leader` by itself, and not too early. Meanwhile a member that stands still is still
/// one, and an order to recover does nothing.
pub(crate) async fn returns(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({"leader": "demo-0"})).await;
    let store = trial.store.clone();
    assert_eq!(store.leader().await, "demo-0");
    trial.open().await;
    store.replace_pod("demo-0", &DeleteParams::default()).await;
    trial.another_leads("demo-0").await;
    let lost = Instant::now();
    trial.close(60, Target::Planned).await;
    trial.open().await;
    one_stopped(&mut trial).await;
    trial.close(60, Target::Outage).await;
    trial.open().await;
    // A hand-over that does not succeed, on a crowded machine, is tried again after twice as long.
    store.wait("leadership returns", 240, |_, status| status.leader.as_deref() == Some("demo-0")).await;
    let returned = lost.elapsed();
    assert!(returned >= STEADY, "it was given back after {returned:?}");
    trial.close(30, Target::Planned).await;
    trial.note(format!("leadership returned {:.0} s after it was lost", returned.as_secs_f64()));
    trial.end().await
}

/// Entries; who lacks more of them is told to lag.
const FAR_BEHIND: u64 = 1000;

async fn one_stopped(trial: &mut Trial) {
    let store = &trial.store.clone();
    let before = store.status().await;
    let leader = before.leader.as_ref().expect("it was just healthy");
    let stopped = before.followers.iter().find(|pod| *pod != "demo-0").expect("two pods follow");
    signal(store, stopped, Signal::Stop).await;
    let names_it = |status: &KvClusterStatus, kind: &str| {
        condition(status, kind).is_some_and(|condition| condition.message.contains(stopped))
    };
    let is_missing = |status: &KvClusterStatus| {
        because(status, "QuorumHealthy", "MembersMissing") && names_it(status, "QuorumHealthy")
    };
    trial.told(&format!("{stopped} is missing"), |_, status| is_missing(status)).await;
    store.patch(json!({"recovery": {"forceLeader": "demo-0", "acceptDataLossAtEpoch": before.epoch}})).await;
    eventually("the leader records that it is far behind", 30, || async {
        let told = store.node_status(leader).await?;
        let members = told["members"].as_array().into_iter().flatten();
        let lag = members.filter(|member| member["name"] == **stopped).find_map(|member| member["lag"].as_u64());
        if lag > Some(FAR_BEHIND) { Ok(()) } else { Err(format!("{lag:?}")) }
    })
    .await;
    let lags = |status: &KvClusterStatus| because(status, "Degraded", "MemberLagging") && names_it(status, "Degraded");
    trial.told(&format!("{stopped} lags"), |_, status| lags(status)).await;
    kv_tests::pass(NOBODY_LEADS).await;
    let after = store.status().await;
    assert_eq!((&after.cluster_id, after.epoch), (&before.cluster_id, before.epoch), "nothing was recovered");
    assert_eq!((&after.leader, &after.followers), (&before.leader, &before.followers), "it still follows");
    signal(store, stopped, Signal::Cont).await;
    store.patch(json!({ "recovery": null })).await;
}

pub(crate) async fn deleted(suite: Arc<Suite>, name: &'static str) -> Report {
    pod_deleted(&suite, name, &DeleteParams::default(), Target::Planned).await
}

pub(crate) async fn force_deleted(suite: Arc<Suite>, name: &'static str) -> Report {
    pod_deleted(&suite, name, &DeleteParams::default().grace_period(0), Target::Crash).await
}

async fn pod_deleted(suite: &Suite, name: &str, how: &DeleteParams, target: Target) -> Report {
    let mut trial = Trial::start(suite, name, json!({})).await;
    for _ in 0..ROUNDS {
        trial.open().await;
        let leader = trial.store.leader().await;
        trial.store.replace_pod(&leader, how).await;
        let pause_ms = trial.close(60, target).await.pause_ms;
        trial.note(format!("pause {pause_ms} ms"));
    }
    trial.end().await
}
