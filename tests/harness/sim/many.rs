//! Many seeds: each on one thread, several at once, the outcomes in the order of the seeds.

use std::ops::{AddAssign, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

use super::{Coverage, Options, Outcome, run};

/// What all seeds together came to.
#[derive(Debug, Default)]
pub struct Total {
    pub seeds: u64,
    pub steps: u64,
    pub coverage: Coverage,
    /// Those that broke a promise, by seed.
    pub broken: Vec<Outcome>,
}

/// Runs all seeds on so many threads. `each` sees every outcome as it comes and may say that it is enough.
pub fn run_many(seeds: Range<u64>, options: &Options, threads: usize, mut each: impl FnMut(&Outcome) -> Next) -> Total {
    let next = AtomicU64::new(seeds.start);
    let (sender, outcomes) = sync_channel(threads);
    let mut total = Total::default();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (next, sender, end) = (&next, sender.clone(), seeds.end);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || sender.send(run(seed, options)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for outcome in outcomes {
            let go_on = each(&outcome);
            total.add(outcome);
            if go_on == Next::Stop {
                next.store(seeds.end, Ordering::Relaxed);
            }
        }
    });
    total.broken.sort_by_key(|outcome| outcome.seed);
    total
}

/// Whether more seeds are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    GoOn,
    Stop,
}

impl AddAssign for Total {
    fn add_assign(&mut self, other: Self) {
        let Self { seeds, steps, coverage, broken } = other;
        self.seeds += seeds;
        self.steps += steps;
        self.coverage += &coverage;
        self.broken.extend(broken);
    }
}

impl Total {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.steps += outcome.steps;
        self.coverage += &outcome.coverage;
        if outcome.broken.is_some() {
            self.broken.push(outcome);
        }
    }
}
