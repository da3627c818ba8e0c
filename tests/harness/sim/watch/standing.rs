//! The checks of a process's standing in its group, by what was said to it: who may campaign and vote, who leads on,
//! who answers reads, who leaves for a snapshot. Kept from orders, messages and notes; called as they come and go.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::contract::Failover;
use kv_core::entry::Epoch;
use kv_core::group::MemberId;
use kv_core::message::{Append, Heartbeat, Lead, Message, Round, VoteKind, VoteRequest};
use kv_core::status::Role;

use super::most;
use super::rules::{PERHAPS_HEARD_PERCENT, SURELY_HEARD_PERCENT};
use crate::sim::admin::Order;
use crate::sim::node::Place;
use crate::sim::world::{Waiter, World};

/// A leader that nobody hears has looked for silence twice by then, four times a second.
const UNHEARD_US_MAX: u64 = 1_000_000;

/// What was said to processes.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Processes that nobody has told to campaign above this epoch.
    untold: BTreeMap<Place, Epoch>,
    /// The last epoch in which a leader has handed over to a process, which may hear a heartbeat of it behind that; and the round that
    /// it was in.
    handed: BTreeMap<Place, (Epoch, u64)>,
    /// They led, and have followed nobody since.
    deposed: BTreeSet<Place>,
    /// Whom a process follows in which epoch, and when it was last heard as a leader.
    led: BTreeMap<Place, (MemberId, Epoch, u64)>,
    /// Since when a leader is heard by no majority.
    unheard_since_us: BTreeMap<Place, u64>,
    connected_us: BTreeMap<(Place, MemberId), u64>,
    /// Whether a member counts in no quorum, by its own last word.
    unfit: BTreeMap<(Place, MemberId), bool>,
    /// The last round that has come to a process, and the last one that had when its quarantine began.
    last_round: BTreeMap<Place, (Epoch, Round)>,
    last_round_before: BTreeMap<Place, (Epoch, Round)>,
}

/// A voter that hears its leader is asked for a vote by somebody whose time was out: its epoch stays.
pub(crate) struct Undisturbed(Epoch);

impl World {
    /// Where a group is led by whom it is told to, the first node is told by its flag.
    pub(super) fn watch_may_campaign(&mut self, place: Place) {
        if place.node != 0 {
            self.watch.standing.untold.insert(place, Epoch::default());
        }
    }

    pub(super) fn watch_told(&mut self, place: Place, waiter: Option<&Waiter>) {
        // Who is tuned may stand already, as it did before.
        if matches!(waiter, Some(Waiter::Admin(Order::Lead | Order::Tune))) {
            self.watch.standing.untold.remove(&place);
        }
    }

    pub(super) fn note_standing(&mut self, place: Place, from: MemberId, message: &Message) {
        let standing = &mut self.watch.standing;
        match message {
            Message::TimeoutNow { epoch } => {
                standing.untold.remove(&place);
                let handed = standing.handed.entry(place).or_default();
                *handed = (*handed).max((*epoch, self.watch.rounds + 1));
            }
            Message::NotAMember { .. } => drop(standing.led.remove(&place)),
            Message::Heartbeat(Heartbeat { epoch, lead, unfit, .. }) => {
                standing.unfit.insert((place, from), *unfit);
                if let Some(Lead { round, .. }) = lead {
                    let last = standing.last_round.entry(place).or_default();
                    *last = (*last).max((*epoch, *round));
                }
            }
            _ => {}
        }
    }

    /// It was elected in this epoch because the leader of the one before told it to campaign.
    pub(super) fn was_handed(&self, place: Place, epoch: Epoch) -> bool {
        self.watch.standing.handed.get(&place).is_some_and(|(handed, _)| Epoch(handed.0 + 1) == epoch)
    }

    /// The leader of this epoch has told somebody to campaign.
    pub(super) fn has_handed_over(&self, epoch: Epoch) -> bool {
        self.watch.standing.handed.values().any(|(handed, _)| *handed == epoch)
    }

