//! A deterministic simulation of whole clusters: the real replica of kv-core over the real log of kv-node,
//! on disks that lose, tear and refuse, a network that delays, doubles and drops, and clocks that drift.
//! Time is virtual, everything is drawn from one seed, and the same seed goes the same way: the seed is the
//! report of a bug.
//!
//! ```text
//!                       one seed ──▶ Shape, Random
//!                                        │ every choice
//!   ┌───────────────────────── world: one queue of events by time ───────────────────────────┐
//!   │  clients ──calls──▶ ┌ node ──────────────────────────────────┐ ◀──orders── admin       │
//!   │     ▲               │ inbox ▶ round: Replica::step, effects  │                         │
//!   │  answers ◀──────────│ ops ▶ log: Wal::persist ──▶ SimDisk    │ ◀──crashes, bit flips,  │
//!   │                     │ reads · snapshots · compaction  clock  │    full, lost … faults  │
//!   │                     └──────────────┬─────────────────────────┘                         │
//!   │                          network · links: packets, dials, cuts ◀──cuts, chaos── faults │
//!   └──────────────┬──────────────────────────────────────────────────────────────────────────┘
//!                  ▼ after every step
//!            watch: Raft's invariants, ledgers of disks, a replay as oracle, answers
//!            coverage: what was really reached · trace: what happened, as one number
//! ```
//!
//! A run has three parts: a group is founded; it works while everything goes wrong; the faults stop, and
//! within a bound everything must be well again. A broken promise is a panic, caught and told with its seed.
//!
//! Reading order: this file, [`world`], [`sight`], [`node`], [`watch`]; then [`disk`], [`network`], [`faults`], [`spare`],
//! [`beside`], [`clients`], [`admin`], [`targets`], [`lost_majority`], [`tuning`].

mod admin;
mod beside;
mod clients;
mod clock;
mod coverage;
mod disk;
mod faults;
mod links;
mod lost_majority;
mod many;
mod mutants;
mod network;
mod node;
mod panics;
mod shape;
mod sight;
mod spare;
mod targets;
mod trace;
mod tuning;
mod watch;
mod world;

pub use coverage::{Coverage, Reached};
pub use many::{Next, Total, run_many};
pub use mutants::{Caught, Hunt, hunt, hunt_all, recorded};

use network::Weather;
use shape::Emphasis;
use world::{Event, World};

/// The group must have been founded, and later be whole again, within this much virtual time.
const WELL_WITHIN_US: u64 = 60_000_000;
/// How often it is looked whether all is well.
const LOOK_EVERY_US: u64 = 250_000;

/// How a seed is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Steps of replicas and calls to disks while things go wrong.
    pub steps: u64,
    /// Print what happens as it happens.
    pub tells: bool,
    pub profile: Profile,
}

/// What else may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Usual,
    /// Small windows between members, bits that flip in the active segment, names that others ask for, changes of voters
    /// on the heels of each other, and more of one kind of trouble: [`shape::Emphasis`].
    Tight,
}

impl Default for Options {
    fn default() -> Self {
        Self { steps: 10_000, tells: false, profile: Profile::Usual }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub steps: u64,
    /// Equal for equal runs.
    pub trace_hash: u64,
    pub coverage: Coverage,
    /// The promise that broke.
    pub broken: Option<String>,
}

/// Runs one seed to its end, or to the first broken promise.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mut world = World::new(seed, options);
    let broken = panics::caught(|| world.play(options.steps));
    world.trace_end();
    Outcome { seed, steps: world.steps(), trace_hash: world.trace.hash(), coverage: world.coverage, broken }
}

