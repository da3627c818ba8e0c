//! Snapshots on their way from a leader to a member: piece by piece, so that anything can come in between.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_core::contract::Input;
use kv_core::entry::{EntryId, Epoch, LogPosition};
use kv_core::group::MemberId;
use kv_node::wal::snapshot::{SnapshotReceiver, SnapshotSource};

use super::{Happening, Place};
use crate::sim::coverage::Reached;
use crate::sim::disk::SimDisk;
use crate::sim::world::{Event, World};

/// Bytes that travel at once.
const PIECE_BYTES: usize = 700;
/// Snapshots sent at once by one node; more peers are told to wait.
const SENT_AT_ONCE_MAX: usize = 2;

pub(crate) struct Transfer {
    from: Place,
    to: Place,
    sender: MemberId,
    receiver: MemberId,
    epoch: Epoch,
    position: LogPosition,
    floor: EntryId,
    source: SnapshotSource<SimDisk>,
    left: Bytes,
    staging: SnapshotReceiver<SimDisk>,
}

impl Transfer {
    /// Its end that can neither send nor receive now, or its receiver.
    pub(crate) fn paused_end(&self, is_paused: impl Fn(Place) -> bool) -> Place {
        if is_paused(self.from) { self.from } else { self.to }
    }
}

/// By number.
pub(crate) type Transfers = BTreeMap<u64, Transfer>;

impl World {
    pub(crate) fn send_snapshot(&mut self, place: Place, peer: MemberId, epoch: Epoch) {
        self.watch_snapshot_sent(place, peer);
        if let Err(reason) = self.open_transfer(place, peer, epoch) {
            self.note_failed_read(place);
            self.snapshot_failed(place, peer, reason);
        }
    }

