//! Watches, and what a reconcile is: observe, validate, plan, apply, report. Holds what is remembered
//! between two reconciles and the policy for errors; decides nothing about clusters itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use kv_core::group::ClusterId;

use crate::apply::{Applied, Switched, apply, write_status};
use crate::crd::KvCluster;
use crate::error::Error;
use crate::events;
use crate::metrics::Metrics;
use crate::names::{FIELD_MANAGER, Identity};
use crate::node_client::NodeClient;
use crate::observe::{Sources, observe};
use crate::observed::Observed;
use crate::plan::{self, Defaults, Draw, Memory};
use crate::report;
use crate::validate::{self, Problem, Validated};
use crate::watches::{self, Caches};

/// Pauses after errors, from the first to the longest: what cannot be written makes nothing else late.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), plan::AT_REST);
/// After a conflict: the watch brings what somebody else wrote well within this.
const AFTER_CONFLICT: Duration = Duration::from_millis(200);
/// So many in a row; more of them are no race, and are told.
const CONFLICTS_MAX: u32 = 5;
/// How often a start looks whether the caches are filled.
const UNTIL_FILLED: Duration = Duration::from_millis(100);
/// Clusters that are reconciled at once: one that waits for its nodes delays no other.
const CONCURRENCY: u16 = 16;

pub(crate) type Guarded = DeserializeGuard<KvCluster>;

/// What every reconcile shares.
pub struct Context {
    sources: Sources,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    defaults: Defaults,
    started: Instant,
    remembered: Mutex<HashMap<String, Remembered>>,
}

/// Of one cluster, by the uid of its KvCluster.
#[derive(Debug, Default, Clone)]
struct Remembered {
    memory: Memory,
    /// The token as it was last seen: a Secret that was deleted by hand comes back as it was.
    token: Option<String>,
    reported: Option<Instant>,
    failures: u32,
    leadership: Leadership,
}

/// Who led last, to tell a failover from a change that was asked for.
#[derive(Debug, Default, Clone)]
struct Leadership {
    last: Option<String>,
    lost: Option<Instant>,
    expected: Option<String>,
}

impl Leadership {
    fn expect(&mut self, pod: String) {
        self.expected = Some(pod);
    }

    /// `before`: as was reported last, for a process that is new. Some: it was a failover; for how long nobody led.
    fn note(&mut self, before: Option<&str>, leader: Option<&str>, now: Instant) -> Option<Duration> {
        let last = self.last.take().or_else(|| before.map(str::to_owned));
        let Some(leader) = leader else {
            self.lost = last.as_ref().and(self.lost.or(Some(now)));
            self.last = last;
            return None;
        };
        let (lost, expected) = (self.lost.take(), self.expected.take_if(|expected| expected == leader));
        let changed = last.is_some_and(|last| last != leader);
        self.last = Some(leader.to_owned());
        (changed && expected.is_none()).then(|| lost.map_or(Duration::ZERO, |lost| now - lost))
    }
}

/// What the operator was started with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Empty: all namespaces.
    pub namespaces: Vec<String>,
    /// For clusters that name none.
    pub defaults: Defaults,
}

/// What is worked on: all namespaces, or one. The watches begin when it is run.
pub struct Watched {
    controller: Controller<Guarded>,
    pub clusters: Clusters,
    caches: Caches,
}

/// Clusters as they were seen last; one that cannot be read keeps none of the others from being seen.
pub type Clusters = Store<Guarded>;

impl Context {
    pub fn new(sources: Sources, metrics: Arc<Metrics>, options: &Options) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: std::env::var("HOSTNAME").ok() };
        Self {
            recorder: Recorder::new(sources.client.clone(), reporter),
            sources,
            metrics,
            defaults: options.defaults.clone(),
            started: Instant::now(),
            remembered: Mutex::default(),
        }
    }

    /// Cannot be poisoned in a way that matters: what is remembered costs only time when it is lost.
    fn remembered(&self, uid: &str) -> Remembered {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(uid).cloned().unwrap_or_default()
    }

    fn remember(&self, uid: &str, change: impl FnOnce(&mut Remembered)) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        change(remembered.entry(uid.to_owned()).or_default());
    }

    /// Of clusters that are gone, nothing is kept.
    fn forget_all_but(&self, clusters: &Clusters) {
        let uids: Vec<String> = clusters.state().iter().filter_map(|cluster| cluster.meta().uid.clone()).collect();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.retain(|uid, _| uids.contains(uid));
    }

    fn draw(&self, remembered: &Remembered) -> Draw {
        Draw {
            now_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            cluster_id: ClusterId::new(&random_hex()).expect("hexadecimal digits are legal in an id"),
            token: remembered.token.clone().unwrap_or_else(|| format!("{}{}", random_hex(), random_hex())),
            defaults: self.defaults.clone(),
        }
    }
}

/// 128 bits.
fn random_hex() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    format!("{:032x}", u128::from_be_bytes(bytes))
}

/// One for all namespaces, or one for each that is named.
pub fn watched(client: &Client, options: &Options) -> Vec<Watched> {
    match options.namespaces.as_slice() {
        [] => vec![Watched::new(client, None)],
        namespaces => namespaces.iter().map(|namespace| Watched::new(client, Some(namespace))).collect(),
    }
}

