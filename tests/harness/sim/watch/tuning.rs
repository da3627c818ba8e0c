//! What a node must do as it is tuned: its heartbeats come at the interval that is in force. And when a leader was heard,
//! which keeps a node from being recovered by hand.

use std::collections::BTreeMap;

use kv_core::entry::Epoch;
use kv_core::group::MemberId;
use kv_core::message::{Append, Heartbeat, Message};

use super::rules::SURELY_HEARD_PERCENT;
use crate::sim::node::Place;
use crate::sim::world::World;

#[derive(Debug, Default)]
pub(super) struct Tuned {
    /// The last word of a leader that came to a process.
    led_us: BTreeMap<Place, (Epoch, MemberId, u64)>,
}

impl World {
    pub(super) fn note_leader(&mut self, place: Place, from: MemberId, message: &Message) {
        if let Message::Heartbeat(Heartbeat { epoch, lead: Some(_), .. }) | Message::Append(Append { epoch, .. }) =
            message
        {
            self.watch.tuned.led_us.insert(place, (*epoch, from, self.now_us));
        }
    }

    /// The next heartbeat is never further away than the interval.
    pub(super) fn check_pace(&self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let interval_ms = process.replica.tuning().heartbeat_interval_ms;
        let (now_ms, due_ms) = (self.clock_of(place).mono_ms, process.replica.deadline_ms());
        assert!(due_ms <= now_ms + interval_ms, "nothing is due before {due_ms} at {now_ms}, with {interval_ms} ms");
    }

    /// The leader that this node surely hears, which leads there still and counts it among its voters.
    pub(crate) fn surely_led_by(&self, place: Place) -> Option<Place> {
        let process = self.nodes[place.node].process.as_ref()?;
        let view = process.replica.view(self.clock_of(place));
        let (epoch, leader, heard_us) = self.watch.tuned.led_us.get(&place).copied()?;
        let within_us = self.timeout_ms_of(place) * 1000 * SURELY_HEARD_PERCENT / 100;
        let is_heard = view.epoch == epoch && view.leader == Some(leader) && self.now_us - heard_us < within_us;
        let there = self.place_of(leader).filter(|there| is_heard && self.leads_in(*there, epoch))?;
        self.is_voter(there, process.member).then_some(there)
    }
}
