//! What an order was decided on: cluster, member and configuration, as a person or the operator sees them at a node. It
//! is drawn right, absent and wrong, and orders come late, so that the configuration has gone on; whichever order it
//! is, whoever it does not fit refuses it.

use std::collections::BTreeMap;

use kv_core::contract::{Refusal, Reply, Request, Target, Token};
use kv_core::entry::{EntryId, Epoch};
use kv_core::group::{ClusterId, MemberId};

use super::coverage::Reached;
use super::node::Place;
use super::world::World;

/// What no epoch and no id of a run comes to.
pub(crate) const FAR: u64 = 1_000_000;

/// Orders that are on their way to their answers.
#[derive(Debug, Default)]
pub(crate) struct Judged(BTreeMap<(Place, Token), Verdict>);

/// Whether an order fits the replica that it comes to, as it comes.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    Fits,
    /// It would have fitted before.
    IsLate(Reached),
    IsWrong(Reached),
}

impl World {
    /// What is seen of a member, with its epoch.
    pub(crate) fn decided_on(&self, index: usize) -> Option<(Target, Epoch)> {
        let process = self.nodes[index].process.as_ref()?;
        let status = process.replica.status(self.clock_of(process.place));
        let (target_member_id, if_config_id) = (status.member_id, status.config_id);
        Some((Target { cluster_id: status.cluster_id?, target_member_id, if_config_id }, status.epoch))
    }

    /// Right more often than absent or wrong. Whoever puts things right does not err.
    pub(crate) fn order_target(&mut self, index: usize) -> Option<Target> {
        let (right, _) = self.decided_on(index)?;
        match self.random.below(100) {
            0..20 => None,
            20..35 if !self.admin.repairs => Some(self.wrong(right)),
            _ => Some(right),
        }
    }

    pub(crate) fn wrong(&mut self, right: Target) -> Target {
        match self.random.below(3) {
            0 => Target { if_config_id: EntryId(right.if_config_id.0 + FAR), ..right },
            1 => Target { cluster_id: another_cluster(), ..right },
            _ => Target { target_member_id: MemberId(1), ..right },
        }
    }

    /// As the order is stepped, and no moment before: what it was decided on may have changed on its way.
    pub(crate) fn judge_order(&mut self, place: Place, token: Token, request: &Request) {
        let (target, refused) = match request {
            Request::Lead { target } => (target, Reached::DirectiveRefused),
            Request::AddMember { target, .. } | Request::RemoveMember { target, .. } => {
                (target, Reached::MembershipMismatched)
            }
            Request::ChangeSettings { target, .. } => (target, Reached::SettingsMismatched),
            _ => return,
        };
        let Some(target) = target else { return };
        let own = self.decided_on(place.node).map(|(own, _)| own);
        let is_late = |own: &Target| Target { if_config_id: own.if_config_id, ..target.clone() } == *own;
        let verdict = match own {
            Some(own) if own == *target => Verdict::Fits,
            Some(own) if is_late(&own) && target.if_config_id < own.if_config_id => Verdict::IsLate(refused),
            _ => Verdict::IsWrong(refused),
        };
        self.admin.judged.0.insert((place, token), verdict);
    }

    pub(crate) fn check_directed(&mut self, place: Place, token: Token, reply: &Reply) {
        let Some(verdict) = self.admin.judged.0.remove(&(place, token)) else { return };
        let is_mismatch = matches!(reply, Reply::Refused(Refusal::IdentityMismatch { .. }));
        match verdict {
            Verdict::Fits => assert!(!is_mismatch, "an order for this very node was refused: {reply:?}"),
            // Who does not lead may say that first.
            Verdict::IsLate(_) | Verdict::IsWrong(_) if matches!(reply, Reply::Refused(Refusal::NotLeader { .. })) => {}
            Verdict::IsLate(refused) | Verdict::IsWrong(refused) => {
                assert!(is_mismatch, "an order for another node was not refused: {reply:?}");
                self.coverage.count(refused);
                if matches!(verdict, Verdict::IsLate(_)) {
                    self.coverage.count(Reached::DirectiveLate);
                }
            }
        }
    }
}

pub(crate) fn another_cluster() -> ClusterId {
    ClusterId::new("another").expect("a legal name")
}
