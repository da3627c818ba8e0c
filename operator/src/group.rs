//! The group of nodes as their answers show it: which cluster it is, who votes, who leads. What a
//! confirmed leader says counts; without one, the most recent configuration that anybody holds is
//! a guess, good for reports and never for removing anything. Pure.

use std::collections::BTreeMap;

use kv_core::entry::EntryId;
use kv_core::group::{ClusterId, MemberId, MemberInfo};
use kv_core::quorum::{CAUGHT_UP_ENTRIES, majority};
use kv_core::status::{Health, MemberStatus, NodeStatus, Role};

use crate::crd::PodRole;
use crate::names::Identity;
use crate::observed::{Observed, PodSeen};

#[derive(Debug, Clone)]
pub struct Group<'a> {
    pub cluster_id: ClusterId,
    pub voters: Vec<Voter<'a>>,
    /// The node that leads, confirmed by a majority within its lease.
    pub leader: Option<Leader<'a>>,
    /// Whose answer this is taken from.
    pub witness: &'a NodeStatus,
}

#[derive(Debug, Clone)]
pub struct Voter<'a> {
    pub info: MemberInfo,
    /// None: the name is no pod's of this cluster.
    pub ordinal: Option<u32>,
    /// Its pod, if that answers with the member id of the voter.
    pub pod: Option<&'a PodSeen>,
}

#[derive(Debug, Clone, Copy)]
pub struct Leader<'a> {
    pub ordinal: u32,
    pub pod: &'a PodSeen,
    pub status: &'a NodeStatus,
}

/// Where a directive goes, and what it was decided on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressee {
    pub pod: String,
    pub url: String,
    pub cluster_id: ClusterId,
    pub member_id: MemberId,
    pub config_id: EntryId,
}

impl<'a> Group<'a> {
    /// `recovered`: what the group is called if the recovery that the spec asks for was carried out. None: no node
    /// that answers is a member of a group.
    pub fn seen(identity: &Identity, observed: &'a Observed, recovered: Option<&ClusterId>) -> Option<Self> {
        let cluster_id = cluster_id(observed, recovered)?;
        let members = || members_of(observed, &cluster_id);
        let leader = members()
            .filter(|(_, _, status)| status.replica.role == Role::Leader && status.replica.lease_held)
            .max_by_key(|(_, _, status)| status.replica.epoch)
            .map(|(ordinal, pod, status)| Leader { ordinal, pod, status });
        let latest = || members().max_by_key(|(_, _, status)| (status.replica.config_id, status.replica.epoch));
        let witness = leader.map(|leader| leader.status).or_else(|| latest().map(|(_, _, status)| status))?;
        let voters = witness.replica.members.iter().filter(|member| member.voter);
        let voters = voters.map(|member| voter(identity, observed, member)).collect();
        Some(Self { cluster_id, voters, leader, witness })
    }

    /// Voters whose pods answer.
    pub fn answering(&self) -> impl Iterator<Item = (&Voter<'a>, &'a NodeStatus)> {
        self.voters.iter().filter_map(|voter| Some((voter, voter.pod?.status()?)))
    }

    pub fn majority_answers(&self) -> bool {
        self.answering().count() >= majority(self.voters.len())
    }

    /// A majority answers, and can elect: who is quarantined or was never founded gives no vote.
    pub fn majority_can_elect(&self) -> bool {
        let votes = |status: &NodeStatus| {
            status.replica.cluster_id.as_ref() == Some(&self.cluster_id) && status.replica.quarantined.is_none()
        };
        self.answering().filter(|(_, status)| votes(status)).count() >= majority(self.voters.len())
    }

    pub fn votes(&self, member: MemberId) -> bool {
        self.voters.iter().any(|voter| voter.info.member_id == member)
    }

