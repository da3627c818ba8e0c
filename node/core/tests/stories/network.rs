//! The network of the stories' world: in order and at once, unless a story asks for chaos; then messages
//! are late, twice, and overtake each other, by a seed.

use std::collections::{BTreeMap, VecDeque};

use kv_core::entry::{Epoch, LogPosition};
use kv_core::group::{ClusterId, MemberId};
use kv_core::message::Message;

use super::disk::Staged;

/// The longest that a message takes under chaos.
const DELAY_MS_MAX: u64 = 250;

#[derive(Clone)]
pub(super) struct Packet {
    pub(super) from: String,
    pub(super) sender: MemberId,
    pub(super) to: String,
    pub(super) parcel: Parcel,
}

#[derive(Clone)]
pub(super) enum Parcel {
    Message(Message),
    Snapshot { staged: Staged, receiver: MemberId, epoch: Epoch, position: LogPosition, cluster_id: ClusterId },
}

#[derive(Default)]
pub(super) struct Network {
    due: VecDeque<Packet>,
    /// By the time of arrival, then the order of sending.
    late: BTreeMap<(u64, u64), Packet>,
    sent: u64,
    /// Some: snapshots are kept back, until a story releases them.
    kept: Option<Vec<Packet>>,
    chaos: Option<u64>,
}

impl Network {
    pub(super) fn chaos(&mut self, seed: Option<u64>) {
        self.chaos = seed;
    }

    pub(super) fn keep_snapshots(&mut self) {
        self.kept.get_or_insert_default();
    }

    pub(super) fn release_snapshots(&mut self, n: usize) {
        let kept = self.kept.get_or_insert_default();
        self.due.extend(kept.drain(..n.min(kept.len())));
    }

    pub(super) fn send(&mut self, now_ms: u64, packet: Packet) {
        if let (Some(kept), Parcel::Snapshot { .. }) = (&mut self.kept, &packet.parcel) {
            return kept.push(packet);
        }
        if self.chaos.is_none() {
            return self.due.push_back(packet);
        }
        let copies = if self.below(10) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            let delay_ms = if self.below(3) == 0 { self.below(DELAY_MS_MAX) } else { self.below(4) };
            self.sent += 1;
            self.late.insert((now_ms + delay_ms, self.sent), packet.clone());
        }
    }

    pub(super) fn next(&mut self, now_ms: u64) -> Option<Packet> {
        let late = self.late.first_key_value().is_some_and(|((due, _), _)| *due <= now_ms);
        if late { self.late.pop_first().map(|(_, packet)| packet) } else { self.due.pop_front() }
    }

    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.late.first_key_value().map(|((due, _), _)| *due)
    }

    pub(super) fn drop_packets(&mut self, is_dropped: impl Fn(&Packet) -> bool) -> Vec<Packet> {
        let (mut dropped, due): (Vec<_>, Vec<_>) = self.due.drain(..).partition(&is_dropped);
        self.due = due.into();
        dropped.extend(self.late.extract_if(.., |_, packet| is_dropped(packet)).map(|(_, packet)| packet));
        dropped
    }

    /// Steele, Lea and Flood's generator.
    fn below(&mut self, n: u64) -> u64 {
        let state = self.chaos.get_or_insert_default();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
