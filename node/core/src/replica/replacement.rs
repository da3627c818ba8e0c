//! Learners, and the replacement of a voter whose volume is lost: the new member of its name learns; once it
//! has caught up the old one is removed, then the new one promoted. Between the two the configuration names
//! the new one, so that whoever leads goes on from there.

use super::membership::{ChangeKind, LEARNERS_MAX, Learner};
use super::progress::Progress;
use super::{Replica, Role};
use crate::contract::{Note, Now, Refusal};
use crate::group::{Configuration, MemberId, MemberInfo, Replacement, VOTERS_MAX};
use crate::message::Round;

impl Replica {
    pub(super) fn add_learner(&mut self, now: Now, member: MemberInfo) -> Result<(), Refusal> {
        let replaces = self.replaced_by(&member);
        let next = self.log.last().id.next();
        let voters: Vec<MemberId> = self.configuration().ids().collect();
        let Role::Leader(leader) = &mut self.role else { return Ok(()) };
        let namesake = leader.learners.values().find(|l| l.info.name == member.name).map(|l| l.info.member_id);
        if let Some(old) = namesake.filter(|old| *old != member.member_id) {
            leader.learners.remove(&old);
            if !voters.contains(&old) {
                leader.progress.remove(&old);
            }
        }
        let id = member.member_id;
        if leader.learners.len() >= LEARNERS_MAX && !leader.learners.contains_key(&id) {
            return Err(Refusal::Conflict(format!("the leader keeps at most {LEARNERS_MAX} learners")));
        }
        leader.learners.insert(id, Learner { info: member, replaces });
        leader.progress.entry(id).or_insert_with(|| Progress::new(next, now.mono_ms));
        debug_assert!(!voters.contains(&id), "a voter is no learner");
        Ok(())
    }

    /// The voter, present or removed already, that `member` comes in the place of.
    fn replaced_by(&self, member: &MemberInfo) -> Option<MemberId> {
        let Configuration { voters, replacing } = self.configuration();
        let voter = voters.iter().find(|voter| voter.name == member.name).map(|voter| voter.member_id);
        voter.or_else(|| replacing.iter().find(|r| r.new.name == member.name).map(|r| r.old))
    }

    pub(super) fn successor_of(&self, member: MemberId) -> Option<MemberInfo> {
        let Role::Leader(leader) = &self.role else { return None };
        let learner = leader.learners.values().find(|learner| learner.replaces == Some(member));
        learner.map(|learner| learner.info.clone())
    }

    /// What the leader before has begun: the new members are learners here from the first moment on.
    pub(super) fn take_over_replacements(&mut self, now: Now) {
        let next = self.log.last().id.next();
        let replacing = self.configuration().replacing.clone();
        let Role::Leader(leader) = &mut self.role else { return };
        for Replacement { old, new } in replacing {
            leader.progress.insert(new.member_id, Progress::new(next, now.mono_ms));
            leader.learners.insert(new.member_id, Learner { info: new, replaces: Some(old) });
        }
    }

    /// A lost volume: the new member has caught up, so the old one goes, then the new one votes.
    pub(super) fn replace_lost(&mut self, now: Now) {
        let Role::Leader(leader) = &self.role else { return };
        if leader.change.is_some() || leader.learners.values().all(|l| l.replaces.is_none()) {
            return;
        }
        let due = leader.learners.values().filter_map(|l| Some((l.info.clone(), l.replaces?)));
        let due = due.filter(|(new, _)| self.is_reachable(now, new.member_id) && self.is_caught_up(new.member_id));
        // One that is half done first: until its end the group has a voter less.
        let (present, removed): (Vec<_>, Vec<_>) = due.partition(|(_, old)| self.configuration().contains(*old));
        if let Some((new, old)) = removed.into_iter().next() {
            if self.configuration().voters.len() < VOTERS_MAX {
                self.note(Note::MemberReplaced { old, new: new.member_id });
                self.begin_change(now, ChangeKind::Add(new), None);
            }
        } else if let Some((_, old)) = present.into_iter().find(|&(_, old)| self.may_be_replaced(now, old)) {
            self.begin_change(now, ChangeKind::Remove(old), None);
        }
    }

    fn may_be_replaced(&self, now: Now, old: MemberId) -> bool {
        !self.was_heard(now, old) && self.why_not_remove(now, old, Round::default()).is_none()
    }
}
