//! Does the simulation notice when a rule is broken? Runs seeds with one rule broken on purpose, until a
//! promise breaks. The seeds and the checks are those of every run: nothing here looks for a mutant.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use kv_core::mutant::{Broken, Mutant, with};

use super::{Options, run};

/// Seeds that caught a mutant before, one a line: a first guess that saves time, and nothing more.
const RECORDED: &str = include_str!("mutants.txt");

/// What came of running with one rule broken.
#[derive(Debug)]
pub struct Hunt {
    pub mutant: Mutant,
    /// Seeds that were run.
    pub seeds: u64,
    /// Of those, seeds that break a promise with all rules kept, and so say nothing.
    pub void: u64,
    /// How often the rule was broken in them.
    pub times: u64,
    /// None: nobody noticed.
    pub caught: Option<Caught>,
}

#[derive(Debug)]
pub struct Caught {
    pub seed: u64,
    pub steps: u64,
    /// The promise that broke.
    pub promise: String,
}

/// Runs one seed after the other with the rule broken, until a promise breaks that holds in the same seed
/// while all rules are kept.
pub fn hunt(mutant: Mutant, seeds: impl IntoIterator<Item = u64>, options: &Options) -> Hunt {
    let mut hunt = Hunt { mutant, seeds: 0, void: 0, times: 0, caught: None };
    for seed in seeds {
        let Broken { result: outcome, times } = with(mutant, || run(seed, options));
        hunt.seeds += 1;
        hunt.times += times;
        let Some(promise) = outcome.broken else { continue };
        if run(seed, options).broken.is_some() {
            hunt.void += 1;
        } else {
            hunt.caught = Some(Caught { seed, steps: outcome.steps, promise });
            break;
        }
    }
    hunt
}

/// Hunts each mutant on one of so many threads; `each` sees every outcome as it comes.
pub fn hunt_all(
    mutants: &[Mutant],
    threads: usize,
    hunt: impl Fn(Mutant) -> Hunt + Sync,
    each: impl FnMut(&Hunt) + Send,
) -> Vec<Hunt> {
    let waiting = Mutex::new(mutants.iter());
    let each = Mutex::new(each);
    let next = || waiting.lock().expect("no code panics while it holds the list").next().copied();
    let work = || {
        let mut hunts = Vec::new();
        while let Some(mutant) = next() {
            let hunt = hunt(mutant);
            each.lock().expect("who prints does not panic")(&hunt);
            hunts.push(hunt);
        }
        hunts
    };
    let mut hunts: Vec<Hunt> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a run keeps its panics")).collect()
    });
    hunts.sort_by_key(|hunt| hunt.mutant);
    hunts
}

/// The recorded seeds by the names of mutants.
pub fn recorded() -> BTreeMap<&'static str, u64> {
    let lines = RECORDED.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(name, seed)| (name, seed.parse().expect("a name and a seed on each line"))).collect()
}
