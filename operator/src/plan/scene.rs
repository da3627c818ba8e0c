//! Clusters for the tables of tests: begins with one at rest, and lets a test break it.

use std::collections::BTreeMap;

use kv_core::entry::{EntryId, Epoch};
use kv_core::group::{ClusterId, FEATURE_LEVEL, MemberId, NodeName, Settings};
use kv_core::status::{
    CompactionSchedule, CorruptionReport, DiskStatus, Failover, Health, LeaderStatus, MemberStatus, NodeStatus,
    ReplicaStatus, Role, Tuning,
};

use super::{Defaults, Draw, Memory, Plan, plan};
use crate::observed::{Answer, ClaimSeen, Observed, PodSeen, Trouble};
use crate::resources::{Choices, children, spec_hash};
use crate::validate::{Desired, Live, tests::cluster, validate};

pub(crate) const IMAGE: &str = "kvcluster/kv-node:1";
pub(crate) const CLUSTER: &str = "c1";

/// Of a pod whose container does not stay up.
pub(crate) fn crashes() -> Trouble {
    Trouble::Waiting { reason: "CrashLoopBackOff".to_owned(), message: None }
}

pub(crate) struct Scene {
    pub(crate) desired: Desired,
    pub(crate) observed: Observed,
    pub(crate) memory: Memory,
    pub(crate) draw: Draw,
}

impl Scene {
    /// Nothing exists yet.
    pub(crate) fn nothing(spec: &str) -> Self {
        let desired = validate(&cluster(spec)).desired.unwrap();
        let draw = Draw {
            now_ms: 1_000_000,
            cluster_id: ClusterId::new("drawn").unwrap(),
            token: "drawn-token".to_owned(),
            defaults: Defaults { image: IMAGE.to_owned(), pull_secrets: Vec::new() },
        };
        Self { desired, observed: Observed { generation: 1, ..Observed::default() }, memory: Memory::default(), draw }
    }

    /// All children and `pods` pods exist, with empty volumes.
    pub(crate) fn empty(spec: &str, pods: u32) -> Self {
        let mut scene = Self::nothing(spec);
        scene.settle_children(pods);
        for ordinal in 0..pods {
            scene.add_pod(ordinal, status(ordinal, Role::Uninitialised, None, &[]));
            scene.add_claim(ordinal);
        }
        scene
    }

    /// A group of as many voters as pods, led by the pod with ordinal `leader`.
    pub(crate) fn led(spec: &str, pods: u32, leader: u32) -> Self {
        let mut scene = Self::empty(spec, pods);
        let voters: Vec<u32> = (0..pods).collect();
        for ordinal in 0..pods {
            let role = if ordinal == leader { Role::Leader } else { Role::Follower };
            let status = scene.tuned(status(ordinal, role, Some(leader), &voters));
            scene.answers(ordinal, status);
            let label = if ordinal == leader { "leader" } else { "follower" };
            scene.pod(ordinal).role_label = Some(label.to_owned());
        }
        let report = &mut scene.observed.status;
        report.cluster_id = Some(CLUSTER.to_owned());
        (report.epoch, report.leader) = (Some(3), Some(format!("demo-{leader}")));
        report.observed_generation = Some(1);
        scene
    }

    /// Nobody leads; all answer, and heard a leader longer ago than the time-out.
    pub(crate) fn leaderless(spec: &str, pods: u32) -> Self {
        let mut scene = Self::led(spec, pods, 0);
        for ordinal in 0..pods {
            let replica = &mut scene.status(ordinal).replica;
            (replica.role, replica.leader, replica.lease_held) = (Role::Follower, None, false);
            replica.leader_heard_ms_ago = Some(5000);
            scene.pod(ordinal).role_label = Some("follower".to_owned());
        }
        scene
    }

    pub(crate) fn settle_children(&mut self, pods: u32) {
        let choices = Choices {
            image: self.desired.spec.image.clone().unwrap_or_else(|| IMAGE.to_owned()),
            set_replicas: pods,
            claim_size: self.desired.spec.storage.size.0.clone(),
            token: "token".to_owned(),
            pull_secrets: Vec::new(),
            pod_monitors: false,
        };
        self.observed.children = children(&self.desired, &choices);
    }

    pub(crate) fn add_pod(&mut self, ordinal: u32, status: NodeStatus) {
        let image = self.desired.spec.image.clone().unwrap_or_else(|| IMAGE.to_owned());
        let pod = PodSeen {
            name: self.desired.identity.pod(ordinal),
            uid: format!("uid-{ordinal}"),
            ip: Some(format!("10.0.0.{ordinal}")),
            host: Some(format!("n{ordinal}")),
            cordoned: false,
            ready: status.ready,
            terminating: false,
            spec_hash: Some(spec_hash(&self.desired, &image)),
            role_label: None,
            serves_label: Some("true".to_owned()),
            relabel: BTreeMap::new(),
            trouble: None,
            answer: Answer::Status(Box::new(status)),
        };
        self.observed.pods.insert(ordinal, pod);
    }

    pub(crate) fn add_claim(&mut self, ordinal: u32) {
        let bytes = self.desired.storage_bytes;
        let name = self.desired.identity.claim(ordinal);
        self.observed.claims.insert(
            ordinal,
            ClaimSeen { name, requested: bytes, capacity: Some(bytes), host: None, relabel: BTreeMap::new() },
        );
    }

