//! What befalls the leader alone: it is asked to hand over, deleted, killed, stopped.

use std::sync::Arc;

use kube::api::DeleteParams;
use serde_json::json;

use crate::faults::{Signal, signal};
use crate::scenario::{Report, Target};
use crate::suite::Suite;
use crate::trial::{Trial, timed};

/// Each of these is over in seconds; the longest pause of all rounds is reported.
const ROUNDS: usize = 3;

pub(crate) async fn switched_over(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
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
    trial.end().await
}

pub(crate) async fn killed(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    for _ in 0..ROUNDS {
        trial.open().await;
        let leader = trial.store.leader().await;
        signal(&trial.store, &leader, Signal::Kill).await;
        trial.another_leads(&leader).await;
        let pause_ms = trial.close(60, Target::Crash).await.pause_ms;
        trial.note(format!("pause {pause_ms} ms"));
    }
    trial.end().await
}

pub(crate) async fn stopped(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    for _ in 0..ROUNDS {
        trial.open().await;
        let leader = trial.store.leader().await;
        signal(&trial.store, &leader, Signal::Stop).await;
        trial.another_leads(&leader).await;
        signal(&trial.store, &leader, Signal::Cont).await;
        let pause_ms = trial.close(60, Target::Silence).await.pause_ms;
        trial.note(format!("pause {pause_ms} ms"));
    }
    trial.end().await
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