impl World {
    fn play(&mut self, steps: u64) {
        for index in 0..self.nodes.len() {
            let at_us = self.random.below(20_000);
            self.at(at_us, Event::Start(index));
        }
        self.at(30_000, Event::Admin);
        self.run_until(WELL_WITHIN_US, |world| world.leader().is_some());
        assert!(self.leader().is_some(), "the group was not founded in time");
        if self.shape.emphasis == Emphasis::Storms {
            self.network.weather = Weather::Chaos;
        }
        if self.shape.clients_wait_us > 0 {
            self.at(self.now_us, Event::Fault);
            self.run_until(self.now_us + self.shape.clients_wait_us, |_| false);
            self.start_clients();
        } else {
            self.start_clients();
            self.at(self.now_us, Event::Fault);
        }
        let end = self.steps() + steps;
        self.run_until(u64::MAX, |world| world.steps() >= end);
        self.end_faults();
        self.get_well();
        self.check_the_end();
    }

    /// After the faults stop, everybody is served within a bound, nothing is left damaged, and nobody waits.
    fn get_well(&mut self) {
        let (over_us, give_up_us) = (self.now_us, self.now_us + WELL_WITHIN_US);
        self.clients.ask_anew();
        loop {
            self.run_until(self.now_us + LOOK_EVERY_US, |_| false);
            self.compact_everywhere();
            let ill =
                self.all_are_level().and_then(|()| self.all_are_sound()).and_then(|()| self.all_are_served(over_us));
            let Err(ill) = ill else { return };
            assert!(self.now_us < give_up_us, "the group is not well again in time: {ill}{}", self.describe());
        }
    }

    /// Everybody runs, in one group, and has applied what anybody has, but for what is on its way now.
    fn all_are_level(&self) -> Result<(), String> {
        let newest = self.watch.committed();
        let is_level = |process: &node::Process| process.view.serves && process.applied().0 + 20 >= newest;
        if self.processes().count() < self.shape.nodes {
            return Err("somebody does not run".to_owned());
        }
        if !self.processes().all(is_level) || !self.are_of_one_group() {
            return Err("somebody lags".to_owned());
        }
        let is_accepted = self.voters_accept_each_other();
        is_accepted.then_some(()).ok_or_else(|| "a voter is refused by another".to_owned())
    }

    /// What was damaged is made again.
    fn all_are_sound(&self) -> Result<(), String> {
        let is_sound = |process: &&node::Process| {
            process.rot.is_none() && !self.nodes[process.place.node].volume.ledger.is_damaged
        };
        let damaged = self.processes().find(|process| !is_sound(process));
        damaged.map_or(Ok(()), |process| Err(format!("{} is left damaged", self.nodes[process.place.node].name)))
    }

    /// Each client was served since, and whoever had asked a node before has its answer, and be it that there is none.
    fn all_are_served(&self, since_us: u64) -> Result<(), String> {
        if let Some(client) = self.clients.unserved() {
            return Err(format!("client {client} got no write and no linearizable read answered"));
        }
        let forgotten = self.longest_waiting().filter(|(asked_us, _)| *asked_us < since_us);
        forgotten.map_or(Ok(()), |(asked_us, who)| Err(format!("{who}, asked at {asked_us} us, and is not answered")))
    }

    fn check_the_end(&mut self) {
        self.judge_history();
        if self.watch.has_forgotten_requests() {
            self.coverage.count(Reached::RequestForgotten);
        }
        for index in 0..self.nodes.len() {
            self.audit(index);
            if let Some(place) = self.nodes[index].process.as_ref().map(|process| process.place) {
                self.compare_state(place);
            }
        }
    }

    fn trace_end(&mut self) {
        let states: Vec<u64> = self.processes().map(|process| process.replica.state().digest()).collect();
        states.into_iter().chain([self.steps()]).for_each(|n| self.trace.number(n));
    }

    fn describe(&self) -> String {
        let line = |process: &node::Process| {
            let status = process.replica.status(self.clock_of(process.place));
            let voters = status.members.iter().filter(|m| m.voter).map(|m| m.name.as_str()).collect::<Vec<_>>();
            format!(
                "\n{} {}: {:?} epoch {} last {} durable {} committed {} applied {} voters {voters:?} {:?}",
                status.name,
                status.member_id,
                status.role,
                status.epoch,
                status.last_id,
                status.durable_id,
                status.committed_id,
                status.applied_id,
                status.quarantined
            )
        };
        format!("canon {}{}", self.watch.committed(), self.processes().map(line).collect::<String>())
    }
}
