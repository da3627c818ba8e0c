//! From a KvCluster to what is desired, or what is wrong with it: what the schema's rules cannot see, or
//! what was stored before they existed. Pure; called once in every reconcile, before anything else.

use std::ops::RangeInclusive;
use std::time::Duration;

use kv_core::group::Settings;
use kv_core::status::CompactionSchedule;

use crate::crd::{KvCluster, KvClusterSpec, Reason};
use crate::names::Identity;
use crate::units;

/// Part of a volume that nodes may fill: the rest is for compaction, which copies what it keeps, and for deletes.
const STORAGE_LIMIT_PERCENT: u64 = 80;
/// Longest intervals of compaction, a year: nodes refuse to start with more.
const SCHEDULE_SECONDS_MAX: u64 = 8760 * 3600;
/// What a volume may have: with less, or more, nodes refuse to start with the limit that follows from it.
const VOLUME_BYTES: RangeInclusive<u64> = 2 << 20..=1 << 50;
/// Most nodes of a cluster; the schema says the same.
pub(crate) const REPLICAS_MAX: u32 = 7;

/// A spec that makes sense, with its values read.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    pub identity: Identity,
    pub spec: KvClusterSpec,
    pub replicas: u32,
    pub leader: Wish,
    pub live: Live,
    pub settings: Settings,
    pub segment_bytes: u64,
    pub storage_bytes: u64,
}

/// Whom `spec.leader` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Anybody,
    /// By ordinal.
    Pod(u32),
    /// None of the pods that the spec asks for.
    NoPod,
}

/// Settings of each node that are changed while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    pub heartbeat_interval_ms: u64,
    pub heartbeat_timeout_ms: u64,
    pub storage_limit_bytes: u64,
    pub compaction: CompactionSchedule,
}

/// What of a volume nodes may fill, in bytes.
pub(crate) fn storage_limit(volume_bytes: u64) -> u64 {
    volume_bytes / 100 * STORAGE_LIMIT_PERCENT
}

/// Why a spec cannot be carried out, for its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub reason: Reason,
    pub message: String,
}

/// What of a spec can be carried out, and what is wrong with it, all at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Validated {
    /// None: it has values that cannot be read. A name that is no pod's leaves the rest as it is.
    pub desired: Option<Desired>,
    pub problems: Vec<Problem>,
}

pub fn validate(cluster: &KvCluster) -> Validated {
    let identity = Identity::of(cluster);
    let (leader, no_leader) = leader(&identity, &cluster.spec);
    let no_survivor = survivor(&identity, cluster);
    let mut spec = cluster.spec.clone();
    spec.recovery = spec.recovery.filter(|_| no_survivor.is_none());
    let (desired, bad_values) = read(identity, spec, leader);
    let problems = no_leader.into_iter().chain(no_survivor).chain(bad_values).collect();
    Validated { desired, problems }
}

fn read(identity: Identity, spec: KvClusterSpec, leader: Wish) -> (Option<Desired>, Vec<Problem>) {
    let mut problems = Vec::new();
    let replicas = u32::try_from(spec.replicas).unwrap_or_default();
    if !(1..=REPLICAS_MAX).contains(&replicas) {
        problems.push(bad(format!("spec.replicas is {}: it must be 1 to {REPLICAS_MAX}", spec.replicas)));
    }
    let mut read = Reader(&mut problems);
    let storage_bytes = read.volume_bytes("spec.storage.size", &spec.storage.size.0);
    let live = read.live(&spec, storage_bytes);
    let segment_bytes = read.bytes("spec.wal.maxSegmentSize", &spec.wal.max_segment_size.0);
    let settings = Settings {
        history_limit: u32::try_from(spec.history_limit).unwrap_or_default(),
        dedup_expiry_seconds: read.duration("spec.dedupExpiry", &spec.dedup_expiry).as_secs(),
        ..Settings::default()
    };
    if let Err(why) = settings.check() {
        problems.push(bad(format!("spec: {why}")));
    }
    if live.heartbeat_timeout_ms <= live.heartbeat_interval_ms {
        problems.push(bad("spec.heartbeat.timeout must be longer than spec.heartbeat.interval".to_owned()));
    }
    let desired = Desired { identity, spec, replicas, leader, live, settings, segment_bytes, storage_bytes };
    (problems.is_empty().then_some(desired), problems)
}

