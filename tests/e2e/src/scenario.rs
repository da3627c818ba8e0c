//! What is tried: the list of all scenarios in their order, what each needs of the cluster, and what it reports.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::faults::Ability;
use crate::load::{Counted, Verdict};
use crate::scenarios::{
    changes, copies, hosts, lasting, leader, operators, options, quickstart, specs, strangers, volumes,
};
use crate::suite::Suite;

/// What is run when no scenario is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Set {
    /// What must hold before a change lands; ten minutes at most
    Ci,
    /// Everything; forty-five minutes at most
    All,
}

impl Set {
    /// A run that takes longer has failed.
    pub(crate) fn limit(self) -> Duration {
        let minutes = match self {
            Self::Ci => 10,
            Self::All => 45,
        };
        Duration::from_secs(minutes * 60)
    }
}

type Run = fn(Arc<Suite>) -> Pin<Box<dyn Future<Output = Report> + Send>>;

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) set: Set,
    pub(crate) needs: Option<Ability>,
    pub(crate) run: Run,
}

/// How long writes may stand still at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Leadership is handed over: nobody should notice, and a retry hides what a client sees.
    Planned,
    /// A process that died tells by a refused connection.
    Crash,
    /// Only silence tells.
    Silence,
    /// A majority is away for a while, as the scenario wants it.
    Outage,
}

impl Target {
    /// What docs/performance.md promises, in milliseconds; and what no loaded machine should exceed.
    pub(crate) fn pause_ms(self) -> Option<(u64, u64)> {
        match self {
            Self::Planned => Some((100, 2_000)),
            Self::Crash => Some((500, 4_000)),
            Self::Silence => Some((1_500, 6_000)),
            Self::Outage => None,
        }
    }
}

/// What a scenario measured, over all of its steps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) pause_ms: Option<u64>,
    pub(crate) worst_worker_ms: u64,
    /// The strictest of its steps' targets was not met.
    pub(crate) over_target: bool,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) unhidden: u64,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// Panics where a pause is out of all proportion: the scenario failed then.
    pub(crate) fn measured(&mut self, counted: &Counted, target: Target) {
        self.pause_ms = self.pause_ms.max(Some(counted.pause_ms));
        self.worst_worker_ms = self.worst_worker_ms.max(counted.worst_worker_ms);
        self.unhidden += counted.unhidden;
        for (failure, count) in &counted.failures {
            *self.failures.entry(failure.clone()).or_default() += count;
        }
        if let Some((target_ms, limit_ms)) = target.pause_ms() {
            self.over_target |= counted.pause_ms > target_ms;
            assert!(counted.pause_ms <= limit_ms, "writes stood still for {} ms: {counted:?}", counted.pause_ms);
        }
        if target == Target::Planned && counted.unhidden > 0 {
            self.over_target = true;
            self.note(format!("{} operations took {} ms at most", counted.unhidden, counted.longest_operation_ms));
        }
    }

    pub(crate) fn judged(&mut self, verdict: &Verdict) {
        self.acknowledged += verdict.acknowledged;
        self.lost += verdict.lost;
        self.note(format!("{} calls explained", verdict.operations));
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }
}

macro_rules! scenario {
    ($set:ident, $name:literal, $run:path, $about:literal $(, needs $ability:ident)?) => {
        Scenario {
            name: $name,
            about: $about,
            set: Set::$set,
            needs: None $(.or(Some(Ability::$ability)))?,
            run: |suite| Box::pin($run(suite, $name)),
        }
    };
}

