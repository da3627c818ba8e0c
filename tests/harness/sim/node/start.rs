//! Starting and ending processes: what `serve` and the driver do between opening the log and the first
//! round, and what a crash at any call leaves behind.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kv_core::Replica;
use kv_core::contract::{Input, Limits};
use kv_core::group::MemberId;
use kv_node::driver::{BootOptions, Fetches, boot};
use kv_node::wal::{NewVolume, Opened, Options, Salvage, WalError, open};

use super::compaction::Compaction;
use super::{Place, Process};
use crate::sim::coverage::Reached;
use crate::sim::disk::{Crash, SimDisk, Trouble};
use crate::sim::watch::Log;
use crate::sim::world::{Event, World};

/// Below this much room a log reports itself full.
const RESERVE_BYTES: u64 = 600;

impl World {
    /// Starts the node's process on what its disk holds.
    pub(crate) fn start(&mut self, index: usize) {
        if self.nodes[index].process.is_some() || (self.is_place_of_copies(index) && !self.has_copy()) {
            return;
        }
        self.starts += 1;
        let place = Place { node: index, start: self.starts };
        let now_us = self.now_us;
        let node = &mut self.nodes[index];
        node.clock.restart(now_us);
        let storage = Arc::new(node.volume.disk.clone());
        let volume = NewVolume {
            name: node.name.clone(),
            member_id: MemberId(self.random.draw() | 1),
            settings: self.shape.settings,
        };
        if !self.may_be_lost(index) {
            self.nodes[index].volume.disk.lets_read();
        }
        let opened = open(storage, &self.wal_options(), &volume);
        let happened = self.nodes[index].volume.disk.take_happened();
        if happened == Some(Trouble::ReadFails) {
            self.could_not_read(index);
        }
        match opened {
            Ok(_) if self.nodes[index].volume.ledger.has_bad_manifest => panic!("a damaged manifest is believed"),
            Ok(opened) => self.run(place, opened),
            Err(error) => self.not_opened(index, happened, &error),
        }
    }

    fn wal_options(&self) -> Options {
        Options {
            segment_bytes_max: self.shape.segment_bytes,
            hash_seed: self.starts,
            reserve_bytes: RESERVE_BYTES,
            ..Options::default()
        }
    }

    /// What a start cannot read is damaged, whatever it would be able to read a moment later.
    fn could_not_read(&mut self, index: usize) {
        self.coverage.count(Reached::ReadFailedInRecovery);
        self.tell(index, format_args!("cannot read all of its volume"));
        self.nodes[index].volume.ledger.is_damaged = true;
        self.bury_a_copy(index);
    }

    fn not_opened(&mut self, index: usize, happened: Option<Trouble>, error: &WalError) {
        self.tell(index, format_args!("does not open: {error}"));
        if self.nodes[index].volume.ledger.has_bad_manifest {
            self.coverage.count(Reached::ManifestRefused);
            return self.begin_empty(index);
        }
        let disk = &self.nodes[index].volume.disk;
        let was_full = disk.take_was_full();
        assert!(happened.is_some() || was_full, "a good log must open: {error}");
        match happened {
            Some(Trouble::Stops) => self.coverage.count(Reached::CrashInRecovery),
            Some(Trouble::Killed) => self.coverage.count(Reached::KilledInRecovery),
            _ => {}
        }
        self.part(index, happened.and_then(Trouble::crash).unwrap_or(Crash::Process));
        self.start_later(index);
    }

    /// The machine stops within a call to the disk, or the process alone is killed there.
    pub(crate) fn ends_in_call(&mut self, index: usize, what: Trouble) {
        let crash = what.crash().expect("nothing else ends a process");
        let reached = if crash == Crash::Process { Reached::KilledInCall } else { Reached::CrashInCall };
        self.coverage.count(reached);
        self.part(index, crash);
        self.start_later(index);
    }

