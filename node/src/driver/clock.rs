//! The one clock of a node: monotonic milliseconds since the process opened its log, and wall time.
//! The replica, the published lease and the deadlines all count on it, so they can be compared.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kv_core::contract::Now;

/// Milliseconds that the monotonic clock starts from, so that 0 can stand for "never".
const START_MONO_MS: u64 = 1;

/// Cheap to copy; all copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    started_wall_ms: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), started_wall_ms: wall_ms() }
    }

    pub fn mono_ms(&self) -> u64 {
        START_MONO_MS + saturating_ms(self.start.elapsed())
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono_ms: self.mono_ms(), wall_ms: wall_ms() }
    }

    /// Unix milliseconds of a monotonic reading: the wall clock of the start, going on evenly, so that one moment is
    /// always shown as the same time.
    pub(crate) fn unix_ms_at(&self, mono_ms: u64) -> u64 {
        self.started_wall_ms + mono_ms.saturating_sub(START_MONO_MS)
    }

    /// The first instant at which `mono_ms()` is at least `mono_ms`.
    pub(crate) fn instant_at(&self, mono_ms: u64) -> Instant {
        self.start + Duration::from_millis(mono_ms.saturating_sub(START_MONO_MS))
    }
}

fn wall_ms() -> u64 {
    saturating_ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn saturating_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_instant_of_a_reading_the_clock_shows_it() {
        let clock = Clock::start();
        assert!(clock.mono_ms() >= 1);
        assert_eq!(clock.instant_at(1), clock.start);
        assert_eq!(clock.instant_at(251), clock.start + Duration::from_millis(250));
    }

    #[test]
    fn a_monotonic_reading_is_one_time_of_day() {
        let clock = Clock::start();
        assert!(clock.started_wall_ms > 1_600_000_000_000);
        assert_eq!(clock.unix_ms_at(251), clock.started_wall_ms + 250);
    }
}
