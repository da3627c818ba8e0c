//! The one way in which crashes are tried: an operation is carried out again and again, and at each of
//! its calls of the disk the power fails, once for every disk that may be found afterwards; and at each
//! of its syncs the sync fails and the process ends. Knows no operation; what is allowed to be found,
//! its caller says. Called by every test of a crash.

use std::ops::AddAssign;

use crate::wal::memory::{MemoryStorage, Survivors};

/// Disks tried for one call of an operation. Those with up to so many possible disks are tried completely.
const DISKS_MAX: usize = 128;
/// Overrides [`DISKS_MAX`], for a run of hours.
const DISKS_MAX_VARIABLE: &str = "KV_CRASH_DISKS";

/// What was tried; or, of a table, what must be tried at least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tried {
    /// Calls that the power failed at.
    pub(crate) crash_points: u64,
    /// Those of them of which every possible disk was tried.
    pub(crate) complete: u64,
    /// Disks that were found after them, and recovered.
    pub(crate) disks: u64,
    /// Syncs that failed.
    pub(crate) failed_syncs: u64,
}

pub(crate) const fn at_least(crash_points: u64, complete: u64, disks: u64, failed_syncs: u64) -> Tried {
    Tried { crash_points, complete, disks, failed_syncs }
}

impl AddAssign for Tried {
    fn add_assign(&mut self, other: Self) {
        let Self { crash_points, complete, disks, failed_syncs } = other;
        self.crash_points += crash_points;
        self.complete += complete;
        self.disks += disks;
        self.failed_syncs += failed_syncs;
    }
}

impl Tried {
    /// An operation that lost its crash points, or a disk that lost its choices, would pass any check.
    pub(crate) fn assert_at_least(&self, floor: Self, what: &str) {
        let Self { crash_points, complete, disks, failed_syncs } = *self;
        let is_enough = crash_points >= floor.crash_points
            && complete >= floor.complete
            && disks >= floor.disks
            && failed_syncs >= floor.failed_syncs;
        println!("{what}: {self:?}"); // for a longer run, with --nocapture
        assert!(is_enough, "{what}: only {self:?} of {floor:?} were tried");
    }
}

/// An operation as the enumerator sees it: `T` is what stands before it, `W` what it has told.
pub(crate) struct Operation<'a, T, W> {
    pub(crate) name: &'a str,
    /// Makes the disk and opens it; the same every time.
    pub(crate) begin: &'a dyn Fn() -> (MemoryStorage, T),
    /// Carries the operation out, as far as the disk lets it.
    pub(crate) act: &'a dyn Fn(T, &MemoryStorage) -> W,
    /// Recovers the disk, and panics if that shows anything that must not be.
    pub(crate) check: &'a dyn Fn(&MemoryStorage, &W, &str),
}

impl<T, W> Operation<'_, T, W> {
    /// Tries every crash, and the power failing right after the operation.
    pub(crate) fn crash_everywhere(&self) -> Tried {
        let disks_max = std::env::var(DISKS_MAX_VARIABLE).ok().and_then(|n| n.parse().ok()).unwrap_or(DISKS_MAX);
        self.crash_with(disks_max)
    }

    /// As [`Self::crash_everywhere`], with at most so many disks for a call.
    pub(crate) fn crash_with(&self, disks_max: usize) -> Tried {
        let (dry, before) = (self.begin)();
        let first = dry.calls();
        drop((self.act)(before, &dry));
        let mut tried = Tried::default();
        for call in 0..=dry.calls() - first {
            let (storage, before) = (self.begin)();
            storage.power_fails_at(first + call);
            let told = (self.act)(before, &storage);
            let Survivors { disks, is_complete } = storage.survivors(disks_max, call);
            tried +=
                Tried { crash_points: 1, complete: u64::from(is_complete), disks: disks.len() as u64, failed_syncs: 0 };
            for (index, disk) in disks.iter().enumerate() {
                (self.check)(disk, &told, &format!("{}, call {call}, disk {index}", self.name));
            }
        }
        tried.failed_syncs = self.fail_every_sync(first);
        tried
    }

    /// The process ends at a sync that failed; the next one reads what the disk does not have.
    fn fail_every_sync(&self, first: u64) -> u64 {
        let mut next = first;
        for failed in 0.. {
            let (storage, before) = (self.begin)();
            storage.sync_fails_at(next);
            let told = (self.act)(before, &storage);
            let Some(call) = storage.failed_sync() else { return failed };
            let what = format!("{}, the sync at call {} failed", self.name, call - first);
            (self.check)(&storage.after_kill(), &told, &what);
            next = call + 1;
        }
        unreachable!("an operation ends")
    }
}
