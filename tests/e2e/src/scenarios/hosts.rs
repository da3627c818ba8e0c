//! What befalls the host of the leader, or the API server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::Api;
use kv_tests::pass;
use serde_json::json;

use crate::faults::{HostFault, Sending, Signal, signal};
use crate::scenario::{Report, Target};
use crate::store::NAME;
use crate::suite::Suite;
use crate::trial::Trial;
use crate::waiting::eventually;

/// How long the API server is away.
const API_DOWN: Duration = Duration::from_secs(60);
/// When the leader is killed or stopped, from the start of the pod that does it: the API server is gone by then.
const INTO_API_DOWN: Duration = Duration::from_secs(20);
/// When a stopped one goes on, likewise: the API server is still away, and no liveness probe (five of ten seconds) has
/// ended it.
const GOES_ON: Duration = Duration::from_secs(30);

pub(crate) async fn stopped(suite: Arc<Suite>, name: &'static str) -> Report {
    broken(&suite, name, HostFault::Stop).await
}

pub(crate) async fn paused(suite: Arc<Suite>, name: &'static str) -> Report {
    broken(&suite, name, HostFault::Pause).await
}

pub(crate) async fn cut(suite: Arc<Suite>, name: &'static str) -> Report {
    broken(&suite, name, HostFault::Cut).await
}

async fn broken(suite: &Suite, name: &str, fault: HostFault) -> Report {
    let mut trial = Trial::start(suite, name, json!({})).await;
    trial.open().await;
    let leader = trial.store.leader().await;
    let host = trial.store.host(&leader).await;
    suite.faults.break_host(fault, &host).await;
    trial.another_leads(&leader).await;
    // For a while the pod of the former leader still counts as ready.
    trial.store.leader_service().await;
    trial.load.flows(30).await;
    suite.faults.mend_host(fault, &host).await;
    trial.close(180, Target::Silence).await;
    trial.end().await
}

pub(crate) async fn drained(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    trial.open().await;
    let leader = trial.store.leader().await;
    let host = trial.store.host(&leader).await;
    suite.faults.drain(&suite.kube, &host).await;
    trial.another_leads(&leader).await;
    trial.load.flows(30).await;
    suite.faults.uncordon(&suite.kube, &host).await;
    trial.close(120, Target::Planned).await;
    cordoned(&suite, &mut trial).await;
    evicted(&trial).await;
    trial.end().await
}

/// While a member stands still, no other may be evicted, and it may. What clients feel of it is not measured: whoever
/// asks the one that stands still waits for the end of his own attempt.
async fn evicted(trial: &Trial) {
    let store = trial.store.clone();
    let status = store.status().await;
    let [still, other] = &status.followers[..] else { panic!("two follow: {:?}", status.followers) };
    signal(&store, still, Signal::Stop).await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(store.kube.client.clone(), &store.namespace);
    eventually("the budget is used up", 30, || async {
        let budget = budgets.get(NAME).await.map_err(|error| error.to_string())?.status;
        match budget.as_ref().map(|budget| (budget.disruptions_allowed, budget.current_healthy)) {
            Some((0, 2)) => Ok(()),
            _ => Err(format!("{budget:?}")),
        }
    })
    .await;
    store.evicts_no_other(other).await;
    store.evict(still).await.expect("the one that serves nobody may go");
    signal(&store, still, Signal::Cont).await;
    trial.load.flows(60).await;
    store.healthy(120).await;
}

/// Leadership moves before anything is evicted.
async fn cordoned(suite: &Suite, trial: &mut Trial) {
    trial.open().await;
    let (leader, before) = (trial.store.leader().await, trial.store.lives().await);
    let host = trial.store.host(&leader).await;
    suite.faults.cordon(&suite.kube, &host).await;
    trial.another_leads(&leader).await;
    suite.faults.uncordon(&suite.kube, &host).await;
    trial.close(60, Target::Planned).await;
    assert_eq!(trial.store.lives().await, before, "no pod was restarted");
}

/// Failover needs neither the API server nor the operator.
pub(crate) async fn api_down(suite: Arc<Suite>, name: &'static str) -> Report {
    without_api_server(&suite, name, &[(Signal::Kill, INTO_API_DOWN)], Target::Crash).await
}

pub(crate) async fn api_down_in_silence(suite: Arc<Suite>, name: &'static str) -> Report {
    let to_leader = [(Signal::Stop, INTO_API_DOWN), (Signal::Cont, GOES_ON)];
    without_api_server(&suite, name, &to_leader, Target::Silence).await
}

async fn without_api_server(suite: &Suite, name: &str, to_leader: &[(Signal, Duration)], target: Target) -> Report {
    let mut trial = Trial::start(suite, name, json!({})).await;
    trial.open().await;
    let leader = trial.store.leader().await;
    let mut sent = Vec::new();
    for (signal, after) in to_leader {
        sent.push(Sending::start(&trial.store, &leader, *signal, *after).await);
    }
    suite.faults.stop_api_server().await;
    let began = Instant::now();
    pass(API_DOWN.saturating_sub(began.elapsed())).await;
    suite.faults.start_api_server().await;
    for sending in sent {
        sending.end().await;
    }
    trial.another_leads(&leader).await;
    trial.close(120, target).await;
    trial.end().await
}
