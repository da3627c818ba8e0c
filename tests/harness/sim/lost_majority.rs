//! A majority that is lost for good, and its survivor that is recovered by hand: volumes go until who is left is no
//! majority, a person tells one of them to go on alone, and makes empty volumes of the other nodes members again. Volumes
//! of the former group come back later, and must find nobody who believes them. Who leads, or hears a leader or a
//! majority, is told to recover, too, and must refuse.

use kv_core::contract::{Input, Refusal, Reply, Request, Target, Token};
use kv_core::entry::Epoch;
use kv_core::group::{ClusterId, MemberId};
use kv_core::quorum::majority;
use kv_core::status::Role;

use super::admin::Order;
use super::coverage::Reached;
use super::disk::Crash;
use super::node::{Place, Volume};
use super::targets::FAR;
use super::watch::{Ledger, most};
use super::world::{Waiter, World};

#[derive(Debug, Default)]
pub(crate) struct LostMajority {
    stage: Stage,
    /// Of the group whose majority was lost.
    voters: Vec<MemberId>,
    /// By which that group could go on.
    former: Vec<Vec<MemberId>>,
    /// Of that group, with the nodes that they belong to.
    lost: Vec<(usize, Volume)>,
    orders: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Before,
    /// The node that is to go on alone.
    Lost(usize),
    /// It has: what is not of its group is of no group.
    Recovered(usize),
}

impl World {
    /// What the administrator does about it.
    pub(crate) fn administer_recovery(&mut self) {
        let Some(lasts_us) = self.shape.majority_lasts_us else { return };
        match self.lost_majority.stage {
            Stage::Before if self.admin.repairs || self.now_us < lasts_us => {}
            Stage::Before => self.lose_majority(),
            Stage::Lost(survivor) if self.watch.is_of_a_recovered_group(&self.nodes[survivor].volume.ledger) => {
                self.coverage.count(Reached::RecoveredByHand);
                self.lost_majority.stage = Stage::Recovered(survivor);
            }
            Stage::Lost(survivor) => self.recover(survivor),
            Stage::Recovered(_) => self.rebuild(),
        }
        if !self.admin.repairs && self.random.percent(30) {
            self.recover_wrongly();
        }
    }

    /// At a moment at which every voter holds everything, so that whoever is left does, and nothing is lost.
    fn lose_majority(&mut self) {
        let Some(leader) = self.whole_group() else { return };
        self.lost_majority.voters = self.voters_of(leader);
        self.lost_majority.former = vec![self.lost_majority.voters.clone()];
        let count = self.lost_majority.voters.len();
        let mut places: Vec<Place> =
            self.lost_majority.voters.iter().filter_map(|voter| self.place_of(*voter)).collect();
        let is_of_now = |place: &Place| {
            self.nodes[place.node].process.as_ref().is_some_and(|process| process.view.epoch >= self.watch.last_led())
        };
        if count < 2 || !places.iter().all(is_of_now) {
            return;
        }
        let mut left = Vec::new();
        for _ in 0..self.random.between(1, majority(count) as u64 - 1) {
            left.push(places.swap_remove(self.random.index(places.len())));
        }
        // A leader that is left is heard by the others: then it is the one that can be recovered.
        let survivor = if left.contains(&leader) { leader } else { left[0] };
        self.coverage.count(Reached::MajorityLost);
        self.lost_majority.stage = Stage::Lost(survivor.node);
        self.keep_a_copy(survivor.node);
        for place in places {
            self.lose_for_good(place.node);
        }
    }

    /// Of the survivor's volume as it is before its recovery.
    fn keep_a_copy(&mut self, index: usize) {
        if self.random.percent(50) {
            let Volume { disk, ledger } = &self.nodes[index].volume;
            let copy = Volume { disk: disk.image(Crash::PowerLosesAll), ledger: ledger.clone() };
            self.lost_majority.lost.push((index, copy));
        }
    }

