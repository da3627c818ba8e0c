//! Declares every metric of a node: names `kv_*`, base units, labels from fixed lists. One registry
//! for each node, so that two nodes fit in one process. What happens often is recorded where it
//! happens (http, the committer's owner); what is a state (positions, sizes, roles) is set from one
//! status document when `/metrics` is read.

use std::time::Duration;

use kv_core::sessions::SessionCounts;
use kv_core::status::{Health, MemberStatus, NodeStatus, ReplicaStatus, Role};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

/// Buckets of a histogram of durations, each twice as wide as the one before.
struct Buckets {
    first_seconds: f64,
    count: usize,
}

/// From 50 µs (a write to NVMe) to 3.3 s.
const WRITES: Buckets = Buckets { first_seconds: 0.000_05, count: 17 };
/// From 10 ms to 5 minutes.
const COMPACTIONS: Buckets = Buckets { first_seconds: 0.01, count: 16 };

/// Routes as metrics tell them apart, in the order of [`ROUTE_NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    KeyGet,
    KeyPut,
    KeyDelete,
    Keys,
    Log,
    Cluster,
    Probe,
    Other,
}

const ROUTE_NAMES: [&str; 8] = ["key_get", "key_put", "key_delete", "keys", "log", "cluster", "probe", "other"];

/// Classes of status codes, by their first digit.
const CODE_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

const ROLES: [(Role, &str); 5] = [
    (Role::Leader, "leader"),
    (Role::Follower, "follower"),
    (Role::Candidate, "candidate"),
    (Role::Learner, "learner"),
    (Role::Uninitialised, "uninitialised"),
];

/// The metrics of one node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// By route, then by class of code; resolved once, so that counting is one atomic addition.
    requests: Vec<[IntCounter; CODE_CLASSES.len()]>,
    write_seconds: Histogram,
    forwards: IntCounter,
    fsync_seconds: Histogram,
    compactions: IntCounter,
    compaction_failures: IntCounter,
    compaction_seconds: Histogram,
    compaction_removed: IntCounter,
    positions: IntGaugeVec,
    lag: IntGauge,
    role: IntGaugeVec,
    lease_held: IntGauge,
    epoch: IntGauge,
    ready: IntGauge,
    quarantined: IntGauge,
    peers_down: IntGauge,
    voters: IntGauge,
    voters_fit: IntGauge,
    member_lag: IntGaugeVec,
    keys: IntGauge,
    segments: IntGauge,
    disk_used_bytes: IntGauge,
    disk_available_bytes: IntGauge,
    storage_limit_bytes: IntGauge,
    storage_full: IntGauge,
    corrupt_places: IntGauge,
    corrupt_files: IntGauge,
    repaired_files: IntCounter,
    scrubbed_bytes: IntCounter,
    dedup_records: IntGauge,
    dedup_replays: IntCounter,
    dedup_evicted: IntGauge,
    build_info: IntGaugeVec,
    started_seconds: Gauge,
}

/// What [`Metrics::render`] shows besides what was counted.
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub(crate) status: &'a NodeStatus,
    pub(crate) sessions: SessionCounts,
    pub(crate) keys: usize,
    pub(crate) segments: usize,
}

/// Creates metrics and registers them; a name given twice is a bug of this file.
struct Declare(Registry);

impl Declare {
    fn add<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        let collector = collector.expect("names and labels are constants of this file");
        self.0.register(Box::new(collector.clone())).expect("each name is declared once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    fn seconds(&self, name: &str, help: &str, buckets: &Buckets) -> Histogram {
        let buckets = prometheus::exponential_buckets(buckets.first_seconds, 2.0, buckets.count);
        self.add(Histogram::with_opts(
            HistogramOpts::new(name, help)
                .buckets(buckets.expect("the first bucket is positive and the factor over 1")),
        ))
    }

