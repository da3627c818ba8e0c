//! Watches, and what a reconcile is: observe, validate, plan, apply, report. Holds the policy for errors; decides
//! nothing about clusters itself.

mod remembered;

use std::sync::Arc;
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

use crate::apply::{Applied, Switched, apply, write_status};
use crate::crd::KvCluster;
use crate::error::Error;
use crate::events;
use crate::metrics::Metrics;
use crate::names::{FIELD_MANAGER, Identity};
use crate::node_client::NodeClient;
use crate::observe::{Sources, observe};
use crate::observed::Observed;
use crate::plan::{self, Defaults};
use crate::report;
use crate::validate::{Problem, Validated, validate};
use crate::watches::{self, Caches};
use remembered::{ByCluster, Remembered};

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
    remembered: ByCluster,
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
            remembered: ByCluster::default(),
        }
    }
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
            context.remembered.forget_all_but(&clusters);
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
    let mut remembered = context.remembered.recall(&uid);
    let result = five_verbs(cluster, &context, &mut remembered).await;
    if result.is_ok() {
        remembered.failures = 0;
    }
    context.remembered.remember(uid, remembered);
    context.metrics.reconciled(began.elapsed(), result.as_ref().err());
    result.map(Action::requeue)
}

async fn five_verbs(cluster: &KvCluster, context: &Context, remembered: &mut Remembered) -> Result<Duration, Error> {
    let observed = observe(&context.sources, cluster).await?;
    let Validated { desired, problems } = validate(cluster);
    let plan = match desired {
        Some(desired) => {
            let draw = remembered.draw(context.started.elapsed(), &context.defaults);
            plan::plan(&desired, &observed, &remembered.memory, &draw)
        }
        // What runs goes on as it is.
        None => plan::look(&Identity::of(cluster), &cluster.spec, &observed, &remembered.memory),
    };
    let (next, token) = (plan.next, observed.token());
    let applied = apply(&context.sources, cluster, token.clone(), plan).await;
    remembered.memory = applied.memory.clone();
    remembered.token = token.or(remembered.token.take());
    if let Some(Switched { to, why, took }) = applied.switched.clone() {
        context.metrics.switched(why, took);
        remembered.leadership.expect(to);
    }
    if let Some(pod) = &applied.restarted {
        events::restarted(&context.recorder, cluster, pod).await;
    }
    report_changes(context, remembered, &observed, &applied, &problems).await?;
    applied.error.map_or(Ok(next), Err)
}

/// The status is written, and its changes told, only when there are some.
async fn report_changes(
    context: &Context,
    remembered: &mut Remembered,
    observed: &Observed,
    applied: &Applied,
    problems: &[Problem],
) -> Result<(), Error> {
    let old = applied.cluster.status.clone().unwrap_or_default();
    let now = Time(Timestamp::now());
    let status = report::status(&Identity::of(&applied.cluster), observed, applied, problems, &now);
    let (before, leader) = (old.leader.as_deref(), status.leader.as_deref());
    if let Some(leaderless) = remembered.leadership.note(before, leader, Instant::now()) {
        context.metrics.failed_over(leaderless);
    }
    let since = remembered.reported.map(|at| at.elapsed());
    let Some(changed) = report::changed(&applied.cluster, status, since) else { return Ok(()) };
    let written = write_status(&context.sources.client, &changed).await?;
    remembered.reported = Some(Instant::now());
    events::publish(&context.recorder, &written, &old).await;
    Ok(())
}

/// A conflict is tried again with what is there now; the rest with growing pauses.
fn retry(guarded: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let uid = guarded.meta().uid.clone().unwrap_or_default();
    let mut remembered = context.remembered.recall(&uid);
    remembered.failures = remembered.failures.saturating_add(1);
    let failures = remembered.failures;
    context.remembered.remember(uid, remembered);
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
