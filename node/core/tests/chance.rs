//! Random stories: the world of the stories under random faults, with members that come, go, lose their
//! volumes, and are put back from old copies. The world checks every step (`stories/watch.rs`); at the end
//! an acknowledged write is there, all replicas agree, and the group writes again.

#![allow(clippy::disallowed_methods, reason = "the tests around the core read files and variables; the core does not")]

#[path = "stories/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use world::World;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const STEPS: usize = 300;
/// The group is whole again, all in, within this many seconds after the last fault.
const RECOVERY_SECONDS_MAX: usize = 60;

struct Chance {
    random: TestRng,
    world: World,
    story: Vec<String>,
    /// `CHANCE_TELL=1` prints what happens as it happens: the one seed to look at.
    tells: bool,
}

impl Chance {
    fn new(seed: u64) -> Self {
        let mut bytes = [0_u8; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        Self { random, world: World::default(), story: Vec::new(), tells: std::env::var_os("CHANCE_TELL").is_some() }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn node(&mut self) -> &'static str {
        NAMES[self.below(NAMES.len() as u64) as usize]
    }

    fn run(&mut self, line: impl Into<String>) -> String {
        self.story.push(line.into());
        let line = self.story.last().expect("just pushed");
        let told = self.world.execute(line);
        if self.tells {
            eprintln!("{line}\n{told}");
        }
        told
    }

    /// One random event; `step` makes values unique.
    fn event(&mut self, step: usize) {
        let (node, other) = (self.node(), self.node());
        let leader = self.world.leader();
        let running = self.world.is_running(node);
        let n = self.below(100);
        match (n, leader) {
            (0..=29, Some(leader)) if n > 4 || !running => {
                let key = self.below(12);
                drop(self.run(format!("put {leader} key{key} value{step} request=r{step}")));
            }
            (0..=4, _) => drop(self.run(format!("put {node} key{step} value{step} request=r{step}"))),
            (30..=43, _) => {
                let ms = self.below(400) + 1;
                drop(self.run(format!("tick {ms}")));
            }
            (44, _) => drop(self.run(format!("cut {node}"))),
            (45, _) if node != other => drop(self.run(format!("cut-way {node} {other}"))),
            (46..=49, _) => drop(self.run("heal")),
            (50..=53, _) if running => self.crash(node),
            (54..=60, _) if !running => drop(self.run(format!("start {node}"))),
            (61, _) if running => drop(self.run(format!("hold-disk {node}"))),
            (62, _) if running => {
                let ops = self.below(4);
                drop(self.run(format!("release-some {node} {ops}")));
            }
            (63..=64, _) if running => drop(self.run(format!("release-disk {node}"))),
            (65..=66, _) if running => drop(self.run(format!("lead {node}"))),
            (67..=68, _) if running => drop(self.run(format!("compact {node}"))),
            (69, Some(leader)) => drop(self.run(format!("hand-over {leader}"))),
            (70..=71, Some(leader)) => {
                let key = self.below(12);
                drop(self.run(format!("delete {leader} key{key} request=d{step}")));
            }
            (72, Some(leader)) => {
                let limit = self.below(5);
                drop(self.run(format!("history-limit {leader} {limit}")));
            }
            (73..=74, Some(leader)) => drop(self.run(format!("read {leader}"))),
            (75, _) if running => drop(self.run(format!("read {node}"))),
            (76..=79, Some(leader)) => drop(self.run(format!("learner {leader} {node}"))),
            (80..=83, Some(leader)) => drop(self.run(format!("voter {leader} {node}"))),
            (84..=85, Some(leader)) => drop(self.run(format!("remove {leader} {node}"))),
            (86, _) => {
                let seed = self.below(1_000_000);
                drop(self.run(format!("chaos {seed}")));
            }
            (87..=88, _) => drop(self.run("calm")),
            (89..=90, _) => self.lose(node),
            (91..=92, _) if !self.world.is_running(&format!("{node}-old")) => {
                drop(self.run(format!("save-disk {node} {node}-old")));
            }
            (93, _) => self.put_back(node),
            (94..=95, _) => self.raise_a_ghost(node),
            (96, _) if self.world.is_running(&format!("{node}-old")) => drop(self.run(format!("crash {node}-old"))),
            (97, Some(leader)) => drop(self.run(format!("put {leader} key1 other version={}", step % 4))),
            (98, _) if running => drop(self.run(format!("damaged {node}"))),
            _ => drop(self.run("tick 10")),
        }
    }

    fn crash(&mut self, node: &str) {
        let (ops, entries) = (self.below(4), self.below(3));
        drop(self.run(format!("crash-after {node} {ops} {entries}")));
    }

    /// A volume is lost only while no other one is missing.
    fn lose(&mut self, node: &str) {
        if self.world.is_expendable(node) {
            self.crash(node);
            drop(self.run(format!("lose-disk {node}")));
            drop(self.run(format!("start {node}")));
        }
    }

    /// An old copy of the present volume takes its place, where the others have heard of what is newer.
    fn put_back(&mut self, node: &str) {
        let saved = format!("{node}-old");
        if !self.world.is_expendable(node) || self.world.is_running(&saved) || !self.world.is_older_self(node, &saved) {
            return;
        }
        drop(self.run("calm"));
        drop(self.run("heal"));
        drop(self.run("tick 600"));
        if self.world.is_expendable(node) {
            drop(self.run(format!("crash {node}")));
            drop(self.run(format!("copy-disk {saved} {node}")));
            drop(self.run(format!("start {node}")));
            drop(self.run("tick 300"));
        }
    }

    /// The volume of a member that went for good is started again.
    fn raise_a_ghost(&mut self, node: &str) {
        let saved = format!("{node}-old");
        if !self.world.is_running(&saved) && self.world.is_ghost(&saved) {
            drop(self.run(format!("start {saved}")));
        }
    }

    /// After the last fault, whoever is not of the group registers with the leader, as a node does.
    fn recover(&mut self) {
        drop(self.run("heal"));
        drop(self.run("calm"));
        for name in NAMES {
            if self.world.is_running(&format!("{name}-old")) {
                drop(self.run(format!("crash {name}-old")));
            }
            let running = self.world.is_running(name);
            drop(self.run(if running { format!("release-disk {name}") } else { format!("start {name}") }));
        }
        for second in 0..RECOVERY_SECONDS_MAX {
            drop(self.run("tick 1000"));
            let Some(leader) = self.world.leader() else { continue };
            let strangers: Vec<&str> = NAMES.into_iter().filter(|name| !self.world.is_voter(&leader, name)).collect();
            for name in strangers {
                drop(self.run(format!("learner {leader} {name}")));
            }
            if second >= 5
                && self.world.all_have_caught_up()
                && self.run(format!("put {leader} last {second}")).contains("ok id")
            {
                break;
            }
        }
        drop(self.run("tick 1000"));
    }
}

fn run(seed: u64) {
    let mut chance = Chance::new(seed);
    let told = catch_unwind(AssertUnwindSafe(|| {
        for line in ["automatic", "nodes a b c d e", "bootstrap a b c", "lead a"] {
            drop(chance.run(line));
        }
        (0..STEPS).for_each(|step| chance.event(step));
        chance.recover();
        let put = chance.world.leader().map(|leader| chance.run(format!("put {leader} last word")));
        assert!(put.is_some_and(|answer| answer.contains("ok id")), "the group writes again");
        drop(chance.run("tick 300"));
        chance.world.check_agreement("at the end");
    }));
    if let Err(panic) = told {
        let status = catch_unwind(AssertUnwindSafe(|| chance.world.describe())).unwrap_or_default();
        eprintln!("seed {seed}:\n{}\n----\n{status}", chance.story.join("\n"));
        resume_unwind(panic);
    }
}

#[test]
fn an_acknowledged_write_survives_whatever_happens() {
    let seeds = std::env::var("CHANCE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let first = std::env::var("CHANCE_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    (first..first + seeds).for_each(run);
}

/// It left the quorum for a snapshot, and then a volume was lost: nobody could confirm what it asked.
#[test]
fn a_member_that_left_for_a_snapshot_comes_back_when_it_is_needed() {
    run(5131);
}
