//! The clocks of one node: a monotonic one that starts at 1 with each process and goes a little too fast
//! or too slow, and a wall clock that jumps. True time is the world's, in microseconds.

use kv_core::contract::Now;

/// What every wall clock is about, in Unix milliseconds.
const WALL_START_MS: u64 = 1_700_000_000_000;
/// One in a thousand; a crystal is off by a tenth of that.
const PER_MILLE: u64 = 1000;

#[derive(Debug, Clone)]
pub(crate) struct Clock {
    /// True time at which the process started.
    start_us: u64,
    /// 1000: as fast as true time.
    rate_per_mille: u64,
    /// How far the wall clock is ahead (or, below the middle, behind).
    wall_ahead_ms: i64,
}

impl Clock {
    pub(crate) fn new(rate_per_mille: u64) -> Self {
        Self { start_us: 0, rate_per_mille, wall_ahead_ms: 0 }
    }

    pub(crate) fn restart(&mut self, now_us: u64) {
        self.start_us = now_us;
    }

    pub(crate) fn jump(&mut self, ahead_ms: i64) {
        self.wall_ahead_ms = ahead_ms;
    }

    pub(crate) fn now(&self, now_us: u64) -> Now {
        let elapsed_us = (now_us - self.start_us) * self.rate_per_mille / PER_MILLE;
        let wall_ms = (WALL_START_MS + now_us / 1000).saturating_add_signed(self.wall_ahead_ms);
        Now { mono_ms: 1 + elapsed_us / 1000, wall_ms }
    }

    /// The first true time at which the monotonic clock shows `mono_ms`.
    pub(crate) fn true_time_us(&self, mono_ms: u64) -> u64 {
        let elapsed_us = mono_ms.saturating_sub(1).saturating_mul(1000);
        self.start_us.saturating_add(elapsed_us.saturating_mul(PER_MILLE).div_ceil(self.rate_per_mille))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_true_time_of_a_reading_the_clock_shows_it() {
        for rate in [900, 1000, 1100] {
            let mut clock = Clock::new(rate);
            clock.restart(777);
            for mono_ms in [1, 2, 250, 12_345] {
                let at = clock.true_time_us(mono_ms);
                assert_eq!(clock.now(at).mono_ms, mono_ms);
                assert!(at == 777 || clock.now(at - 1).mono_ms < mono_ms);
            }
        }
    }
}
