//! Two processes of one member: a copy of its volume runs beside the original. Each peer goes by the start that it accepted
//! last, and nothing that another one says counts. Who is told so by a voter that had accepted it before knows that it
//! is not alone, and stays out until it is started again (docs/decisions/0014). Which of the two is the right one, nobody
//! can know here. Called where a member is judged and where its word would count.

use super::Replica;
use crate::contract::{Note, Quarantine};
use crate::group::MemberId;
use crate::message::Seen;
use crate::mutant::{self, Mutant};

impl Replica {
    /// The start that it shows itself as is not the one that was accepted last.
    pub(super) fn is_refused(&self, member: MemberId) -> bool {
        let shown = self.peers.get(&member).and_then(|peer| peer.hello.as_ref()).map(|hello| hello.start_id);
        let accepted = self.hard.seen.get(&member).map(|seen| seen.start_id).filter(|start_id| *start_id != 0);
        let differ = shown.zip(accepted).is_some_and(|(shown, accepted)| shown != accepted);
        differ && !mutant::on(Mutant::CountRefusedStart)
    }

    /// That it was refused may have been lost on the way.
    pub(super) fn refuse_again(&mut self, member: MemberId) {
        if !self.is_refused(member) {
            return;
        }
        if let Some(hello) = self.peers.get(&member).and_then(|peer| peer.hello.clone()) {
            self.judge(member, &hello);
        }
    }

    /// `from` had accepted this very start, and has accepted another since.
    pub(super) fn has_rival(&self, from: MemberId, seen: &Seen) -> bool {
        let is_later = seen.incarnation > self.hard.incarnation;
        is_later && self.accepted_by.contains(&from) && !mutant::on(Mutant::SupersededComesBack)
    }

    /// Its next start outdoes the other one. This start does not: what it shows is a tie at best, and refused.
    pub(super) fn give_way_to_rival(&mut self, name: &str, seen: &Seen) {
        let incarnation = seen.incarnation;
        let reason = format!(
            "another process of this member: {name} has accepted incarnation {incarnation} beside this one. Stop one of the \
             two; if it is the other, start this one again"
        );
        self.superseded = true;
        self.hard.incarnation = incarnation;
        self.hard.quarantine = Some(Quarantine { reason: reason.clone(), until: None, may_vote: false });
        self.note(Note::Superseded { reason });
        self.persist_state();
    }
}
