//! The ranges of settings that can be set at a start and while the node runs: neither way takes what the other refuses.
//! Used by the flags, by the handlers of `/settings` and by the compactor.

use std::ops::RangeInclusive;

/// 10 ms: below it, a busy machine looks like a dead one. 1 day.
pub(crate) const HEARTBEAT_SECONDS: RangeInclusive<f64> = 0.01..=86_400.0;
/// Longest intervals of the compaction schedule, in seconds: a year.
pub(crate) const SCHEDULE_SECONDS_MAX: u64 = 31_536_000;
