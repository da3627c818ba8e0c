//! A majority of the volumes is lost for good, and a person has said so: the surviving pod goes on alone, as
//! another cluster. Only when the epoch that the person accepted is the present one, nobody leads, and no
//! majority answers that could elect; the node checks for itself, too. The new cluster id follows from the old one and
//! the order, so that an operator that ended in between knows what it has done: nothing is sent twice.

use kv_core::group::ClusterId;

use super::{Case, Directive, Memory, Step};
use crate::crd::{KvClusterSpec, KvClusterStatus, Reason};
use crate::group::addressee;
use crate::names::hex_digest;

/// Hexadecimal digits of a cluster id.
const ID_DIGITS: usize = 32;

/// What the cluster is called after the recovery that is asked for. None: none is.
pub(super) fn recovered_as(spec: &KvClusterSpec, status: &KvClusterStatus) -> Option<ClusterId> {
    let recovery = spec.recovery.as_ref()?;
    let old = status.cluster_id.as_deref()?;
    let order = format!("{old}\n{}\n{}", recovery.force_leader, recovery.accept_data_loss_at_epoch);
    ClusterId::new(&hex_digest(&order, ID_DIGITS)).ok()
}

/// Nothing but a recovery that can be carried out has the turn: the order may be about another situation, and must
/// keep nothing else from being done.
pub(super) fn plan(case: Case<'_>, _: &mut Memory) -> Step {
    order(case).and_then(Result::ok).unwrap_or_default()
}

/// Why what was ordered is not done.
pub(super) fn why_not(case: Case<'_>, _: &mut Memory) -> Step {
    let why = order(case).and_then(Result::err);
    why.map_or_else(Step::default, |why| Step::waits_aside(Reason::Recovering, why))
}

/// None: there is no order, it was carried out, or somebody leads.
fn order(case: Case<'_>) -> Option<Result<Step, String>> {
    let Case { desired, observed, .. } = case;
    let group = case.group.filter(|group| group.leader.is_none())?;
    let recovery = desired.spec.recovery.as_ref()?;
    let new_cluster_id = recovered_as(&desired.spec, &observed.status).filter(|id| *id != group.cluster_id)?;
    let (accepted, pod) = (recovery.accept_data_loss_at_epoch, &recovery.force_leader);
    // As the next status will say it: since the last one somebody may have led, and what was written then was not
    // accepted as lost.
    let present = group.witness.replica.epoch.0;
    if i64::try_from(present) != Ok(accepted) {
        let why =
            format!("spec.recovery accepts a loss at epoch {accepted}, and the epoch is {present}: nothing is done");
        return Some(Err(why));
    }
    if group.majority_can_elect() {
        let why = "spec.recovery waits: a majority of the voters answers, and nothing is lost for good";
        return Some(Err(why.to_owned()));
    }
    let survivor = desired.identity.ordinal(pod).and_then(|ordinal| observed.pods.get(&ordinal));
    let member = survivor.and_then(|pod| Some((addressee(pod)?, pod.status_in(&group.cluster_id)?)));
    let Some((node, status)) = member else {
        return Some(Err(format!("spec.recovery waits for {pod}: it does not answer as a member of the group")));
    };
    let message = format!("{pod} goes on alone, as cluster {new_cluster_id}: what it does not hold is lost");
    let directive = Directive::Recover { node, epoch: status.replica.epoch, new_cluster_id };
    Some(Ok(Step::does(directive, Reason::Recovering, message)))
}