    fn requests(&self) -> Vec<[IntCounter; CODE_CLASSES.len()]> {
        let opts = Opts::new("kv_http_requests_total", "Requests answered, by route and class of status code.");
        let all = self.add(IntCounterVec::new(opts, &["route", "code"]));
        ROUTE_NAMES.map(|route| CODE_CLASSES.map(|class| all.with_label_values(&[route, class]))).into()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let d = Declare(Registry::new());
        Self {
            requests: d.requests(),
            write_seconds: d.seconds(
                "kv_write_duration_seconds",
                "From a write's arrival to its answer, on the node asked.",
                &WRITES,
            ),
            forwards: d.counter("kv_forwards_total", "Requests sent on to the leader, repetitions included."),
            fsync_seconds: d.seconds("kv_fsync_duration_seconds", "One write and sync of the log.", &WRITES),
            compactions: d.counter("kv_compactions_total", "Compactions that succeeded."),
            compaction_failures: d.counter("kv_compaction_failures_total", "Compactions that were aborted."),
            compaction_seconds: d.seconds(
                "kv_compaction_duration_seconds",
                "Compactions that succeeded.",
                &COMPACTIONS,
            ),
            compaction_removed: d.counter("kv_compaction_removed_entries_total", "Entries that compaction dropped."),
            positions: d.gauges("kv_position", "The last, durable, committed and applied id.", "position"),
            lag: d.gauge("kv_lag_entries", "Entries known to exist on the leader and not applied here."),
            role: d.gauges("kv_role", "1 for the role that the node has, 0 for the others.", "role"),
            lease_held: d
                .gauge("kv_lease_held", "1 while this node leads and a majority confirmed it within its lease."),
            epoch: d.gauge("kv_epoch", "The highest epoch seen."),
            ready: d.gauge("kv_ready", "What /readyz answers."),
            quarantined: d
                .gauge("kv_quarantined", "1 while this member counts in no quorum, until a leader has filled it."),
            peers_down: d.gauge("kv_peers_down", "Other members not heard for the heartbeat time-out."),
            voters: d.gauge("kv_voters", "Members that vote, in the configuration that this node knows."),
            voters_fit: d
                .gauge("kv_voters_fit", "Voters that are healthy and count in quorums, as this node hears them."),
            member_lag: d.gauges(
                "kv_member_lag_entries",
                "Entries of the leader that a member has not made durable; on the leader alone.",
                "member",
            ),
            keys: d.gauge("kv_keys", "Keys that exist."),
            segments: d.gauge("kv_segments", "Segment files of the log."),
            disk_used_bytes: d.gauge("kv_disk_used_bytes", "Bytes of the data directory's files."),
            disk_available_bytes: d
                .gauge("kv_disk_available_bytes", "Bytes that the volume has left; -1: it could not be asked."),
            storage_limit_bytes: d
                .gauge("kv_storage_limit_bytes", "Bytes of files above which writes are refused; -1: no limit is set."),
            storage_full: d.gauge("kv_storage_full", "1 while writes are refused for want of space."),
            corrupt_places: d.gauge(
                "kv_corrupt_places",
                "Damaged places that the last recovery, reads and scrubs since have found.",
            ),
            corrupt_files: d.gauge("kv_corrupt_files", "Sealed files that are damaged now and not yet repaired."),
            repaired_files: d.counter("kv_repaired_files_total", "Damaged files that were made again byte for byte."),
            scrubbed_bytes: d.counter("kv_scrubbed_bytes_total", "Bytes of sealed files looked at for damage."),
            dedup_records: d.gauge("kv_dedup_records", "Requests remembered."),
            dedup_replays: d.counter("kv_dedup_replays_total", "Requests answered with an earlier copy's result."),
            dedup_evicted: d.gauge("kv_dedup_evicted_records", "Records dropped over the limit since the start."),
            build_info: d.gauges("kv_build_info", "1; the label is the release.", "version"),
            started_seconds: d.add(Gauge::new("kv_process_start_time_seconds", "Unix time of the start.")),
            registry: d.0,
        }
        .stamped()
    }

