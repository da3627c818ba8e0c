//! Random stories: the world of the stories under random faults. Whatever happens, an acknowledged
//! write is there at the end, and all replicas agree.

#![allow(clippy::disallowed_methods, reason = "the tests around the core read files and variables; the core does not")]

#[path = "stories/world.rs"]
mod world;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use world::World;

const NAMES: [&str; 3] = ["a", "b", "c"];
const STEPS: usize = 300;

struct Chance(TestRng);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0.next_u64() % n
    }

    fn node(&mut self) -> &'static str {
        NAMES[self.below(3) as usize]
    }
}

/// One random command; `step` makes values unique.
fn command(chance: &mut Chance, running: &mut [bool; 3], step: usize) -> String {
    let node = chance.node();
    let at = NAMES.iter().position(|name| *name == node).expect("one of three");
    match chance.below(46) {
        0..=17 if running[at] => format!("put {node} key{step} value{step} request=r{step}"),
        18..=27 => format!("tick {}", chance.below(400) + 1),
        28 => format!("cut {node}"),
        29 => format!("cut-way {node} {}", chance.node()),
        30..=32 => "heal".to_owned(),
        33 if running[at] => {
            running[at] = false;
            format!("crash {node}")
        }
        34..=36 if !running[at] => {
            running[at] = true;
            format!("start {node}")
        }
        37 if running[at] => format!("hold-disk {node}"),
        38 if running[at] => format!("release-disk {node}"),
        39 if running[at] => format!("lead {node}"),
        40..=41 if running[at] => format!("compact {node}"),
        42 if running[at] => format!("hand-over {node}"),
        43 if running[at] => format!("delete {node} key{} request=d{step}", chance.below(step as u64 + 1)),
        44 if running[at] => format!("history-limit {node} {}", chance.below(5)),
        45 if running[at] => format!("read {node}"),
        _ => "tick 10".to_owned(),
    }
}

fn run(seed: u64) {
    let mut bytes = [0_u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut chance = Chance(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let mut world = World::default();
    let mut story = vec!["automatic".to_owned(), "nodes a b c".into(), "bootstrap a b c".into(), "lead a".into()];
    story.iter().for_each(|line| drop(world.execute(line)));
    let mut running = [true; 3];
    for step in 0..STEPS {
        let line = command(&mut chance, &mut running, step);
        story.push(line.clone());
        world.execute(&line);
    }
    world.execute("heal");
    for (at, name) in NAMES.iter().enumerate() {
        world.execute(&if running[at] { format!("release-disk {name}") } else { format!("start {name}") });
    }
    world.execute("tick 10000");
    let status = world.execute("status");
    world.check_agreement(&format!("seed {seed}:\n{}\n----\n{status}", story.join("\n")));
}

#[test]
fn an_acknowledged_write_survives_whatever_happens() {
    let seeds = std::env::var("CHANCE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let first = std::env::var("CHANCE_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    (first..first + seeds).for_each(run);
}
