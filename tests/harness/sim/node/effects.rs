//! One round of the driver: everything that has happened is stepped through, the effects are taken once
//! and carried out in their order. Mirrors `kv_node::driver::{rounds, effects}`.

use kv_core::contract::{Effect, Input, Note};
use kv_core::entry::EntryId;
use kv_core::group::MemberId;
use kv_core::message::{AppendAck, AppendResult, Message};
use kv_node::driver::Fetch;

use super::{Happening, Place};
use crate::sim::Profile;
use crate::sim::coverage::Reached;
use crate::sim::network::Packet;
use crate::sim::watch::{Log, leads_in};
use crate::sim::world::{Event, World};

/// Taken from the inbox in one round.
const PER_ROUND: usize = 64;

/// A request for a snapshot comes again within this time: then another one comes behind it.
const SNAPSHOT_ASKED_AGAIN_US_MAX: u64 = 1_000_000;

fn asks_for_snapshot(message: &Message) -> bool {
    matches!(message, Message::AppendAck(AppendAck { result: AppendResult::NeedSnapshot, .. }))
}

impl World {
    /// A round at the given time, unless an earlier one is due.
    pub(crate) fn round_at(&mut self, place: Place, at_us: u64) {
        let Some(process) = self.process(place) else { return };
        if process.round_at_us.is_none_or(|due| at_us < due) {
            process.round_at_us = Some(at_us);
            self.at(at_us, Event::Round(place));
        }
    }

    pub(crate) fn arrives(&mut self, place: Place, happening: Happening) {
        let delay_us = self.random.below(300);
        let Some(process) = self.process(place) else { return };
        process.inbox.push_back(happening);
        self.round_at(place, self.now_us + delay_us);
    }

    pub(crate) fn round(&mut self, place: Place) {
        let now_us = self.now_us;
        let Some(process) = self.process(place) else { return };
        if process.round_at_us.is_none_or(|due_us| due_us > now_us) {
            return; // another one came first
        }
        process.round_at_us = None;
        for _ in 0..PER_ROUND {
            let Some(happening) = self.process(place).and_then(|process| process.inbox.pop_front()) else { break };
            self.happens(place, happening);
        }
        let now = self.nodes[place.node].now(now_us);
        let Some(process) = self.process(place) else { return };
        if now.mono_ms >= process.replica.deadline_ms() {
            self.step(place, Input::Tick);
            self.watch_ticked(place);
        }
        let Some(process) = self.process(place) else { return };
        let effects = process.replica.take_effects(now);
        process.replica.check_invariants();
        self.watch_round(place);
        self.fall_with_a_replacement_half_done(place);
        for effect in effects {
            self.carry_out(place, effect);
        }
        self.watch_voters(place);
        self.answer_reads(place);
        self.next_round(place);
    }

    fn next_round(&mut self, place: Place) {
        let Some(node) = self.nodes.get(place.node) else { return };
        let Some(process) = node.process.as_ref().filter(|process| process.place == place) else { return };
        let at_us = if process.inbox.is_empty() {
            node.clock.true_time_us(process.replica.deadline_ms()).max(self.now_us + 1)
        } else {
            self.now_us + 1
        };
        self.round_at(place, at_us);
    }

    fn happens(&mut self, place: Place, happening: Happening) {
        match happening {
            Happening::Step(input) => {
                match &input {
                    Input::Request { token, request } => {
                        self.judge_order(place, *token, request);
                        self.watch_question(place, *token);
                    }
                    Input::Storage { full } => self.watch_told_full(place, *full),
                    Input::Connected { hello } => self.watch_told_connected(place, hello),
                    Input::Disconnected { refused, .. } => self.watch_told_disconnected(place, *refused),
                    _ => {}
                }
                self.step(place, input);
            }
            // Lines are lines, whoever asks: the log answers, the replica has no part in it.
            Happening::Received { from, message: Message::LinesRequest { first, last } } => {
                self.lend_lines(place, from.member, first, last);
            }
            Happening::Received { from, message: Message::Lines { entries, .. } } => {
                self.lines_lent(place, from.member, entries);
            }
            Happening::Received { from, message } => {
                self.watch_received(place, from, &message);
                let stranger = self.watch_stranger(place, from.member);
                let counts = self.surely_counts(place, from);
                let from = from.member;
                let undisturbed = self.watch_disturbed(place, from, &message);
                let leads_in = leads_in(&message).filter(|_| counts);
                self.step(place, Input::Received { from, message });
                self.watch_undisturbed(place, undisturbed);
                self.watch_stepped(place, from, leads_in);
                stranger.into_iter().for_each(|before| self.watch_unmoved(place, from, before));
            }
            Happening::SnapshotStaged(input) => self.snapshot_staged(place, input),
            Happening::Installed(input) => {
                self.step(place, input);
                self.process(place).into_iter().for_each(|process| process.is_receiving = false);
            }
            Happening::SnapshotSent { input, floor } => {
                self.step(place, input);
                self.drop_floor(place, floor);
            }
            Happening::Failed(reason) => self.exit(place.node, &reason),
            Happening::Settle => self.settle_compaction(place),
        }
    }

