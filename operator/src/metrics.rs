//! Declares every metric of the operator: names `kv_operator_*`, base units, labels from fixed lists.

use std::time::Duration;

use axum::http::{Method, Request};
use kube::client::Body;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tower::util::MapRequestLayer;

use crate::crd::{ConditionType, KvCluster};
use crate::error::Error;

/// How the API server is asked.
const VERBS: [&str; 6] = ["get", "watch", "create", "update", "patch", "delete"];

/// From 5 ms to 20 s, each twice as wide as the one before.
const RECONCILE_BUCKETS: (f64, f64, usize) = (0.005, 2.0, 13);

/// Why leadership was moved by a directive.
const SWITCH_REASONS: [&str; 5] = ["spec.leader", "drain", "rollout", "scale-down", "no leader"];

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconcile_seconds: Histogram,
    errors: IntCounterVec,
    api_requests: IntCounterVec,
    clusters: IntGauge,
    by_condition: IntGaugeVec,
    failovers: IntCounter,
    failover_seconds: Histogram,
    switchovers: IntCounterVec,
    switchover_seconds: Histogram,
    is_leader: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let add = Declare(&registry);
        let metrics = Self {
            reconcile_seconds: add.seconds("kv_operator_reconcile_seconds", "Time that one reconcile took."),
            errors: add.counters(
                "kv_operator_reconcile_errors_total",
                "Reconciles that failed, by kind of error.",
                "kind",
            ),
            api_requests: add.counters(
                "kv_operator_api_requests_total",
                "Requests to the API server, by verb; a list counts as get.",
                "verb",
            ),
            clusters: add.gauge("kv_operator_clusters", "KvClusters that exist."),
            by_condition: add.gauges(
                "kv_operator_clusters_by_condition",
                "KvClusters whose condition is True.",
                "condition",
            ),
            failovers: add
                .counter("kv_operator_failovers_total", "Changes of leader that the operator did not ask for."),
            failover_seconds: add.seconds(
                "kv_operator_failover_seconds",
                "Time without a confirmed leader before such a change, as the operator saw it.",
            ),
            switchovers: add.counters(
                "kv_operator_switchovers_total",
                "Changes of leader by directive, by reason.",
                "reason",
            ),
            switchover_seconds: add.seconds("kv_operator_switchover_seconds", "Time that a directive to lead took."),
            is_leader: add.gauge("kv_operator_lease_held", "1 while this operator is the one that works."),
            registry: registry.clone(),
        };
        Error::KINDS.iter().for_each(|kind| metrics.errors.with_label_values(&[kind]).inc_by(0));
        VERBS.iter().for_each(|verb| metrics.api_requests.with_label_values(&[verb]).inc_by(0));
        SWITCH_REASONS.iter().for_each(|reason| metrics.switchovers.with_label_values(&[reason]).inc_by(0));
        metrics
    }
}

impl Metrics {
    /// For a client whose requests are to be counted.
    pub fn counts_requests(&self) -> MapRequestLayer<impl Fn(Request<Body>) -> Request<Body> + Clone + use<>> {
        let counter = self.api_requests.clone();
        MapRequestLayer::new(move |request: Request<Body>| {
            counter.with_label_values(&[verb(request.method(), request.uri().query())]).inc();
            request
        })
    }

    pub(crate) fn reconciled(&self, took: Duration, error: Option<&Error>) {
        self.reconcile_seconds.observe(took.as_secs_f64());
        if let Some(error) = error {
            self.errors.with_label_values(&[error.kind()]).inc();
        }
    }

    pub(crate) fn switched(&self, reason: &str, took: Duration) {
        self.switchovers.with_label_values(&[reason]).inc();
        self.switchover_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn failed_over(&self, leaderless: Duration) {
        self.failovers.inc();
        self.failover_seconds.observe(leaderless.as_secs_f64());
    }

    pub fn hold_lease(&self) {
        self.is_leader.set(1);
    }

    /// Counted when they are asked for: a cluster that went is not counted any more. None: one that cannot be read.
    pub(crate) fn render<'a>(&self, clusters: impl Iterator<Item = Option<&'a KvCluster>> + Clone) -> String {
        self.clusters.set(i64::try_from(clusters.clone().count()).unwrap_or(i64::MAX));
        let clusters = clusters.flatten();
        for condition in ConditionType::ALL {
            let has = |cluster: &&KvCluster| {
                let conditions = cluster.status.iter().flat_map(|status| &status.conditions);
                conditions.into_iter().any(|c| c.type_ == condition.as_str() && c.status == "True")
            };
            let count = i64::try_from(clusters.clone().filter(has).count()).unwrap_or(i64::MAX);
            self.by_condition.with_label_values(&[condition.as_str()]).set(count);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("a vector takes all");
        String::from_utf8(text).expect("the format is text")
    }
}

fn verb(method: &Method, query: Option<&str>) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ if query.is_some_and(|query| query.split('&').any(|part| part == "watch=true")) => "watch",
        _ => "get",
    }
}

/// Creates metrics and registers them; a name given twice is a bug of this file.
struct Declare<'a>(&'a Registry);

impl Declare<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        let collector = collector.expect("names and labels are constants of this file");
        self.0.register(Box::new(collector.clone())).expect("each name is declared once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), &[label]))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    fn seconds(&self, name: &str, help: &str) -> Histogram {
        let (first, factor, count) = RECONCILE_BUCKETS;
        let buckets = prometheus::exponential_buckets(first, factor, count).expect("a positive first bucket");
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::cluster;

    #[test]
    fn every_metric_is_there_before_anything_has_happened() {
        let text = Metrics::default().render([Some(&cluster("{storage: {size: 1Gi}}"))].into_iter());
        for line in [
            "kv_operator_clusters 1",
            "kv_operator_clusters_by_condition{condition=\"Available\"} 0",
            "kv_operator_reconcile_errors_total{kind=\"conflict\"} 0",
            "kv_operator_switchovers_total{reason=\"drain\"} 0",
            "kv_operator_api_requests_total{verb=\"patch\"} 0",
            "kv_operator_failovers_total 0",
            "kv_operator_failover_seconds_count 0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn alerts_and_dashboard_ask_for_metrics_that_exist() {
        let text = Metrics::default().render([Some(&cluster("{storage: {size: 1Gi}}"))].into_iter());
        for file in ["alerts.yaml", "dashboard.json"] {
            let path = format!("{}/../charts/kv-operator/files/{file}", env!("CARGO_MANIFEST_DIR"));
            let asked = std::fs::read_to_string(path).unwrap().replace("\\\"", "\"");
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let names = asked.match_indices("kv_operator_").map(|(at, _)| &asked[at..]);
            let names: Vec<&str> = names.map(|rest| &rest[..rest.find(|c| !is_word(c)).unwrap()]).collect();
            assert!(names.len() >= 3, "{file} asks for {names:?}");
            let exists = |name: &str| text.lines().any(|line| line.split(['{', ' ']).next() == Some(name));
            let missing: Vec<&str> = names.into_iter().filter(|name| !exists(name)).collect();
            assert!(missing.is_empty(), "{file} asks for {missing:?}");
        }
    }

    #[test]
    fn the_page_about_operations_names_each_metric() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md")).unwrap();
        let metrics = Metrics::default();
        metrics.render([Some(&cluster("{storage: {size: 1Gi}}"))].into_iter());
        let families = metrics.registry.gather();
        let names = families.iter().map(prometheus::proto::MetricFamily::name);
        let unknown: Vec<&str> = names.filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert!(unknown.is_empty(), "docs/operations.md does not describe {unknown:?}");
    }
}