    fn open_transfer(&mut self, from: Place, peer: MemberId, epoch: Epoch) -> Result<(), &'static str> {
        let to = self.at_its_address(from, peer).ok_or("it is not there")?;
        if !self.network.passes(from.node, to.node) || self.are_strangers(from, to) {
            return Err("no connection");
        }
        let process = self.process(from).ok_or("gone")?;
        if process.floors.len() >= SENT_AT_ONCE_MAX {
            return Err("busy");
        }
        let (floor, sender) = (process.applied(), process.member);
        let source = process.reader.snapshot(&|| floor).map_err(|_| "the log cannot be read")?;
        process.floors.push(floor);
        let position = source.position();
        let receiving = self.process(to).ok_or("gone")?;
        if std::mem::replace(&mut receiving.is_receiving, true) {
            self.drop_floor(from, floor);
            return Err("another snapshot is being received");
        }
        let staging = receiving.reader.receive_snapshot();
        self.coverage.count(Reached::SnapshotSent);
        self.tell(from.node, format_args!("sends a snapshot at {} to {peer}", position.id));
        let number = self.next_number();
        let (left, receiver) = (Bytes::new(), peer);
        let transfer = Transfer { from, to, sender, receiver, epoch, position, floor, source, left, staging };
        self.transfers.insert(number, transfer);
        self.at(self.now_us + 1_000, Event::Piece(number));
        Ok(())
    }

    /// A snapshot has a connection of its own, to where the member is known to be.
    fn at_its_address(&self, from: Place, member: MemberId) -> Option<Place> {
        let sender = self.nodes[from.node].process.as_ref()?;
        let address = &sender.peers.iter().find(|peer| peer.member_id == member)?.peer_url;
        let node = self.nodes.iter().find(|node| node.name.as_str() == address)?;
        node.process.as_ref().filter(|process| process.member == member).map(|process| process.place)
    }

    pub(crate) fn piece(&mut self, number: u64) {
        let Some(mut transfer) = self.transfers.remove(&number) else { return };
        let (from, to) = (transfer.from, transfer.to);
        if !self.network.passes(from.node, to.node) || self.process(from).is_none() || self.process(to).is_none() {
            self.coverage.count(Reached::SnapshotInterrupted);
            return self.broken_off(transfer);
        }
        if transfer.left.is_empty() {
            match transfer.source.next() {
                Some(Ok(chunk)) => transfer.left = chunk,
                Some(Err(error)) => {
                    self.tell(from.node, format_args!("cannot read its log: {error}"));
                    self.note_failed_read(from);
                    return self.end_transfer(transfer, "the log cannot be read");
                }
                None => return self.received(transfer),
            }
        }
        let piece = transfer.left.split_to(PIECE_BYTES.min(transfer.left.len()));
        if let Err(error) = transfer.staging.feed(&piece) {
            self.tell(to.node, format_args!("cannot take a snapshot in: {error}"));
            self.side_work_failed(to);
            return self.end_transfer(transfer, "it cannot be written");
        }
        let delay_us = self.network.delay_us(&mut self.random);
        self.transfers.insert(number, transfer);
        self.at(self.now_us + delay_us, Event::Piece(number));
    }

    fn received(&mut self, transfer: Transfer) {
        let Transfer { from, to, sender, receiver, epoch, position, floor, source: _, left: _, staging } = transfer;
        let Some(process) = self.process(to) else { return };
        match staging.finish() {
            Ok(received) => {
                let cluster_id = received.staged.cluster_id.clone();
                process.reader.offer(received.staged);
                let staged = Input::SnapshotStaged { from: sender, epoch, position, cluster_id };
                self.arrives(to, Happening::SnapshotStaged(staged));
                let input = Input::SnapshotSent { peer: receiver, result: Ok(position) };
                let delay_us = self.network.delay_us(&mut self.random);
                self.at(self.now_us + delay_us, Event::Inbox(from, Happening::SnapshotSent { input, floor }));
            }
            Err(error) => {
                process.is_receiving = false;
                self.tell(to.node, format_args!("cannot take a snapshot in: {error}"));
                self.drop_floor(from, floor);
                self.snapshot_failed(from, receiver, "it cannot be written");
                self.side_work_failed(to);
            }
        }
    }

    /// The replica decides at once whether it installs what was received; what it does not want goes. No other one
    /// is received before that.
    pub(crate) fn snapshot_staged(&mut self, place: Place, input: Input) {
        self.step(place, input);
        let Some(process) = self.process(place) else { return };
        if !process.replica.is_installing() {
            process.reader.withdraw();
            process.is_receiving = false;
            self.note_stop_in_removal(place);
        }
    }

    /// The end of the stream proves nothing to its receiver.
    fn broken_off(&mut self, transfer: Transfer) {
        let Transfer { from, to, receiver, floor, left, staging, .. } = transfer;
        if left.is_empty() {
            drop(staging);
        } else {
            assert!(staging.finish().is_err(), "a snapshot without its end was taken");
        }
        self.give_up(from, to, floor);
        self.snapshot_failed(from, receiver, "the connection broke");
    }

    fn end_transfer(&mut self, transfer: Transfer, reason: &'static str) {
        let Transfer { from, to, receiver, floor, staging, .. } = transfer;
        drop(staging);
        self.give_up(from, to, floor);
        self.snapshot_failed(from, receiver, reason);
    }

    fn give_up(&mut self, from: Place, to: Place, floor: EntryId) {
        self.drop_floor(from, floor);
        if let Some(process) = self.process(to) {
            process.is_receiving = false;
            self.note_stop_in_removal(to);
        }
    }

    /// Nobody hears of it when a file that is of no use cannot be removed, except when the machine stops there.
    fn note_stop_in_removal(&mut self, place: Place) {
        if self.nodes[place.node].volume.disk.has_stopped() {
            self.side_work_failed(place);
        }
    }

    fn snapshot_failed(&mut self, place: Place, peer: MemberId, reason: &str) {
        self.tell(place.node, format_args!("a snapshot for {peer} did not arrive: {reason}"));
        let result = Err(reason.to_owned());
        self.arrives(place, Happening::Step(Input::SnapshotSent { peer, result }));
    }

    pub(crate) fn drop_floor(&mut self, place: Place, floor: EntryId) {
        let Some(process) = self.process(place) else { return };
        if let Some(at) = process.floors.iter().position(|held| *held == floor) {
            process.floors.swap_remove(at);
        }
    }
}