/// A word of warning that stops nothing.
pub(crate) fn warning(spec: &KvClusterSpec) -> Option<String> {
    let replicas = spec.replicas;
    let fewer = replicas - 1;
    (replicas % 2 == 0)
        .then(|| format!("{replicas} replicas survive no more losses than {fewer} would: an odd number is better"))
}

fn leader(identity: &Identity, spec: &KvClusterSpec) -> (Wish, Option<Problem>) {
    let Some(leader) = &spec.leader else { return (Wish::Anybody, None) };
    if let Some(ordinal) = identity.ordinal(leader).filter(|ordinal| i64::from(*ordinal) < i64::from(spec.replicas)) {
        return (Wish::Pod(ordinal), None);
    }
    let last = identity.pod(u32::try_from(spec.replicas.max(1) - 1).unwrap_or_default());
    let message =
        format!("spec.leader is {leader}, which is no pod of this cluster: they are {} to {last}", identity.pod(0));
    (Wish::NoPod, Some(Problem { reason: Reason::UnknownLeader, message }))
}

/// A pod that the spec asks for, or one that was there when fewer were asked for.
fn survivor(identity: &Identity, cluster: &KvCluster) -> Option<Problem> {
    let named = &cluster.spec.recovery.as_ref()?.force_leader;
    let asked_for = identity.ordinal(named).is_some_and(|o| i64::from(o) < i64::from(cluster.spec.replicas));
    let reported = cluster.status.iter().flat_map(|status| &status.members).any(|member| member.name == *named);
    (!asked_for && !reported).then(|| Problem {
        reason: Reason::UnknownLeader,
        message: format!("spec.recovery.forceLeader is {named}, which is no pod of this cluster"),
    })
}

fn bad(message: String) -> Problem {
    Problem { reason: Reason::BadValue, message }
}

/// Reads values and collects what is wrong with them.
struct Reader<'a>(&'a mut Vec<Problem>);

