//! Which lines at or below the horizon still matter, and where they go. Pure: it is told what lines
//! say and never reads one.
//!
//! The keyspace is asked while writers go on, so for a key that was written above the horizon its
//! answer is of some moment after it. Such keys are traced through the old lines instead: what the
//! last of them did is what was current at the horizon. The superseded versions that the keyspace
//! still held are enough, for an older version it has dropped is dropped again on replay.

use std::collections::HashMap;

use kv_core::command::Key;
use kv_core::contract::Base;
use kv_core::entry::{Control, EntryId, LineView, LogPosition};
use kv_core::group::{ConfigurationAt, TIME_IN_BASE};
use kv_core::mutant::{self, Mutant};
use roaring::RoaringTreemap;

/// Where a line at or below the horizon goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Live,
    History,
    Dropped,
}

/// The ids worth keeping.
#[derive(Debug, Default)]
pub(super) struct Selection {
    live: RoaringTreemap,
    history: RoaringTreemap,
    /// Keys written above the horizon, and what the latest line at or below it did to them.
    touched: HashMap<Key, Latest>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Latest {
    id: EntryId,
    is_set: bool,
}

impl Selection {
    pub(super) fn add_live(&mut self, id: EntryId) {
        self.live.insert(id.0);
    }

    pub(super) fn add_history(&mut self, id: EntryId) {
        self.history.insert(id.0);
    }

    /// A line above the horizon: its key must be traced.
    pub(super) fn touch(&mut self, key: &str) {
        if !self.touched.contains_key(key)
            && let Ok(key) = Key::new(key)
        {
            self.touched.insert(key, Latest::default());
        }
    }

    pub(super) fn needs_trace(&self) -> bool {
        !self.touched.is_empty()
    }

    /// A line at or below the horizon that apply did not refuse, in any order.
    pub(super) fn trace(&mut self, line: &LineView<'_>) {
        let Some(latest) = line.key.as_deref().and_then(|key| self.touched.get_mut(key)) else { return };
        let is_passed_over = line.operation == "DELETE" && mutant::on(Mutant::CompactionForgetsDelete);
        if line.id > latest.id && !is_passed_over {
            *latest = Latest { id: line.id, is_set: line.operation == "SET" };
        }
    }

    /// After the last line was traced.
    pub(super) fn settle(&mut self) {
        let current = self.touched.drain().filter(|(_, latest)| latest.is_set).map(|(_, latest)| latest.id.0);
        self.live.extend(current);
    }

    pub(super) fn place(&self, id: EntryId) -> Place {
        if self.live.contains(id.0) {
            Place::Live
        } else if self.history.contains(id.0) {
            Place::History
        } else {
            Place::Dropped
        }
    }

    /// Lines that must turn up in the copy, or something was lost.
    pub(super) fn expected(&self) -> u64 {
        self.live.union_len(&self.history)
    }
}

/// Moves a base up to a control entry that the new horizon covers.
pub(super) fn absorb(base: &mut Base, at: LogPosition, control: &Control) {
    match control {
        Control::Config(configuration) => {
            // After a recovery by hand the base's configuration may be newer than the entry.
            if base.configuration.id < at.id && !mutant::on(Mutant::CompactionForgetsConfiguration) {
                base.configuration = ConfigurationAt { id: at.id, configuration: configuration.clone() };
            }
        }
        Control::Settings(settings) => base.settings = *settings,
        Control::Feature(level) => base.feature_level = *level,
        Control::Epoch { .. } | Control::Lost { .. } => {}
    }
}

/// What the members of the group may not all know yet is left out.
pub(super) fn without_unknown(mut base: Base) -> Base {
    if base.feature_level < TIME_IN_BASE {
        base.ts_ms = 0;
    }
    base
}

/// Time in the log goes on from the last line that has one, also when that is covered.
pub(super) fn observe_time(base: &mut Base, ts_ms: Option<u64>) {
    if !mutant::on(Mutant::CompactionForgetsTime) {
        base.ts_ms = base.ts_ms.max(ts_ms.unwrap_or(0));
    }
}
