//! Settings that are changed while nodes run: what differs from what they say that they run with, and nothing else.
//! Those of each node are told to it. The order of changes keeps a leader from being silent, in the eyes of any
//! node, while not all have been told: the ConfigMap has the same settings for the next start. Those of the group
//! are told to its leader.

use kv_core::contract::SettingsChange;
use kv_core::status::{CompactionSchedule, Failover, NodeStatus};

use super::{Case, Directive, Memory, Step};
use crate::group::{Group, addressee, members_of};
use crate::observed::Observed;
use crate::validate::{Desired, Live, storage_limit};

/// What one node is to run with from now on; None: as it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeTuning {
    pub pod: String,
    pub url: String,
    pub heartbeat_interval_ms: Option<u64>,
    pub heartbeat_timeout_ms: Option<u64>,
    pub failover: Option<Failover>,
    pub storage_limit_bytes: Option<u64>,
    pub compaction: Option<CompactionSchedule>,
}

/// The members of the group that run with something else.
pub(super) fn plan(desired: &Desired, observed: &Observed, group: &Group<'_>) -> Vec<NodeTuning> {
    let members = || members_of(observed, &group.cluster_id);
    let tuned = || members().map(|(_, _, status)| status.replica.tuning);
    let pace = Pace {
        wanted: &desired.live,
        slowest_ms: tuned().map(|tuning| tuning.heartbeat_interval_ms).max().unwrap_or_default(),
        least_patient_ms: tuned().map(|tuning| tuning.heartbeat_timeout_ms).min().unwrap_or_default(),
    };
    let tunings = members().filter_map(|(ordinal, pod, status)| {
        let limit = limit_bytes(desired, observed, ordinal);
        let tuning = NodeTuning {
            pod: pod.name.clone(),
            url: pod.url()?,
            storage_limit_bytes: (status.disk.limit_bytes != Some(limit)).then_some(limit),
            ..pace.tuning(status, desired.spec.failover.into())
        };
        tuning.says_something().then_some(tuning)
    });
    tunings.collect()
}

/// What decides what apply does is state of the group: an entry changes it.
pub(super) fn change_settings(case: Case<'_>, _: &mut Memory) -> Step {
    let Some((_, leader)) = case.led() else { return Step::default() };
    let (present, wanted) = (leader.status.replica.settings, case.desired.settings);
    let history_limit = (present.history_limit != wanted.history_limit).then_some(wanted.history_limit);
    let expiry = (present.dedup_expiry_seconds != wanted.dedup_expiry_seconds).then_some(wanted.dedup_expiry_seconds);
    let differs = history_limit.is_some() || expiry.is_some();
    let change = SettingsChange { history_limit, dedup_expiry_seconds: expiry, dedup_limit: None };
    let leader = addressee(leader.pod).filter(|_| differs);
    Step { directive: leader.map(|leader| Directive::ChangeSettings { leader, change }), ..Step::default() }
}

impl NodeTuning {
    fn says_something(&self) -> bool {
        let Self { pod: _, url: _, heartbeat_interval_ms, heartbeat_timeout_ms, failover, .. } = self;
        let Self { storage_limit_bytes, compaction, .. } = self;
        let heartbeat = heartbeat_interval_ms.is_some() || heartbeat_timeout_ms.is_some();
        heartbeat || failover.is_some() || storage_limit_bytes.is_some() || compaction.is_some()
    }
}

/// How all members beat at present.
struct Pace<'a> {
    wanted: &'a Live,
    slowest_ms: u64,
    least_patient_ms: u64,
}

impl Pace<'_> {
    /// Slower only when everybody is patient enough for it; less patient only when nobody is slower.
    fn tuning(&self, status: &NodeStatus, failover: Failover) -> NodeTuning {
        let present = status.replica.tuning;
        let Live { heartbeat_interval_ms: interval, heartbeat_timeout_ms: timeout, compaction, .. } = *self.wanted;
        let may_beat = interval < self.least_patient_ms;
        let may_wait = timeout >= present.heartbeat_timeout_ms || timeout > self.slowest_ms;
        NodeTuning {
            heartbeat_interval_ms: (present.heartbeat_interval_ms != interval && may_beat).then_some(interval),
            heartbeat_timeout_ms: (present.heartbeat_timeout_ms != timeout && may_wait).then_some(timeout),
            failover: (present.failover != failover).then_some(failover),
            compaction: (status.compaction != compaction).then_some(compaction),
            ..NodeTuning::default()
        }
    }
}

/// Of what the volume has now: one that is still to grow is not filled before.
fn limit_bytes(desired: &Desired, observed: &Observed, ordinal: u32) -> u64 {
    let capacity = observed.claims.get(&ordinal).and_then(|claim| claim.capacity);
    storage_limit(capacity.map_or(desired.storage_bytes, |bytes| bytes.min(desired.storage_bytes)))
}