    fn stamped(self) -> Self {
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.started_seconds.set(now.map_or(0.0, |since| since.as_secs_f64()));
        self
    }

    /// One write and fdatasync of the log took this long.
    pub fn observe_fsync(&self, took: Duration) {
        self.fsync_seconds.observe(took.as_secs_f64());
    }

    pub fn observe_compaction(&self, took: Duration, entries_removed: u64) {
        self.compactions.inc();
        self.compaction_seconds.observe(took.as_secs_f64());
        self.compaction_removed.inc_by(entries_removed);
    }

    pub fn count_compaction_failure(&self) {
        self.compaction_failures.inc();
    }

    pub(crate) fn count_scrubbed(&self, bytes: u64) {
        self.scrubbed_bytes.inc_by(bytes);
    }

    pub(crate) fn count_repaired(&self) {
        self.repaired_files.inc();
    }

    pub(crate) fn count_request(&self, route: Route, status: u16) {
        let class = usize::from(status / 100).clamp(1, CODE_CLASSES.len()) - 1;
        self.requests[route as usize][class].inc();
    }

    pub(crate) fn observe_write(&self, took: Duration) {
        self.write_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn count_forward(&self) {
        self.forwards.inc();
    }

    pub(crate) fn count_replay(&self) {
        self.dedup_replays.inc();
    }

    /// The text of `/metrics`; with None (recovery has not ended) only what was counted.
    pub(crate) fn render(&self, state: Option<&State<'_>>) -> Vec<u8> {
        if let Some(state) = state {
            self.set(state);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("a Vec takes every write");
        text
    }

    fn set(&self, state: &State<'_>) {
        let State { status, sessions, keys, segments } = state;
        self.set_replica(status);
        self.keys.set(signed(*keys as u64));
        self.segments.set(signed(*segments as u64));
        self.ready.set(i64::from(status.ready));
        self.disk_used_bytes.set(signed(status.disk.used_bytes));
        self.disk_available_bytes.set(status.disk.available_bytes.map_or(-1, signed));
        self.storage_limit_bytes.set(status.disk.limit_bytes.map_or(-1, signed));
        self.storage_full.set(i64::from(status.disk.full));
        self.corrupt_places.set(signed(status.corruption.damaged_places));
        self.corrupt_files.set(signed(status.corruption.unrepaired.len() as u64));
        self.dedup_records.set(signed(sessions.records));
        self.dedup_evicted.set(signed(sessions.evicted_total));
    }

    fn set_replica(&self, status: &NodeStatus) {
        let replica = &status.replica;
        for (position, id) in [
            ("last", replica.last_id),
            ("durable", replica.durable_id),
            ("committed", replica.committed_id),
            ("applied", replica.applied_id),
        ] {
            self.positions.with_label_values(&[position]).set(signed(id.0));
        }
        for (role, name) in ROLES {
            self.role.with_label_values(&[name]).set(i64::from(role == replica.role));
        }
        self.lag.set(signed(replica.lag));
        self.epoch.set(signed(replica.epoch.0));
        self.lease_held.set(i64::from(replica.lease_held));
        self.quarantined.set(i64::from(replica.quarantined.is_some()));
        self.set_members(replica);
    }

    fn set_members(&self, replica: &ReplicaStatus) {
        let members = &replica.members;
        let is_down = |m: &MemberStatus| m.health == Health::Down && m.member_id != replica.member_id;
        let count = |which: &dyn Fn(&MemberStatus) -> bool| signed(members.iter().filter(|m| which(m)).count() as u64);
        self.peers_down.set(count(&is_down));
        self.voters.set(count(&|m| m.voter));
        self.voters_fit.set(count(&|m| m.voter && !m.unfit && !is_down(m)));
        // Nobody else knows, and members come and go.
        self.member_lag.reset();
        if replica.role == Role::Leader {
            members.iter().for_each(|m| self.member_lag.with_label_values(&[m.name.as_str()]).set(signed(m.lag)));
        }
    }
}

/// Gauges are signed; no count of ours comes near the difference.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