    /// The leader's record of a member; None without a leader.
    pub fn record(&self, member: MemberId) -> Option<&'a MemberStatus> {
        self.leader?.status.replica.members.iter().find(|record| record.member_id == member)
    }

    /// What a pod that answers is in the group. None: it is outside.
    pub fn role(&self, pod: &PodSeen) -> Option<PodRole> {
        let member = pod.status()?.replica.member_id;
        match () {
            () if self.leader.is_some_and(|leader| leader.pod.name == pod.name) => Some(PodRole::Leader),
            () if self.votes(member) => Some(PodRole::Follower),
            () => self.record(member).map(|_| PodRole::Learner),
        }
    }

    /// The leader hears the member, and it holds nearly all.
    pub fn is_fit(&self, member: MemberId) -> bool {
        self.record(member)
            .is_some_and(|record| record.health == Health::Healthy && !record.unfit && record.lag <= CAUGHT_UP_ENTRIES)
    }

    /// The voters that are not fit, by name.
    pub fn missing(&self) -> Vec<String> {
        let missing = self.voters.iter().filter(|voter| !self.is_fit(voter.info.member_id));
        missing.map(|voter| voter.info.name.to_string()).collect()
    }

    pub fn highest_ordinal(&self) -> Option<u32> {
        self.voters.iter().filter_map(|voter| voter.ordinal).max()
    }

    /// The voter best placed to lead instead of the present leader: fit, on a host that stays, least behind.
    pub fn successor(&self, allowed: impl Fn(u32) -> bool) -> Option<Addressee> {
        let leader = self.leader?;
        let candidates = self.voters.iter().filter_map(|voter| {
            let (ordinal, pod) = (voter.ordinal?, voter.pod?);
            let suits = ordinal != leader.ordinal
                && allowed(ordinal)
                && pod.ready
                && !pod.cordoned
                && !pod.terminating
                && self.is_fit(voter.info.member_id);
            suits.then(|| (self.record(voter.info.member_id).map_or(u64::MAX, |record| record.lag), ordinal, pod))
        });
        let (_, _, pod) = candidates.min_by_key(|(lag, ordinal, _)| (*lag, *ordinal))?;
        addressee(pod)
    }
}

/// A node as a directive names it. None: it does not answer, or belongs to no group.
pub fn addressee(pod: &PodSeen) -> Option<Addressee> {
    let replica = &pod.status()?.replica;
    Some(Addressee {
        pod: pod.name.clone(),
        url: pod.url()?,
        cluster_id: replica.cluster_id.clone()?,
        member_id: replica.member_id,
        config_id: replica.config_id,
    })
}

/// The one that a recovery has made, then the one that the status names, if anybody is in it; else the one that
/// most nodes are in.
fn cluster_id(observed: &Observed, recovered: Option<&ClusterId>) -> Option<ClusterId> {
    let mut counts: BTreeMap<&ClusterId, usize> = BTreeMap::new();
    for id in observed.pods.values().filter_map(|pod| pod.status()?.replica.cluster_id.as_ref()) {
        *counts.entry(id).or_default() += 1;
    }
    let known = observed.status.cluster_id.as_deref();
    let rank = |id: &ClusterId, count| (recovered == Some(id), known == Some(id.as_str()), count);
    let most = counts.iter().max_by_key(|(id, count)| rank(id, **count));
    most.map(|(id, _)| (*id).clone())
}

/// The pods that answer as members of this group.
pub(crate) fn members_of<'a>(
    observed: &'a Observed,
    cluster_id: &ClusterId,
) -> impl Iterator<Item = (u32, &'a PodSeen, &'a NodeStatus)> {
    observed.pods.iter().filter_map(move |(ordinal, pod)| Some((*ordinal, pod, pod.status_in(cluster_id)?)))
}

fn voter<'a>(identity: &Identity, observed: &'a Observed, member: &MemberStatus) -> Voter<'a> {
    let ordinal = identity.ordinal(member.name.as_str());
    let pod = ordinal.and_then(|ordinal| observed.pods.get(&ordinal));
    let same = |pod: &&PodSeen| pod.status().is_some_and(|s| s.replica.member_id == member.member_id);
    let MemberStatus { name, member_id, peer_url, .. } = member;
    let info = MemberInfo { name: name.clone(), member_id: *member_id, peer_url: peer_url.clone() };
    Voter { info, ordinal, pod: pod.filter(same) }
}
