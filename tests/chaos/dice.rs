//! Chance from a seed: the same seed, the same plan. (What the processes make of it still differs from
//! run to run.)

use std::ops::Range;
use std::time::Duration;

use kv_tests::random::Random;

pub(crate) struct Dice(Random);

impl Dice {
    /// Somebody's own, that do not depend on how often others are thrown.
    pub(crate) fn of(seed: u64, who: u64) -> Self {
        let own = Random::new(seed ^ who.wrapping_mul(0xd6e8_feb8_6659_fd93)).draw();
        Self(Random::new(own))
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0.index(end)
    }

    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub(crate) fn millis(&mut self, range: Range<usize>) -> Duration {
        Duration::from_millis((range.start + self.below(range.end - range.start)) as u64)
    }
}