impl Watched {
    fn new(client: &Client, namespace: Option<&str>) -> Self {
        let api: Api<Guarded> = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let (caches, triggers) = watches::start(client, namespace);
        let controller = Controller::new(api, watcher::Config::default())
            .with_config(kube::runtime::controller::Config::default().concurrency(CONCURRENCY))
            .reconcile_on(triggers);
        Self { clusters: controller.store(), controller, caches }
    }
}

/// Runs until the process is asked to end, and what is under way is done.
pub async fn run(
    client: &Client,
    watched: Vec<Watched>,
    metrics: &Arc<Metrics>,
    options: &Options,
    asked_to_end: impl Future<Output = ()> + Clone + Send + Sync + 'static,
) {
    let results = watched.into_iter().map(|Watched { controller, clusters, caches }| {
        let sources = Sources { client: client.clone(), nodes: NodeClient::default(), caches };
        let context = Arc::new(Context::new(sources, Arc::clone(metrics), options));
        let controller = controller.graceful_shutdown_on(asked_to_end.clone());
        controller.run(reconcile, retry, Arc::clone(&context)).for_each(move |_| {
            context.forget_all_but(&clusters);
            std::future::ready(())
        })
    });
    join_all(results).await;
}

/// One cluster, once. Ends in an action for later; never sleeps.
async fn reconcile(guarded: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let cluster = match &guarded.0 {
        Ok(cluster) => cluster,
        Err(invalid) => {
            tracing::warn!(name = ?invalid.metadata.name, error = %invalid.error, "a KvCluster cannot be read");
            events::unreadable(&context.recorder, guarded.as_ref(), &invalid.error).await;
            return Ok(Action::await_change());
        }
    };
    if cluster.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    if !context.sources.caches.are_filled() {
        return Ok(Action::requeue(UNTIL_FILLED));
    }
    let (began, uid) = (Instant::now(), cluster.uid().unwrap_or_default());
    let result = five_verbs(cluster, &context).await;
    context.metrics.reconciled(began.elapsed(), result.as_ref().err());
    if result.is_ok() {
        context.remember(&uid, |remembered| remembered.failures = 0);
    }
    result.map(Action::requeue)
}

pub(crate) async fn five_verbs(cluster: &KvCluster, context: &Context) -> Result<Duration, Error> {
    let uid = cluster.uid().unwrap_or_default();
    let remembered = context.remembered(&uid);
    let observed = observe(&context.sources, cluster).await?;
    let Validated { desired, problems } = validate::validate(cluster);
    let plan = match desired {
        Some(desired) => plan::plan(&desired, &observed, &remembered.memory, &context.draw(&remembered)),
        // What runs goes on as it is.
        None => plan::look(&Identity::of(cluster), &cluster.spec, &observed, &remembered.memory),
    };
    let (next, token) = (plan.next, observed.token());
    let applied = apply(&context.sources, cluster, token.clone(), plan).await;
    context.remember(&uid, |remembered| {
        remembered.memory = applied.memory.clone();
        remembered.token = token.or(remembered.token.take());
    });
    if let Some(Switched { to, why, took }) = applied.switched.clone() {
        context.metrics.switched(why, took);
        context.remember(&uid, |remembered| remembered.leadership.expect(to));
    }
    if let Some(pod) = &applied.restarted {
        events::restarted(&context.recorder, cluster, pod).await;
    }
    report(cluster, context, &observed, &applied, &problems).await?;
    applied.error.map_or(Ok(next), Err)
}

async fn report(
    cluster: &KvCluster,
    context: &Context,
    observed: &Observed,
    applied: &Applied,
    problems: &[Problem],
) -> Result<(), Error> {
    let uid = cluster.uid().unwrap_or_default();
    let old = applied.cluster.status.clone().unwrap_or_default();
    let now = Time(Timestamp::now());
    let status = report::status(&Identity::of(cluster), observed, applied, problems, &now);
    context.remember(&uid, |remembered| {
        let (before, now) = (old.leader.as_deref(), status.leader.as_deref());
        if let Some(leaderless) = remembered.leadership.note(before, now, Instant::now()) {
            context.metrics.failed_over(leaderless);
        }
    });
    let since = context.remembered(&uid).reported.map(|at| at.elapsed());
    let Some(changed) = report::changed(&applied.cluster, status, since) else { return Ok(()) };
    let written = write_status(&context.sources.client, &changed).await?;
    context.remember(&uid, |remembered| remembered.reported = Some(Instant::now()));
    events::publish(&context.recorder, &written, &old).await;
    Ok(())
}

/// A conflict is tried again with what is there now; the rest with growing pauses.
fn retry(guarded: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let uid = guarded.meta().uid.clone().unwrap_or_default();
    let mut failures = 0;
    context.remember(&uid, |remembered| {
        remembered.failures = remembered.failures.saturating_add(1);
        failures = remembered.failures;
    });
    if let Error::Conflict { what } = error
        && failures <= CONFLICTS_MAX
    {
        tracing::debug!(what, "somebody else wrote meanwhile");
        return Action::requeue(AFTER_CONFLICT);
    }
    let name = guarded.meta().name.as_deref().unwrap_or_default();
    tracing::info!(name, %error, failures, "the reconcile is tried again");
    let (first, longest) = RETRY;
    let factor = 1_u32 << failures.saturating_sub(1).min(8);
    Action::requeue(first.saturating_mul(factor).min(longest))
}

#[cfg(test)]
mod tests;