    fn carry_out(&mut self, place: Place, effect: Effect) {
        match effect {
            Effect::Persist { seq, op } => {
                self.watch_asked(place, &op);
                let Some(process) = self.process(place) else { return };
                process.ops.push_back((seq, op));
                self.kick_log(place);
            }
            Effect::Send { to, message } => self.send(place, to, message),
            Effect::Reply { token, reply } => self.replied(place, token, reply),
            Effect::Peers(members) => {
                let Some(process) = self.process(place) else { return };
                process.peers = members;
                self.dial_peers(place);
            }
            Effect::Redial { peer } => self.dial_at(place, peer, self.now_us),
            Effect::Fetch { peer, from, bytes_max } => self.fetch(place, Fetch { peer, from, bytes_max }),
            Effect::SendSnapshot { peer, epoch } => self.send_snapshot(place, peer, epoch),
            Effect::ViewChanged => self.view_changed(place),
            Effect::Note(note) => self.noted(place, &note),
            Effect::Stop { reason } => self.stopped_by_rules(place.node, &reason),
        }
    }

    pub(crate) fn send(&mut self, place: Place, to: MemberId, message: Message) {
        let Some(process) = self.process(place) else { return };
        let Some(&connection) = process.connections.get(&to) else { return };
        self.watch_sent(place, to, &message);
        self.trace.message(&message);
        let Some(open) = self.network.get(connection) else { return };
        let (from, to) = (open.other(open.other(place).place), open.other(place));
        if self.network.is_cut(from.place.node, to.place.node) || self.is_lost_beside_copies(&message) {
            self.coverage.count(Reached::MessageLost);
            return;
        }
        let fate = self.network.send(self.now_us, &mut self.random, connection, to);
        let reached = match fate.arrivals_us.len() {
            0 => Some(Reached::MessageLost),
            1 => fate.overtakes.then_some(Reached::MessageOvertook),
            _ => Some(Reached::MessageTwice),
        };
        reached.into_iter().for_each(|reached| self.coverage.count(reached));
        let mut arrivals_us = fate.arrivals_us;
        if self.profile == Profile::Tight && asks_for_snapshot(&message) {
            arrivals_us.push(self.now_us + self.random.below(SNAPSHOT_ASKED_AGAIN_US_MAX));
        }
        for at_us in arrivals_us {
            let message = message.clone();
            self.at(at_us, Event::Packet(Box::new(Packet { connection, from, to, message })));
        }
    }

    pub(crate) fn deliver(&mut self, packet: Packet) {
        let Packet { connection, from, to, message } = packet;
        if self.network.is_open(connection) && !self.network.is_cut(from.place.node, to.place.node) {
            self.arrives(to.place, Happening::Received { from, message });
        }
    }

    fn view_changed(&mut self, place: Place) {
        let now = self.nodes[place.node].now(self.now_us);
        let Some(process) = self.process(place) else { return };
        let before = process.view.epoch;
        process.view = process.replica.view(now);
        if process.view.epoch > before {
            self.forwards_are_void(place);
        }
    }

    fn noted(&mut self, place: Place, note: &Note) {
        self.tell(place.node, format_args!("{note:?}"));
        let reached = match note {
            Note::BecameLeader { epoch } => {
                self.watch_elected(place, *epoch);
                Reached::Elected
            }
            Note::Deposed { .. } => {
                self.watch_deposed(place);
                Reached::Deposed
            }
            Note::Follows { epoch, .. } => {
                self.watch_follows(place, *epoch);
                Reached::EpochChanged
            }
            Note::TailCut { .. } => Reached::TailCut,
            Note::Quarantined { reason } => {
                let left = reason.starts_with("damaged");
                if left {
                    self.watch_left(place);
                    self.bury_a_copy(place.node); // the snapshot drops what it has acknowledged
                } else if self.is_place_of_copies(place.node) {
                    self.coverage.count(Reached::CopyRefusedBeside);
                }
                let until = left.then(|| self.must_hold(place));
                self.watch_quarantined(place, until, if left { Log::Whole } else { Log::Doubtful });
                if left { Reached::LeftForSnapshot } else { Reached::StaleVolumeRefused }
            }
            Note::Superseded { .. } => {
                self.watch_quarantined(place, None, Log::Doubtful);
                return self.note_superseded(place);
            }
            Note::Refilled => {
                self.count_refill(place);
                self.watch_refilled(place);
                self.note_copy_refilled(place);
                Reached::Refilled
            }
            Note::MemberReplaced { .. } => Reached::MemberReplaced,
            // Who steps down unheard is told to be deposed, too.
            Note::Unheard { .. }
            | Note::Campaigns { .. }
            | Note::Behind { .. }
            | Note::PeerDown(_)
            | Note::PeerHealthy(_)
            | Note::ConfigurationApplied { .. } => return,
        };
        self.coverage.count(reached);
    }

    fn lend_lines(&mut self, place: Place, to: MemberId, first: EntryId, last: EntryId) {
        let Some(process) = self.process(place) else { return };
        if let Ok(entries) = process.reader.read_held(first, last, 1 << 20) {
            let compacted = process.reader.horizon();
            self.watch_read(place, &entries);
            self.send(place, to, Message::Lines { first, last, compacted, entries });
        }
    }
}