impl Reader<'_> {
    fn live(&mut self, spec: &KvClusterSpec, storage_bytes: u64) -> Live {
        Live {
            heartbeat_interval_ms: self.ms("spec.heartbeat.interval", &spec.heartbeat.interval),
            heartbeat_timeout_ms: self.ms("spec.heartbeat.timeout", &spec.heartbeat.timeout),
            storage_limit_bytes: storage_limit(storage_bytes),
            compaction: CompactionSchedule {
                enabled: spec.compaction.enabled,
                interval_seconds: self.seconds("spec.compaction.interval", &spec.compaction.interval),
                min_interval_seconds: self.seconds("spec.compaction.minInterval", &spec.compaction.min_interval),
            },
        }
    }

    fn duration(&mut self, field: &str, text: &str) -> Duration {
        units::duration(text).unwrap_or_else(|| {
            self.0.push(bad(format!("{field} is {text:?}: it must be a duration, such as 100ms or 1h")));
            Duration::ZERO
        })
    }

    fn seconds(&mut self, field: &str, text: &str) -> u64 {
        let seconds = self.duration(field, text).as_secs();
        if seconds > SCHEDULE_SECONDS_MAX {
            self.0.push(bad(format!("{field} is {text:?}: it must be 8760h at most")));
        }
        seconds
    }

    fn volume_bytes(&mut self, field: &str, text: &str) -> u64 {
        let bytes = self.bytes(field, text);
        if bytes > 0 && !VOLUME_BYTES.contains(&bytes) {
            self.0.push(bad(format!("{field} is {text:?}: it must be from 2Mi to 1Pi")));
        }
        bytes
    }

    fn ms(&mut self, field: &str, text: &str) -> u64 {
        u64::try_from(self.duration(field, text).as_millis()).unwrap_or(u64::MAX)
    }

    fn bytes(&mut self, field: &str, text: &str) -> u64 {
        units::quantity(text).filter(|bytes| *bytes > 0).unwrap_or_else(|| {
            self.0.push(bad(format!("{field} is {text:?}: it must be a quantity above zero, such as 10Gi")));
            0
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::crd::{KvClusterStatus, MemberReport};

    pub(crate) fn cluster(spec: &str) -> KvCluster {
        let mut cluster = KvCluster::new("demo", serde_yaml::from_str(spec).unwrap());
        cluster.metadata.namespace = Some("apps".to_owned());
        cluster.metadata.uid = Some("uid-1".to_owned());
        cluster.metadata.generation = Some(1);
        cluster
    }

    fn reasons(cluster: &KvCluster) -> Vec<Reason> {
        validate(cluster).problems.into_iter().map(|problem| problem.reason).collect()
    }

    #[test]
    fn a_leader_must_be_a_pod_of_the_cluster_and_nothing_else_waits_for_it() {
        let leader = |name: &str| cluster(&format!("{{leader: {name}, storage: {{size: 1Gi}}}}"));
        assert_eq!(validate(&leader("demo-2")).desired.unwrap().leader, Wish::Pod(2));
        for stranger in ["demo-3", "other-0", "demo"] {
            assert_eq!(reasons(&leader(stranger)), [Reason::UnknownLeader]);
            assert_eq!(validate(&leader(stranger)).desired.unwrap().leader, Wish::NoPod);
        }
    }

    #[test]
    fn a_survivor_must_be_a_pod_of_the_cluster_or_one_that_was_there() {
        let survivor = |pod| {
            let recovery = format!("{{forceLeader: {pod}, acceptDataLossAtEpoch: 1}}");
            cluster(&format!("{{recovery: {recovery}, storage: {{size: 1Gi}}}}"))
        };
        let is_kept = |cluster: &KvCluster| validate(cluster).desired.unwrap().spec.recovery.is_some();
        assert_eq!((reasons(&survivor("demo-2")), is_kept(&survivor("demo-2"))), (vec![], true));
        for stranger in ["demo-4", "other-0"] {
            assert_eq!(reasons(&survivor(stranger)), [Reason::UnknownLeader]);
            assert!(!is_kept(&survivor(stranger)), "nobody is recovered, and the rest goes on");
        }
        let mut shrunk = survivor("demo-4");
        let member = MemberReport { name: "demo-4".to_owned(), ..MemberReport::default() };
        shrunk.status = Some(KvClusterStatus { members: vec![member], ..KvClusterStatus::default() });
        assert_eq!((reasons(&shrunk), is_kept(&shrunk)), (vec![], true));
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let spec = "{replicas: 9, leader: demo-9, dedupExpiry: soon, heartbeat: {interval: 2s, timeout: 1s}, storage: {size: big}}";
        let problems = reasons(&cluster(spec));
        assert!(problems.len() >= 5, "{problems:?}");
        assert_eq!(validate(&cluster(spec)).desired, None);
    }

    #[test]
    fn what_was_stored_before_the_schema_refused_it_is_told() {
        for spec in [
            "{compaction: {interval: 10000h}, storage: {size: 1Gi}}",
            "{compaction: {minInterval: 8761h}, storage: {size: 1Gi}}",
            "{dedupExpiry: 8761h, storage: {size: 1Gi}}",
            "{storage: {size: 1Mi}}",
            "{storage: {size: 2Pi}}",
        ] {
            assert_eq!(reasons(&cluster(spec)), [Reason::BadValue], "{spec}");
        }
    }

    #[test]
    fn nodes_stop_writing_before_their_volume_is_full() {
        let desired = validate(&cluster("{storage: {size: 10M}}")).desired.unwrap();
        assert_eq!((desired.storage_bytes, desired.live.storage_limit_bytes), (10_000_000, 8_000_000));
    }

    #[test]
    fn an_even_number_of_replicas_is_a_warning_and_no_error() {
        let even = cluster("{replicas: 4, storage: {size: 1Gi}}");
        assert_eq!(reasons(&even), []);
        assert!(warning(&even.spec).unwrap().contains("3 would"));
        assert_eq!(warning(&cluster("{storage: {size: 1Gi}}").spec), None);
    }
}