    pub(crate) fn pod(&mut self, ordinal: u32) -> &mut PodSeen {
        self.observed.pods.get_mut(&ordinal).unwrap()
    }

    pub(crate) fn status(&mut self, ordinal: u32) -> &mut NodeStatus {
        match &mut self.pod(ordinal).answer {
            Answer::Status(status) => status,
            Answer::Unknown(why) => panic!("pod {ordinal} does not answer: {why}"),
        }
    }

    pub(crate) fn answers(&mut self, ordinal: u32, status: NodeStatus) {
        let pod = self.pod(ordinal);
        pod.ready = status.ready;
        pod.answer = Answer::Status(Box::new(status));
    }

    /// The node runs with the settings of the spec.
    pub(crate) fn tuned(&self, mut status: NodeStatus) -> NodeStatus {
        let Live { heartbeat_interval_ms, heartbeat_timeout_ms, storage_limit_bytes, compaction } = self.desired.live;
        let failover = self.desired.spec.failover.into();
        status.replica.tuning = Tuning { heartbeat_interval_ms, heartbeat_timeout_ms, failover };
        (status.compaction, status.disk.limit_bytes) = (compaction, Some(storage_limit_bytes));
        status
    }

    /// Its pod is there and says nothing; the leader has not heard it either.
    pub(crate) fn silence(&mut self, ordinal: u32) {
        self.pod(ordinal).answer = Answer::Unknown("timed out".to_owned());
        self.pod(ordinal).ready = false;
        self.record(ordinal, |record| record.health = Health::Down);
    }

    /// What the leader says of a member.
    pub(crate) fn record(&mut self, ordinal: u32, change: impl Fn(&mut MemberStatus)) {
        for pod in self.observed.pods.values_mut() {
            let Answer::Status(status) = &mut pod.answer else { continue };
            status.replica.members.iter_mut().filter(|m| m.member_id == member_id(ordinal)).for_each(&change);
        }
    }

    pub(crate) fn plan(&mut self) -> Plan {
        let plan = plan(&self.desired, &self.observed, &self.memory, &self.draw);
        self.memory = plan.memory.clone();
        plan
    }

    pub(crate) fn later(&mut self, ms: u64) -> Plan {
        self.draw.now_ms += ms;
        self.plan()
    }
}

pub(crate) fn member_id(ordinal: u32) -> MemberId {
    MemberId(u64::from(ordinal) + 0xa0)
}

/// What the node with this ordinal says, all well.
pub(crate) fn status(ordinal: u32, role: Role, leader: Option<u32>, voters: &[u32]) -> NodeStatus {
    let leads = role == Role::Leader;
    let member = role != Role::Uninitialised;
    let id = EntryId(if member { 100 } else { 0 });
    let records = voters.iter().map(|voter| record(*voter, Some(*voter) == leader, true));
    NodeStatus {
        replica: ReplicaStatus {
            name: name(ordinal),
            member_id: member_id(ordinal),
            cluster_id: member.then(|| ClusterId::new(CLUSTER).unwrap()),
            role,
            epoch: Epoch(if member { 3 } else { 0 }),
            leader: leader.map(|l| LeaderStatus { name: name(l), member_id: member_id(l), url: None }),
            last_id: id,
            durable_id: id,
            committed_id: id,
            applied_id: id,
            lag: 0,
            config_id: EntryId(0),
            members: records.collect(),
            settings: Settings::default(),
            tuning: Tuning { heartbeat_interval_ms: 100, heartbeat_timeout_ms: 1000, failover: Failover::Automatic },
            feature_level: FEATURE_LEVEL,
            incarnation: 1,
            quarantined: None,
            leader_heard_ms_ago: leader.map(|_| 0),
            lease_held: leads,
            at_mono_ms: 0,
        },
        url: format!("http://demo-{ordinal}:8000"),
        peer_url: format!("http://demo-{ordinal}.demo-nodes.apps.svc:9000"),
        start_id: "0000000000000001".to_owned(),
        version: "1".to_owned(),
        ready: member,
        draining: false,
        disk: DiskStatus { used_bytes: 1, available_bytes: Some(1 << 30), full: false, limit_bytes: None },
        corruption: CorruptionReport::default(),
        compaction: CompactionSchedule { enabled: true, interval_seconds: 3600, min_interval_seconds: 600 },
    }
}

pub(crate) fn record(ordinal: u32, leads: bool, voter: bool) -> MemberStatus {
    MemberStatus {
        name: name(ordinal),
        member_id: member_id(ordinal),
        peer_url: format!("http://demo-{ordinal}.demo-nodes.apps.svc:9000"),
        url: None,
        role: if leads { Role::Leader } else { Role::Follower },
        voter,
        health: Health::Healthy,
        heard_ms_ago: Some(0),
        last_id: EntryId(100),
        durable_id: EntryId(100),
        applied_id: EntryId(100),
        lag: 0,
        storage_full: false,
        unfit: false,
    }
}

fn name(ordinal: u32) -> NodeName {
    NodeName::new(&format!("demo-{ordinal}")).unwrap()
}