    fn run(&mut self, place: Place, opened: Opened<SimDisk>) {
        let Opened { wal, reader, recovered } = opened;
        let report = &recovered.report;
        if report.torn_tail.is_some() {
            self.coverage.count(Reached::TornTail);
        }
        if report.is_damaged() {
            self.coverage.count(Reached::DamageFound);
            assert_ne!(report.salvage, Salvage::Everything, "no group of one is damaged here");
        }
        if let Some(quarantine) = &recovered.hard.quarantine {
            self.coverage.count(Reached::Quarantined);
            let log = if quarantine.may_vote { Log::Whole } else { Log::Doubtful };
            self.watch_quarantined(place, quarantine.until.filter(|_| quarantine.may_vote), log);
        }
        if self.nodes[place.node].volume.ledger.is_damaged {
            self.bury_a_copy(place.node); // what it has said right before it fell is on its way, and counts
        }
        let node = &mut self.nodes[place.node];
        node.volume.disk.lets_read();
        let lines = reader.read_from(reader.horizon().next(), usize::MAX).expect("just recovered");
        node.volume.ledger.recovered(&recovered, lines, |id| self.watch.line(id).cloned());
        let options = self.boot_options(place);
        let member = recovered.hard.member_id;
        let boot = boot(recovered, &options, self.random.draw());
        let node = &self.nodes[place.node];
        let now = node.now(self.now_us);
        let replica = Replica::new(boot, now);
        self.tell(place.node, format_args!("starts as {member}, log up to {}", wal.last()));
        let view = replica.view(now);
        let process = Process {
            place,
            replica,
            wal,
            reader,
            boot: options,
            member,
            inbox: VecDeque::new(),
            round_at_us: None,
            ops: VecDeque::new(),
            unfinished: None,
            log_is_busy: false,
            is_full: false,
            fetches: Fetches::default(),
            compaction: Compaction::default(),
            rot: None,
            has_rotted: false,
            view,
            waiting: BTreeMap::new(),
            reads: Vec::new(),
            peers: Vec::new(),
            connections: BTreeMap::new(),
            dialing: BTreeSet::new(),
            lost: BTreeSet::new(),
            floors: Vec::new(),
            is_receiving: false,
        };
        self.nodes[place.node].process = Some(process);
        self.watch_started(place);
        self.fall_with_a_replacement_half_done(place);
        self.round_at(place, self.now_us);
    }

    fn boot_options(&self, place: Place) -> BootOptions {
        let name = &self.nodes[place.node].name;
        BootOptions {
            url: format!("http://{name}"),
            peer_url: name.to_string(),
            tuning: self.usual_tuning(),
            lead_at_start: self.shape.is_manual && place.node == 0,
            limits: Limits {
                cache_bytes_max: self.shape.cache_bytes,
                window_entries_max: self.shape.window_entries,
                ..Limits::default()
            },
            start_id: place.start,
        }
    }

    /// Ends the process, if there is one, and leaves the disk as this kind of crash does.
    pub(crate) fn part(&mut self, index: usize, crash: Crash) {
        self.nodes[index].paused_until_us = 0; // that was the process
        if let Some(process) = self.nodes[index].process.take() {
            self.note_crash(&process, crash);
            self.leave_network(process.place);
            self.answer_nobody(process.waiting.into_values().chain(process.reads.into_iter().map(|(_, w)| w)));
        }
        let volume = &mut self.nodes[index].volume;
        volume.disk = volume.disk.after(crash);
        if crash == Crash::Process && volume.ledger.sync_failed {
            self.coverage.count(Reached::StartAfterFailedSync);
        }
        volume.ledger.crashed();
    }

    fn note_crash(&mut self, process: &Process, crash: Crash) {
        self.coverage.count(if crash == Crash::Process { Reached::CrashOfProcess } else { Reached::CrashWithPower });
        if process.is_receiving {
            self.coverage.count(Reached::CrashInReceiving);
        }
        if process.compaction.is_under_way() {
            self.coverage.count(Reached::CrashInCompaction);
        }
        self.tell(process.place.node, format_args!("crashes: {crash:?}"));
    }

    pub(crate) fn start_later(&mut self, index: usize) {
        let delay_us = self.random.between(20_000, self.shape.down_us_max);
        self.at(self.now_us + delay_us, Event::Start(index));
    }

    pub(crate) fn end(&mut self, place: Place) {
        if self.process(place).is_some() {
            self.part(place.node, Crash::Process);
            self.start_later(place.node);
        }
    }

    /// A process that cannot go on ends by itself, and is started again by whoever looks after it.
    pub(crate) fn exit(&mut self, index: usize, why: &str) {
        self.tell(index, format_args!("exits: {why}"));
        self.part(index, Crash::Process);
        self.start_later(index);
    }

    /// The replica's own word that a rule or a disk is broken.
    pub(crate) fn stopped_by_rules(&self, index: usize, reason: &str) -> ! {
        panic!("{} stopped: {reason}", self.nodes[index].name)
    }

    pub(crate) fn step(&mut self, place: Place, input: Input) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(place.node) else { return };
        let now = node.now(now_us);
        let Some(process) = node.process.as_mut().filter(|process| process.place == place) else { return };
        process.replica.step(now, input);
        process.replica.check_invariants();
        self.steps += 1;
    }
}