/// In the order in which they are run.
pub(crate) fn all() -> Vec<Scenario> {
    vec![
        scenario!(Ci, "quickstart", quickstart::as_the_readme_says, "the README's own lines"),
        scenario!(All, "examples", quickstart::examples, "the clusters of docs/operations.md, and helm test"),
        scenario!(Ci, "switchover", leader::switched_over, "spec.leader changed, three times"),
        scenario!(Ci, "leader-killed", leader::killed, "SIGKILL of the leader, three times", needs Signals),
        scenario!(Ci, "rolling-update", changes::rolled, "a new image, pod by pod"),
        scenario!(Ci, "scale-3-5-3", changes::scaled_to_five_and_back, "two more replicas, and back"),
        scenario!(Ci, "volume-lost", volumes::lost_on_a_follower, "a follower's volume deleted"),
        scenario!(Ci, "recreated", lasting::recreated, "deleted, and created again over its volumes"),
        scenario!(Ci, "operator-upgrade", operators::upgraded, "the chart with a bumped appVersion"),
        scenario!(All, "idle", operators::idle, "an idle reconcile writes nothing"),
        scenario!(All, "leader-deleted", leader::deleted, "the leader's pod deleted"),
        scenario!(All, "leader-force-deleted", leader::force_deleted, "the leader's pod deleted without grace"),
        scenario!(All, "leader-stopped", leader::stopped, "SIGSTOP of the leader", needs Signals),
        scenario!(All, "leader-manual", leader::manual, "failover by hand, and by the operator alone", needs Signals),
        scenario!(All, "leader-returns", leader::returns, "leadership given back to spec.leader", needs Signals),
        scenario!(All, "host-stopped", hosts::stopped, "the leader's host loses all processes", needs Hosts),
        scenario!(All, "host-paused", hosts::paused, "all processes of the leader's host stand still", needs Hosts),
        scenario!(All, "host-cut", hosts::cut, "the leader's host is cut off", needs Hosts),
        scenario!(All, "host-drained", hosts::drained, "the leader's host drained, cordoned; evictions", needs Signals),
        scenario!(All, "operator-absent", operators::absent, "the leader killed while no operator runs", needs Signals),
        scenario!(
            All,
            "silence-no-operator",
            operators::absent_in_silence,
            "the leader stands still while no operator runs",
            needs Signals
        ),
        scenario!(All, "operator-killed", operators::killed_while_rolling, "the operator killed while it rolls", needs Signals),
        scenario!(All, "operators-two", operators::two, "two operators of two releases at once"),
        scenario!(All, "api-down", hosts::api_down, "no API server for a minute, and the leader dies", needs ApiServer),
        scenario!(
            All,
            "silence-no-api",
            hosts::api_down_in_silence,
            "no API server for a minute, and the leader stands still",
            needs ApiServer
        ),
        scenario!(All, "image-crashes", changes::crashing_image, "an image that crashes, and back"),
        scenario!(All, "spec-mended", changes::mended, "a first spec that lets no pod start, put right"),
        scenario!(All, "options", options::changed, "NodePort, PodMonitor, claims that go with their pods"),
        scenario!(All, "supervised", changes::supervised, "a roll that waits for a person, a pause, kubectl scale"),
        scenario!(All, "scale-1-3-5-3-1", changes::scaled_through_all_sizes, "1 -> 3 -> 5 -> 3 -> 1"),
        scenario!(All, "leader-volume-lost", volumes::lost_on_the_leader, "the leader's volume deleted"),
        scenario!(All, "old-volumes", copies::put_back, "old copies of volumes come back", needs Signals),
        scenario!(
            All,
            "all-pods-deleted",
            lasting::all_pods_deleted,
            "all pods gone at once; one that lacks writes is back first"
        ),
        scenario!(All, "volume-full", volumes::full_and_grown, "a full volume, then growth", needs Growth),
        scenario!(All, "volume-fixed", volumes::cannot_grow, "volumes that cannot grow"),
        scenario!(All, "settings-live", changes::settings, "settings changed without a restart"),
        scenario!(All, "recreated-smaller", lasting::recreated_smaller, "created again with fewer replicas"),
        scenario!(All, "majority-lost", lasting::majority_lost, "a majority of the volumes gone, then recovery"),
        scenario!(All, "chart-reinstalled", operators::reinstalled, "uninstalled, and installed over an older CRD"),
        scenario!(All, "watch-namespaces", operators::few_namespaces, "an operator for two namespaces"),
        scenario!(All, "many", operators::many, "fifty clusters: the operator's memory and requests"),
        scenario!(All, "neighbours", strangers::neighbours, "a new cluster of the same name beside it"),
        scenario!(All, "edited", strangers::edited, "what was edited or deleted by hand comes back"),
        scenario!(All, "names-taken", strangers::names_taken, "pods and claims of somebody else"),
        scenario!(All, "bad-specs", specs::bad_specs, "specs and calls that are refused, or reported"),
    ]
}