    /// Asked before a message is stepped, and held against what came of it.
    pub(crate) fn watch_disturbed(&self, place: Place, from: MemberId, message: &Message) -> Option<Undisturbed> {
        let Message::VoteRequest(VoteRequest { kind: VoteKind::Election, .. }) = message else { return None };
        let view = self.nodes[place.node].process.as_ref()?.replica.view(self.clock_of(place));
        let (leader, epoch, heard_us) = *self.watch.standing.led.get(&place)?;
        let within_us = self.timeout_ms_of(place) * 1000 * SURELY_HEARD_PERCENT / 100;
        let hears = view.leader == Some(leader) && view.epoch == epoch && self.now_us - heard_us < within_us;
        (hears && leader != from).then_some(Undisturbed(epoch))
    }

    pub(crate) fn watch_stepped(&mut self, place: Place, from: MemberId, leads_in: Option<Epoch>) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let view = process.replica.view(self.clock_of(place));
        let follows = leads_in == Some(view.epoch) && view.leader == Some(from) && !process.replica.is_installing();
        if follows {
            self.watch.standing.led.insert(place, (from, view.epoch, self.now_us));
        }
    }

    pub(crate) fn watch_undisturbed(&self, place: Place, before: Option<Undisturbed>) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        if let Some(Undisturbed(before)) = before {
            let epoch = process.replica.view(self.clock_of(place)).epoch;
            assert_eq!(epoch, before, "a voter that hears its leader heeds a campaign by time-out");
        }
    }

    pub(crate) fn watch_told_disconnected(&mut self, place: Place, refused: bool) {
        if refused {
            self.watch.standing.led.remove(&place); // its process is dead
        }
    }

    pub(super) fn note_connected(&mut self, place: Place, peer: MemberId) {
        self.watch.standing.connected_us.insert((place, peer), self.now_us);
    }

    pub(crate) fn watch_follows(&mut self, place: Place, epoch: Epoch) {
        let waits = |process: &crate::sim::node::Process| {
            process.waiting.values().any(|waiter| matches!(waiter, Waiter::Admin(Order::Lead)))
        };
        let has_order = self.nodes[place.node].process.as_ref().is_some_and(waits);
        let standing = &mut self.watch.standing;
        // What hands over to it comes behind what says who leads, also within one round.
        let is_told = has_order || standing.handed.get(&place) == Some(&(epoch, self.watch.rounds));
        standing.deposed.remove(&place);
        if !is_told {
            standing.untold.insert(place, epoch);
        }
    }

    /// Deposed by nobody in particular, it stands again.
    pub(crate) fn watch_deposed(&mut self, place: Place) {
        self.watch.standing.deposed.insert(place);
        self.watch.standing.untold.remove(&place);
    }

    pub(super) fn note_elected(&mut self, place: Place) {
        self.watch.standing.deposed.remove(&place);
    }

    pub(super) fn check_standing(&self, place: Place, message: &Message) {
        match message {
            Message::VoteRequest(request) => self.check_told(place, request.epoch),
            Message::HeartbeatAck { epoch, round } if self.watch.rules.is_quarantined(place) => {
                let before = self.watch.standing.last_round_before.get(&place).copied().unwrap_or_default();
                assert!((*epoch, *round) <= before, "a quarantined member confirms a leader");
            }
            Message::Append(append) => self.check_sent_alone(place, append),
            _ => {}
        }
    }

    fn check_told(&self, place: Place, epoch: Epoch) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let failover = process.replica.status(self.clock_of(place)).tuning.failover;
        if !self.shape.is_manual || failover != Failover::Manual || self.voters_of(place).len() == 1 {
            return;
        }
        let Standing { untold, handed, .. } = &self.watch.standing;
        let is_untold = untold.get(&place).is_some_and(|since| epoch > *since);
        let is_handed = handed.get(&place).is_some_and(|(handed, _)| epoch.0 == handed.0 + 1);
        assert!(!is_untold || is_handed, "campaigns for epoch {epoch}, and was not told to");
    }

    fn check_sent_alone(&self, place: Place, append: &Append) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let is_alone = self.voters_of(place) == [process.member];
        let durable = self.nodes[place.node].volume.ledger.last_durable();
        let last = append.entries.last().map(|entry| entry.id);
        assert!(!is_alone || last <= Some(durable), "the only voter sends {last:?}, and its disk ends at {durable}");
    }

    pub(super) fn note_quarantine_begins(&mut self, place: Place) {
        let standing = &mut self.watch.standing;
        let last = standing.last_round.get(&place).copied().unwrap_or_default();
        standing.last_round_before.insert(place, last);
    }

    /// Whoever leaves for a snapshot leaves a majority of voters that it hears, and that count.
    pub(crate) fn watch_left(&self, place: Place) {
        let Some(me) = self.nodes[place.node].process.as_ref().map(|process| process.member) else { return };
        let counts = |voter: &MemberId| {
            let is_fit = self.watch.standing.unfit.get(&(place, *voter)) == Some(&false);
            *voter != me && is_fit && self.may_be_heard(place, *voter)
        };
        let leaves_enough = self.any_configuration(place, |voters| !voters.contains(&me) || most(voters, counts));
        assert!(leaves_enough, "leaves for a snapshot, and the others are no majority without it");
    }

    /// With the voters that it surely hears, and that count by their own last word.
    pub(crate) fn could_elect(&self, place: Place) -> bool {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return false };
        let (me, voters) = (process.member, self.voters_of(place));
        let is_heard = |voter: &MemberId| {
            let is_fit = self.watch.standing.unfit.get(&(place, *voter)) == Some(&false);
            is_fit && process.connections.contains_key(voter) && self.was_heard(place, *voter, SURELY_HEARD_PERCENT)
        };
        let is_fit = !self.watch.rules.is_quarantined(place);
        let has_others = voters.iter().any(|voter| *voter != me && is_heard(voter));
        let counts = |voter: &MemberId| if *voter == me { is_fit } else { is_heard(voter) };
        process.inbox.is_empty() && has_others && most(&voters, counts)
    }

    fn may_be_heard(&self, place: Place, member: MemberId) -> bool {
        let within_us = self.timeout_ms_of(place) * 1000 * PERHAPS_HEARD_PERCENT / 100;
        let connected_us = self.watch.standing.connected_us.get(&(place, member));
        let is_new = connected_us.is_some_and(|connected_us| self.now_us - connected_us < within_us);
        is_new || self.was_heard(place, member, PERHAPS_HEARD_PERCENT)
    }

    /// A leader that no majority is heard by steps down, where another can be elected.
    pub(super) fn watch_unheard(&mut self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let status = process.replica.status(self.clock_of(place));
        let voters = self.voters_of(place);
        let may_be_heard = |voter: &MemberId| *voter == process.member || self.may_be_heard(place, *voter);
        let is_unheard = status.role == Role::Leader
            && status.tuning.failover == Failover::Automatic
            && !most(&voters, may_be_heard);
        let since = &mut self.watch.standing.unheard_since_us;
        if !is_unheard {
            since.remove(&place);
            return;
        }
        let since_us = *since.entry(place).or_insert(self.now_us);
        let for_us = self.now_us - since_us;
        assert!(for_us <= UNHEARD_US_MAX, "leads on, and has heard no majority for {for_us} us");
    }

    /// What a stopped process has not heard is not held against it.
    pub(crate) fn watch_paused(&mut self, index: usize) {
        self.watch.standing.unheard_since_us.retain(|place, _| place.node != index);
    }

    pub(super) fn check_read_by_deposed(&self, place: Place) {
        let is_deposed = self.watch.standing.deposed.contains(&place);
        assert!(!is_deposed, "a deposed leader answers a read before it has heard who leads");
    }
}

/// The epoch that a message says its sender leads in.
pub(crate) fn leads_in(message: &Message) -> Option<Epoch> {
    match message {
        Message::Heartbeat(heartbeat) => heartbeat.lead.as_ref().map(|_| heartbeat.epoch),
        Message::Append(append) => Some(append.epoch),
        _ => None,
    }
}
