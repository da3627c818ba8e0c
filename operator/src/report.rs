//! From what was seen and what came of the plan to the status: a fold over facts, pure but for the last
//! step, which writes only what has changed. Never reports what was not tried.

mod conditions;

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kv_core::group::MemberId;
use kv_core::status::NodeStatus;

use crate::apply::Applied;
use crate::crd::{KvCluster, KvClusterStatus, MemberReport};
use crate::group::Group;
use crate::names::Identity;
use crate::observed::{Answer, Observed, PodSeen};
use crate::plan;
use crate::validate::Problem;

pub use conditions::Facts;

/// Positions alone are written no more often than this.
pub const POSITIONS_EVERY: Duration = Duration::from_secs(10);

/// The status that `cluster` should show at `now`.
pub fn status(
    identity: &Identity,
    observed: &Observed,
    applied: &Applied,
    problems: &[Problem],
    now: &Time,
) -> KvClusterStatus {
    let old = applied.cluster.status.clone().unwrap_or_default();
    let group = plan::group(identity, &applied.cluster.spec, observed);
    let members = members(identity, observed, group.as_ref(), &old);
    let leader = group.as_ref().and_then(|group| group.leader).map(|leader| leader.pod.name.clone());
    let leader_since = match &leader {
        Some(name) if old.leader.as_ref() == Some(name) => old.leader_since.clone().or_else(|| Some(now.clone())),
        Some(_) => Some(now.clone()),
        None => None,
    };
    let epoch = group.as_ref().and_then(|group| i64::try_from(group.witness.replica.epoch.0).ok());
    let belongs = |member: &MemberReport| member.voter || member.role.is_some();
    let follows = |member: &&MemberReport| belongs(member) && Some(&member.name) != leader.as_ref();
    let facts = Facts { identity, spec: &applied.cluster.spec, observed, group: group.as_ref(), applied, problems };
    KvClusterStatus {
        cluster_id: group.as_ref().map(|group| group.cluster_id.to_string()).or(old.cluster_id),
        followers: members.iter().filter(follows).map(|member| member.name.clone()).collect(),
        leader,
        leader_since,
        epoch: epoch.or(old.epoch),
        image: Some(applied.image.clone()).filter(|image| !image.is_empty()).or(old.image),
        replicas: count(observed.pods.len()),
        ready_replicas: count(observed.pods.values().filter(|pod| pod.ready).count()),
        updated_replicas: count(applied.updated as usize),
        selector: Some(identity.selector_text()),
        members,
        conditions: conditions::conditions(&facts, &old.conditions, now),
        observed_generation: applied.cluster.metadata.generation,
    }
}

/// The cluster with its new status, when that is worth a write. `since_positions`: time since the last one.
pub fn changed(cluster: &KvCluster, status: KvClusterStatus, since_positions: Option<Duration>) -> Option<KvCluster> {
    let old = cluster.status.clone().unwrap_or_default();
    let only_positions = without_positions(&old) == without_positions(&status);
    let too_soon = since_positions.is_some_and(|since| since < POSITIONS_EVERY);
    if old == status || (only_positions && too_soon) {
        return None;
    }
    Some(KvCluster { status: Some(status), ..cluster.clone() })
}

fn without_positions(status: &KvClusterStatus) -> KvClusterStatus {
    let mut status = status.clone();
    for member in &mut status.members {
        (member.last_id, member.durable_id, member.lag_entries) = (None, None, None);
    }
    status
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// The pods, and voters that have no pod at the moment.
fn members(
    identity: &Identity,
    observed: &Observed,
    group: Option<&Group<'_>>,
    old: &KvClusterStatus,
) -> Vec<MemberReport> {
    let voters = group.iter().flat_map(|group| &group.voters).filter_map(|voter| voter.ordinal);
    let ordinals: BTreeSet<u32> = observed.pods.keys().copied().chain(voters).collect();
    ordinals
        .into_iter()
        .map(|ordinal| MemberReport {
            message: message(identity, observed, ordinal, group),
            ..member(&identity.pod(ordinal), observed.pods.get(&ordinal), group, old)
        })
        .collect()
}

/// All but what is wrong with it.
fn member(name: &str, pod: Option<&PodSeen>, group: Option<&Group<'_>>, old: &KvClusterStatus) -> MemberReport {
    let before = old.members.iter().find(|member| member.name == name);
    let status = pod.and_then(PodSeen::status);
    let named = group.and_then(|group| group.voters.iter().find(|voter| voter.info.name.as_str() == name));
    let member_id = status.map(|status| status.replica.member_id).or(named.map(|voter| voter.info.member_id));
    let text = member_id.map(|id| id.to_string()).or_else(|| before?.member_id.clone());
    // Before the group exists, a voter is who was assigned as one, with the volume that it then had.
    let assigned = before.is_some_and(|before| before.voter && before.member_id == text);
    MemberReport {
        name: name.to_owned(),
        node: pod.and_then(|pod| pod.host.clone()),
        role: group.zip(pod).and_then(|(group, pod)| group.role(pod)),
        voter: group.map_or(assigned, |group| member_id.is_some_and(|id| group.votes(id))),
        ready: pod.is_some_and(|pod| pod.ready),
        last_id: status.and_then(|status| position(status.replica.last_id.0)),
        durable_id: status.and_then(|status| position(status.replica.durable_id.0)),
        lag_entries: status.and_then(|status| position(lag(group, status))),
        message: None,
        member_id: text,
    }
}

/// The leader's word for it, where there is one.
fn lag(group: Option<&Group<'_>>, status: &NodeStatus) -> u64 {
    let record = |member: MemberId| group?.record(member).map(|record| record.lag);
    record(status.replica.member_id).unwrap_or(status.replica.lag)
}

fn position(id: u64) -> Option<i64> {
    i64::try_from(id).ok()
}

fn message(identity: &Identity, observed: &Observed, ordinal: u32, group: Option<&Group<'_>>) -> Option<String> {
    let Some(pod) = observed.pods.get(&ordinal) else {
        let why = observed.why_not_made(identity, ordinal);
        return Some(why.map_or("its pod does not exist".to_owned(), |why| format!("its pod does not exist: {why}")));
    };
    if let Some(trouble) = &pod.trouble {
        return Some(trouble.to_string());
    }
    let status = match &pod.answer {
        Answer::Unknown(why) => return Some(why.clone()),
        Answer::Status(status) => status,
    };
    if let Some(why) = &status.replica.quarantined {
        return Some(format!("quarantined: {why}"));
    }
    let foreign = status.replica.cluster_id.as_ref().zip(group).filter(|(id, group)| **id != group.cluster_id);
    foreign.map(|(id, _)| format!("its volume belongs to cluster {id}: it stays outside until its claim is deleted"))
}

#[cfg(test)]
mod tests;
