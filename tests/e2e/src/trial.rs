//! A cluster under load, from its creation to the verdict: what almost every scenario is made of. Keeps what
//! was measured; decides nothing about what a scenario does in between.

use std::time::{Duration, Instant};

use kv_operator::crd::{KvCluster, KvClusterStatus};
use serde_json::Value;

use crate::load::{Counted, Load};
use crate::scenario::{Report, Target};
use crate::store::{Store, is};
use crate::suite::{self, Suite};

/// Conditions and members of a status are true within this of the fact, while an operator works.
const TOLD_SECONDS_MAX: u64 = 10;

pub(crate) struct Trial {
    pub(crate) store: Store,
    pub(crate) load: Load,
    report: Report,
}

fn is_led_by_another(status: &KvClusterStatus, former: &str) -> bool {
    status.leader.as_ref().is_some_and(|leader| leader != former)
}

impl Trial {
    /// A healthy cluster with this spec in a namespace of its own, and a client on the host of a follower, so that
    /// it survives what befalls the leader's.
    pub(crate) async fn start(suite: &Suite, name: &str, spec: Value) -> Self {
        let (report, store) = Self::cluster(suite, name, spec).await;
        let load = Load::start(&store, store.quiet_host().await.as_deref()).await;
        Self { store, load, report }
    }

    /// The same without a client.
    pub(crate) async fn cluster(suite: &Suite, name: &str, spec: Value) -> (Report, Store) {
        suite.operator_runs().await;
        let namespace = suite::namespace(name);
        suite.kube.namespace(&namespace).await;
        let store = Store::new(&suite.kube, &namespace);
        let mut report = Report::default();
        let available = timed(async {
            store.create(spec).await;
            store.wait("the new cluster is available", 90, |_, status| is(status, "Available", "True")).await;
        });
        report.note(format!("available {:.1} s after apply", available.await.as_secs_f64()));
        store.healthy(60).await;
        (report, store)
    }

    /// A client for a cluster that is there.
    pub(crate) async fn over(store: &Store) -> Self {
        let load = Load::start(store, None).await;
        Self { store: store.clone(), load, report: Report::default() }
    }

    /// Waits until the status says that leadership has gone to another pod.
    pub(crate) async fn another_leads(&self, former: &str) {
        self.store
            .wait(&format!("another than {former} leads"), 60, |_, status| is_led_by_another(status, former))
            .await;
    }

    /// What has just happened is in the status in time. How long it took is noted.
    pub(crate) async fn told(&mut self, what: &str, wanted: impl Fn(&KvCluster, &KvClusterStatus) -> bool) {
        let took = timed(self.store.wait(what, TOLD_SECONDS_MAX, wanted)).await;
        self.note(format!("{what}: told after {:.1} s", took.as_secs_f64()));
    }

    /// The same of a leader that others must have replaced by themselves.
    pub(crate) async fn told_that_another_leads(&mut self, former: &str) {
        let what = format!("another than {former} leads");
        self.told(&what, |_, status| is_led_by_another(status, former)).await;
    }

    /// Begins to measure.
    pub(crate) async fn open(&self) {
        self.load.open().await;
    }

    /// Waits until all is well again, and keeps what the client saw since [`Self::open`].
    pub(crate) async fn close(&mut self, healthy_seconds: u64, target: Target) -> Counted {
        self.load.flows(60).await;
        self.store.healthy(healthy_seconds).await;
        self.measure(target).await
    }

    /// Keeps what the client saw since [`Self::open`].
    pub(crate) async fn measure(&mut self, target: Target) -> Counted {
        let counted = self.load.counted().await;
        self.report.measured(&counted, target);
        counted
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.report.note(note.into());
    }

    /// Ends the client; all it was promised must hold.
    pub(crate) async fn end(mut self) -> Report {
        let verdict = self.load.finish().await;
        assert!(verdict.wrong.is_empty(), "a promise is broken: {}", verdict.wrong.join("\n"));
        assert!(verdict.acknowledged > 0, "the client wrote nothing");
        self.report.judged(&verdict);
        self.report
    }
}

/// How long it took until a condition held.
pub(crate) async fn timed(what: impl Future<Output = ()>) -> Duration {
    let began = Instant::now();
    what.await;
    began.elapsed()
}
