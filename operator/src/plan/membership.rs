//! Who is in the group: as many voters as replicas, with the lowest ordinals. Up: learner, caught up,
//! voter. Down: the voter first, then its pod, and only while a majority of those that remain is
//! reachable and caught up. Decides on a confirmed leader's word alone; the leader refuses, too.

use kv_core::group::{MemberId, MemberInfo};
use kv_core::quorum::safe_to_remove;

use super::{Case, Directive, Memory, Step};
use crate::crd::Reason;
use crate::group::{Addressee, Group, Voter, addressee};
use crate::observed::{Observed, PodSeen};
use crate::validate::Desired;

/// Pods that the StatefulSet is to hold: never fewer than the highest voter needs, and fewer than now
/// only on the word of a confirmed leader. Volumes that were kept all start first, whatever their
/// number: they may hold a larger group.
pub(super) fn set_replicas(desired: &Desired, observed: &Observed, group: Option<&Group<'_>>) -> u32 {
    let present = observed.set().map(|set| set.replicas);
    let needed = match group.filter(|group| group.leader.is_some()) {
        Some(group) => group.highest_ordinal(),
        None => match present {
            Some(replicas) => replicas.checked_sub(1),
            None => observed.claims.keys().max().copied(),
        },
    };
    desired.replicas.max(needed.map_or(0, |ordinal| ordinal + 1))
}

pub(super) fn plan(case: Case<'_>, _: &mut Memory) -> Step {
    let Case { desired, observed, .. } = case;
    let led = case.led().and_then(|(group, leader)| Some((group, addressee(leader.pod)?)));
    let Some((group, leader)) = led else { return Step::default() };
    if let Some(step) = join(desired, observed, group, &leader) {
        return step;
    }
    let beyond = |voter: &&Voter<'_>| voter.ordinal.is_some_and(|ordinal| ordinal >= desired.replicas);
    match group.voters.iter().filter(beyond).max_by_key(|voter| voter.ordinal) {
        Some(voter) => remove(desired, group, leader, voter),
        None => awaited(desired, observed, group),
    }
}

/// The first pod that should vote and does not.
fn join(desired: &Desired, observed: &Observed, group: &Group<'_>, leader: &Addressee) -> Option<Step> {
    let outside = observed.pods.range(..desired.replicas).filter(|(_, pod)| !pod.terminating);
    let mut outside = outside.filter_map(|(ordinal, pod)| Some((*ordinal, pod, own_id(pod, group)?)));
    let (ordinal, pod, member_id) = outside.find(|(_, _, member_id)| !group.votes(*member_id))?;
    let name = pod.status()?.replica.name.clone();
    let replaces = group.voters.iter().any(|voter| voter.info.name == name);
    let member = MemberInfo { name, member_id, peer_url: desired.identity.peer_url(ordinal) };
    // The leader replaces a voter of the same name by itself.
    let voter = !replaces && group.is_fit(member_id);
    let directive = Directive::Join { leader: leader.clone(), member, voter };
    let pod = &pod.name;
    let (reason, message) = if replaces {
        (Reason::Replacing, format!("{pod} has an empty volume: it is filled from the leader and takes its old place"))
    } else {
        (Reason::Scaling, format!("{pod} is catching up, to become a voter"))
    };
    Some(Step::does(directive, reason, message))
}

/// A node of this group, or an empty one. Members of another group stay outside until they are emptied.
fn own_id(pod: &PodSeen, group: &Group<'_>) -> Option<MemberId> {
    let replica = &pod.status()?.replica;
    let ours = replica.cluster_id.as_ref().is_none_or(|id| *id == group.cluster_id);
    ours.then_some(replica.member_id)
}

/// Pods that should vote and do not answer yet.
fn awaited(desired: &Desired, observed: &Observed, group: &Group<'_>) -> Step {
    let votes = |ordinal: &u32| group.voters.iter().any(|voter| voter.ordinal == Some(*ordinal));
    let silent = |ordinal: &u32| observed.pods.get(ordinal).is_none_or(|pod| pod.status().is_none());
    let awaited: Vec<u32> = (0..desired.replicas).filter(|ordinal| !votes(ordinal) && silent(ordinal)).collect();
    if let Some((pod, claim)) = outsider(desired, observed, group) {
        let message = format!(
            "{pod} holds the volume of another cluster; to let it join as an empty member: \
             kubectl delete pvc {claim} --wait=false; kubectl delete pod {pod}"
        );
        return Step::waits_aside(Reason::Replacing, message);
    }
    if awaited.is_empty() {
        return Step::default();
    }
    Step::waits_aside(Reason::Scaling, waiting_for(desired, observed, &awaited))
}

/// What is said of pods that do not answer.
pub(super) fn waiting_for(desired: &Desired, observed: &Observed, ordinals: &[u32]) -> String {
    let names: Vec<String> = ordinals.iter().map(|ordinal| desired.identity.pod(*ordinal)).collect();
    let waiting = format!("waiting for {} to answer", names.join(", "));
    let not_made = ordinals.iter().find_map(|ordinal| observed.why_not_made(&desired.identity, *ordinal));
    not_made.map_or(waiting.clone(), |why| format!("{waiting}; not all of them exist: {why}"))
}

/// A pod that should be a member, and its claim: its volume was filled by another group.
fn outsider(desired: &Desired, observed: &Observed, group: &Group<'_>) -> Option<(String, String)> {
    let is_foreign = |pod: &PodSeen| {
        pod.status().and_then(|status| status.replica.cluster_id.as_ref()).is_some_and(|id| *id != group.cluster_id)
    };
    let (ordinal, pod) = observed.pods.range(..desired.replicas).find(|(_, pod)| is_foreign(pod))?;
    Some((pod.name.clone(), desired.identity.claim(*ordinal)))
}

fn remove(desired: &Desired, group: &Group<'_>, leader: Addressee, voter: &Voter<'_>) -> Step {
    let name = voter.info.name.to_string();
    let remaining = group.voters.iter().filter(|other| other.info.member_id != voter.info.member_id);
    let fit = remaining.clone().filter(|other| group.is_fit(other.info.member_id)).count();
    if !safe_to_remove(remaining.count(), fit) {
        let missing = group.missing().join(", ");
        let message = format!("{name} cannot be removed: without {missing} no majority of the others would be left");
        return Step::waits(Reason::ScaleDownUnsafe, message);
    }
    if voter.info.member_id != leader.member_id {
        let member_id = voter.info.member_id;
        let message = format!("{name} is being removed from the group");
        return Step::does(Directive::Remove { leader, member_id, name }, Reason::Scaling, message);
    }
    match group.successor(|ordinal| ordinal < desired.replicas) {
        Some(node) => {
            let message = format!("{} takes over from {name}, which is to be removed", node.pod);
            Step::does(Directive::Lead { node, why: "scale-down" }, Reason::Scaling, message)
        }
        None => {
            Step::waits(Reason::ScaleDownUnsafe, format!("{name} leads, and nobody that stays is fit to take over"))
        }
    }
}
