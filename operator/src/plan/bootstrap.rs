//! Founding a group: once, when every pod answers and every volume is empty. The body is decided here,
//! written to the status by compare-and-swap, and only then sent; whoever comes back to a half-done one
//! sends the same body again, taken from a member that has it. Pods and files never name voters.

use kv_core::entry::EntryId;
use kv_core::group::{ClusterId, MemberId, MemberInfo, NodeName, Settings};

use super::membership::waiting_for;
use super::{Assignment, Case, Directive, Founder, Memory, Step};
use crate::crd::Reason;
use crate::observed::{Observed, PodSeen};
use crate::validate::Desired;

/// No node that answers is a member of a group: all pods that there are to be must answer first.
pub(super) fn found(case: Case<'_>, _: &mut Memory) -> Step {
    let Case { desired, observed, group: None, set_replicas, draw, .. } = case else { return Step::default() };
    let silent: Vec<u32> = (0..set_replicas).filter(|ordinal| !is_empty(observed, *ordinal)).collect();
    if !silent.is_empty() {
        return Step::waits(Reason::Founding, waiting_for(desired, observed, &silent));
    }
    let founders: Vec<(MemberInfo, Founder)> =
        (0..desired.replicas).filter_map(|ordinal| founder(desired, observed, ordinal)).collect();
    let present: Vec<MemberInfo> = founders.iter().map(|(info, _)| info.clone()).collect();
    match assigned(desired, observed) {
        Some(assignment) if assignment.voters == present => {
            let nodes = founders.into_iter().map(|(_, founder)| founder).collect();
            send(nodes, assignment, desired.settings)
        }
        // Led once: what the volumes held is gone, and founding it anew would hide that.
        Some(_) if observed.status.epoch.is_some_and(|epoch| epoch > 0) => {
            let message = "every volume is empty, but the group has held data: put the volumes back, or delete and create the KvCluster to begin anew";
            Step::waits(Reason::Founding, message)
        }
        _ => {
            let assignment = Some(Assignment { cluster_id: draw.cluster_id.clone(), voters: present });
            Step { assignment, ..Step::waits(Reason::Founding, "the group is being founded") }
        }
    }
}

/// A member that was never reached gets the body that the others hold.
pub(super) fn finish(case: Case<'_>, _: &mut Memory) -> Step {
    let Case { observed, group: Some(group), .. } = case else { return Step::default() };
    if group.witness.replica.config_id != EntryId::ZERO {
        return Step::default();
    }
    let empty = |member_id: MemberId| {
        let pod = observed.pods.values().find(|pod| pod.is_empty() && own_id(pod) == Some(member_id))?;
        Some(Founder { pod: pod.name.clone(), url: pod.url()?, member_id })
    };
    let nodes: Vec<Founder> = group.voters.iter().filter_map(|voter| empty(voter.info.member_id)).collect();
    if nodes.is_empty() {
        return Step::default();
    }
    let voters = group.voters.iter().map(|voter| voter.info.clone()).collect();
    send(nodes, Assignment { cluster_id: group.cluster_id.clone(), voters }, group.witness.replica.settings)
}

fn send(nodes: Vec<Founder>, assignment: Assignment, settings: Settings) -> Step {
    Step::does(Directive::Bootstrap { nodes, assignment, settings }, Reason::Founding, "the group is being founded")
}

fn is_empty(observed: &Observed, ordinal: u32) -> bool {
    observed.pods.get(&ordinal).is_some_and(|pod| pod.is_empty() && !pod.terminating)
}

fn own_id(pod: &PodSeen) -> Option<MemberId> {
    Some(pod.status()?.replica.member_id)
}

fn founder(desired: &Desired, observed: &Observed, ordinal: u32) -> Option<(MemberInfo, Founder)> {
    let pod = observed.pods.get(&ordinal)?;
    let member_id = own_id(pod)?;
    let name = NodeName::new(&pod.name).ok()?;
    let info = MemberInfo { name, member_id, peer_url: desired.identity.peer_url(ordinal) };
    Some((info, Founder { pod: pod.name.clone(), url: pod.url()?, member_id }))
}

/// What was written to the status before.
fn assigned(desired: &Desired, observed: &Observed) -> Option<Assignment> {
    let cluster_id = ClusterId::new(observed.status.cluster_id.as_deref()?).ok()?;
    let voters = observed.status.members.iter().filter(|member| member.voter).map(|member| {
        let ordinal = desired.identity.ordinal(&member.name)?;
        let (name, member_id) = (NodeName::new(&member.name).ok()?, member.member_id.as_ref()?.parse().ok()?);
        Some(MemberInfo { name, member_id, peer_url: desired.identity.peer_url(ordinal) })
    });
    let voters: Option<Vec<MemberInfo>> = voters.collect();
    Some(Assignment { cluster_id, voters: voters? })
}
