//! Reads of the log for peers that are behind: one at a time for each, off the driver's rounds.

use kv_core::contract::Input;
use kv_node::driver::Fetch;

use super::{Happening, Place};
use crate::sim::coverage::Reached;
use crate::sim::world::{Event, World};

impl World {
    pub(crate) fn fetch(&mut self, place: Place, fetch: Fetch) {
        let Some(process) = self.process(place) else { return };
        if let Some(fetch) = process.fetches.ask(fetch) {
            self.start_fetch(place, fetch);
        }
    }

    fn start_fetch(&mut self, place: Place, fetch: Fetch) {
        let delay_us = self.random.between(50, 5_000) + self.nodes[place.node].disk_delay_us;
        self.at(self.now_us + delay_us, Event::Fetch(place, fetch));
    }

    /// Of one that is begun again, or done without.
    pub(crate) fn note_failed_read(&mut self, place: Place) {
        if self.nodes[place.node].volume.disk.take_failed_read() {
            self.coverage.count(Reached::ReadFailed);
        }
    }

    pub(crate) fn read_fetch(&mut self, place: Place, fetch: Fetch) {
        let Fetch { peer, from, bytes_max } = fetch;
        let Some(process) = self.process(place) else { return };
        // An unreadable log counts as not held: the leader then sends a snapshot.
        let entries = process.reader.read_from(from, bytes_max).unwrap_or_default();
        let next = process.fetches.ended(peer);
        self.watch_read(place, &entries);
        self.note_failed_read(place);
        if !entries.is_empty() {
            self.coverage.count(Reached::FetchedFromDisk);
        }
        self.arrives(place, Happening::Step(Input::Fetched { peer, from, entries }));
        if let Some(next) = next {
            self.start_fetch(place, next);
        }
    }
}