    fn lose_for_good(&mut self, index: usize) {
        self.tell(index, format_args!("loses its volume for good"));
        self.part(index, Crash::Power);
        let lost = self.nodes[index].volume.clone();
        self.lost_majority.lost.push((index, lost));
        self.begin_empty(index);
    }

    fn recover(&mut self, survivor: usize) {
        let Some((target, epoch)) = self.decided_on(survivor) else { return };
        let place = self.nodes[survivor].process.as_ref().expect("it was just seen").place;
        if most(&self.voters_of_volume(&self.nodes[survivor].volume.ledger), |voter| self.is_intact(*voter)) {
            // A change of voters that was under way, or the replacement of one, has made a majority of those who are left.
            self.lost_majority = LostMajority { orders: self.lost_majority.orders, ..LostMajority::default() };
            return;
        }
        let voters = self.voters_of(place);
        self.lost_majority.former.push(voters); // a change of them may be under way, or have ended, since the volumes were lost
        if self.random.percent(30) {
            self.compact_here(survivor);
        }
        if self.random.percent(50) && !self.admin.repairs {
            self.keep_it_from_the_others(survivor);
        }
        self.order_once(survivor, Order::Recover, self.recovery_of(target, epoch));
        self.lost_majority.orders += 1;
    }

    /// They do not hear of it: what they say still arrives.
    fn keep_it_from_the_others(&mut self, survivor: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != survivor) {
            self.network.cut(survivor, other);
        }
    }

    fn recovery_of(&self, target: Target, epoch: Epoch) -> Request {
        let name = format!("recovered-{}", self.lost_majority.orders);
        let new_cluster_id = ClusterId::new(&name).expect("a legal name");
        Request::Recover { target: Some(target), accept_data_loss_at_epoch: epoch, new_cluster_id }
    }

    /// As many voters as before, and then more trouble.
    fn rebuild(&mut self) {
        let is_over = self.admin.repairs;
        self.empty_former_members(if is_over { 100 } else { 5 });
        let Some(leader) = self.leader() else { return };
        let voters = self.voters_of(leader).len();
        if voters < self.lost_majority.voters.len() && !is_over {
            self.make_a_voter(leader.node);
        } else if voters >= self.lost_majority.voters.len() {
            self.coverage.count(Reached::RecoveredGrew);
        }
        if !is_over && self.random.percent(20) {
            self.put_former_volume_back();
        }
        if !is_over && self.random.percent(50) {
            self.stir_former_member();
        }
    }

    fn make_a_voter(&mut self, leader: usize) {
        let index = self.random.index(self.nodes.len());
        if self.random.percent(60) && !self.is_former_member(index) {
            self.add(leader, index, Order::Learner);
            self.add(leader, index, Order::Voter);
        }
    }

    /// A person empties it, since nobody of the recovered group will have it.
    fn empty_former_members(&mut self, percent: u64) {
        for index in 0..self.nodes.len() {
            if self.is_former_member(index) && self.random.percent(percent) {
                self.coverage.count(Reached::FormerMemberEmptied);
                self.tell(index, format_args!("is emptied"));
                self.part(index, Crash::Power);
                self.begin_empty(index);
            }
        }
    }

    pub(crate) fn is_former_member(&self, index: usize) -> bool {
        let volume = &self.nodes[index].volume.ledger;
        let is_recovered = matches!(self.lost_majority.stage, Stage::Recovered(_));
        is_recovered && volume.cluster().is_some() && !self.watch.is_of_a_recovered_group(volume)
    }

    /// Never so many that they are a majority of the former group, by whichever of their logs: it would go on, and rightly.
    fn put_former_volume_back(&mut self) {
        let fits = |(index, _): &(usize, Volume)| self.is_spare(*index);
        let Some(at) = self.lost_majority.lost.iter().position(fits) else { return };
        let there = self.nodes.iter().enumerate().filter(|(index, _)| self.is_former_member(*index));
        let there = there.map(|(_, node)| &node.volume.ledger).chain([&self.lost_majority.lost[at].1.ledger]);
        let there: Vec<&Ledger> = there.collect();
        let members: Vec<_> = there.iter().filter_map(|ledger| ledger.member()).collect();
        let may_go_on = |voters: &[MemberId]| most(voters, |voter| members.contains(voter));
        let has_former_majority = self.lost_majority.former.iter().any(|voters| may_go_on(voters));
        if has_former_majority || there.iter().any(|ledger| may_go_on(&self.voters_of_volume_soon(ledger))) {
            return;
        }
        let (index, volume) = self.lost_majority.lost.swap_remove(at);
        self.coverage.count(Reached::FormerVolumeReturned);
        self.tell(index, format_args!("gets its volume of the former group back"));
        self.part(index, Crash::Power);
        volume.disk.set_room(None);
        volume.disk.disarm();
        self.bury(index, volume);
        self.start_later(index);
    }

    /// It is told to lead, and campaigns in ever higher epochs.
    fn stir_former_member(&mut self) {
        let former: Vec<usize> = (0..self.nodes.len()).filter(|index| self.is_former_member(*index)).collect();
        if let Some(index) = self.random.pick(&former) {
            self.order_once(index, Order::Lead, Request::Lead { target: None });
        }
    }

    /// A recovery that was decided on something else, or that is not needed.
    fn recover_wrongly(&mut self) {
        let index = self.random.index(self.nodes.len());
        let Some((right, epoch)) = self.decided_on(index) else { return };
        let (wrong, epoch) = match self.random.below(8) {
            0 => (right, Epoch(epoch.0 + FAR)),
            1..4 => (self.wrong(right), epoch),
            _ => return self.recover_needlessly(index, right, epoch),
        };
        self.order_once(index, Order::RecoverWrongly, self.recovery_of(wrong, epoch));
    }

    /// At once: a moment later the leader could be gone, and the group be split by an order that was right by then.
    fn recover_needlessly(&mut self, index: usize, target: Target, epoch: Epoch) {
        let Some(process) = self.nodes[index].process.as_ref() else { return };
        let (place, now) = (process.place, self.clock_of(process.place));
        let view = process.replica.view(now);
        let leads = view.role == Role::Leader && view.lease_until_mono_ms > now.mono_ms;
        let is_led = leads || self.surely_led_by(place).is_some();
        let is_needless = is_led || self.could_elect(place);
        if self.is_paused(index) || !is_needless {
            return;
        }
        if !is_led {
            self.coverage.count(Reached::RecoveryBesideMajority);
        }
        let token = Token(self.next_number());
        let request = self.recovery_of(target, epoch);
        let waiter = Waiter::Admin(Order::RecoverNeedlessly);
        if let Some(process) = self.process(place) {
            process.waiting.insert(token, waiter);
        }
        self.tell(index, format_args!("is told: {:?}", Order::RecoverNeedlessly));
        self.step(place, Input::Request { token, request });
        self.round_at(place, self.now_us);
    }

    pub(crate) fn replied_to_recovery(&mut self, place: Place, order: Order, reply: &Reply) {
        match (order, reply) {
            (Order::Recover, Reply::Done { .. }) => {
                let is_durable = self.watch.is_of_a_recovered_group(&self.nodes[place.node].volume.ledger);
                assert!(is_durable, "recovered, and not on the disk");
            }
            (Order::RecoverWrongly, Reply::Refused(Refusal::IdentityMismatch { .. })) => {
                self.coverage.count(Reached::RecoveryMismatched);
            }
            (Order::RecoverNeedlessly, Reply::Refused(Refusal::Conflict(_))) => {
                self.coverage.count(Reached::RecoveryRefused);
            }
            (Order::Recover, _) => {}
            _ => panic!("{order:?} was not refused: {reply:?}"),
        }
    }

    /// Of one group are all nodes, when all is well.
    pub(crate) fn are_of_one_group(&self) -> bool {
        let cluster = |index: usize| self.nodes[index].volume.ledger.cluster();
        (1..self.shape.nodes).all(|index| cluster(index) == cluster(0))
    }
}
