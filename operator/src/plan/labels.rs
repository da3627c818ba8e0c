//! Labels of pods and claims: the role of each pod, as the nodes say it, and those of ours that somebody
//! edited. Roles drive the Service of the leader and are nobody's safety.

use std::collections::BTreeMap;

use super::{Labelled, Relabel};
use crate::crd::PodRole;
use crate::group::Group;
use crate::names::{ROLE_LABEL, SERVES_LABEL};
use crate::observed::{Observed, PodSeen};

/// What the nodes do, as they say it.
pub(super) fn of_nodes(observed: &Observed, group: Option<&Group<'_>>) -> impl Iterator<Item = Relabel> {
    roles(observed, group).into_iter().chain(serving(observed, group))
}

/// Whether it says what a node does. The others put back what somebody edited.
pub(super) fn is_of_nodes(relabel: &Relabel) -> bool {
    [ROLE_LABEL, SERVES_LABEL].iter().any(|label| relabel.labels.contains_key(*label))
}

/// A pod that does not answer keeps its role, unless another leads. Whoever is deposed loses the label before
/// another one gets it: two leaders at once would share the Service.
fn roles(observed: &Observed, group: Option<&Group<'_>>) -> Vec<Relabel> {
    let leader = group.and_then(|group| group.leader).map(|leader| leader.ordinal);
    let roles: BTreeMap<u32, Option<PodRole>> = observed
        .pods
        .iter()
        .filter_map(|(ordinal, pod)| {
            let role = match pod.status() {
                Some(_) => group.and_then(|group| group.role(pod)),
                None if leader.is_some() && pod.role_label.as_deref() == Some(PodRole::Leader.as_str()) => None,
                None => return None,
            };
            Some((*ordinal, role))
        })
        .collect();
    let mut wrong: Vec<_> = roles
        .into_iter()
        .filter(|(ordinal, role)| observed.pods[ordinal].role_label.as_deref() != role.map(PodRole::as_str))
        .collect();
    wrong.sort_by_key(|(_, role)| *role == Some(PodRole::Leader));
    let relabel = |(ordinal, role): (u32, Option<PodRole>)| Relabel {
        what: Labelled::Pod,
        name: observed.pods[&ordinal].name.clone(),
        labels: [(ROLE_LABEL.to_owned(), role.map(|role| role.as_str().to_owned()))].into(),
    };
    wrong.into_iter().map(relabel).collect()
}

/// Clients are kept from a node whose volume belongs to another group: it may be ready, and what it says is not
/// what this cluster holds. Only on a confirmed leader's word.
fn serving(observed: &Observed, group: Option<&Group<'_>>) -> Vec<Relabel> {
    let led = group.filter(|group| group.leader.is_some());
    let is_foreign = |pod: &PodSeen| {
        let id = pod.status().and_then(|status| status.replica.cluster_id.as_ref());
        id.zip(led).is_some_and(|(id, group)| *id != group.cluster_id)
    };
    let wrong = observed.pods.values().filter_map(|pod| {
        let serves = (!is_foreign(pod)).to_string();
        let known = pod.status().is_some() || pod.serves_label.is_none();
        (known && pod.serves_label.as_ref() != Some(&serves)).then(|| Relabel {
            what: Labelled::Pod,
            name: pod.name.clone(),
            labels: [(SERVES_LABEL.to_owned(), Some(serves))].into(),
        })
    });
    wrong.collect()
}

/// A pod without its labels is let go by its set, and taken back as soon as it has them again.
pub(super) fn edited(observed: &Observed) -> impl Iterator<Item = Relabel> {
    let pods = observed.pods.values().map(|pod| (Labelled::Pod, &pod.name, &pod.relabel));
    let claims = observed.claims.values().map(|claim| (Labelled::Claim, &claim.name, &claim.relabel));
    pods.chain(claims).filter(|(_, _, relabel)| !relabel.is_empty()).map(|(what, name, relabel)| Relabel {
        what,
        name: name.clone(),
        labels: relabel.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect(),
    })
}
