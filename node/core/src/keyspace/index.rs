//! The keys in order, for paging. Written only when a key is created or deleted. While a log is being
//! loaded, changes gather and are merged in batches: a million single inserts into a tree would take
//! longer than all else in recovery. Readers never notice: a page merges first what has gathered.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::RwLock;

use super::{Page, read_lock, write_lock};
use crate::command::Key;
use crate::entry::EntryId;

/// Fewest changes worth a merge; from there on merges wait until as many have gathered as there are keys.
const GATHERED_MIN: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Present,
    Absent,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Loading,
    Serving,
}

#[derive(Default)]
pub(super) struct Index(RwLock<Keys>);

#[derive(Default)]
struct Keys {
    sorted: BTreeSet<Key>,
    /// In entry order, not yet in `sorted`; empty when serving.
    gathered: Vec<(Key, Presence)>,
    last_change: EntryId,
    mode: Mode,
}

impl Index {
    pub(super) fn note(&self, id: EntryId, key: Key, presence: Presence) {
        let mut keys = write_lock(&self.0);
        keys.last_change = keys.last_change.max(id);
        match keys.mode {
            Mode::Serving => keys.change(key, presence),
            Mode::Loading => {
                keys.gathered.push((key, presence));
                if keys.gathered.len() >= keys.sorted.len().max(GATHERED_MIN) {
                    keys.merge();
                }
            }
        }
    }

    pub(super) fn finish_loading(&self) {
        let mut keys = write_lock(&self.0);
        keys.merge();
        keys.gathered = Vec::new();
        keys.mode = Mode::Serving;
    }

    /// The page, and the id of the last change to the order.
    pub(super) fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> (EntryId, Page) {
        {
            let keys = read_lock(&self.0);
            if keys.gathered.is_empty() {
                return (keys.last_change, keys.page(prefix, after, limit));
            }
        }
        let mut keys = write_lock(&self.0);
        keys.merge();
        (keys.last_change, keys.page(prefix, after, limit))
    }
}

impl Keys {
    fn change(&mut self, key: Key, presence: Presence) {
        match presence {
            Presence::Present => drop(self.sorted.insert(key)),
            Presence::Absent => drop(self.sorted.remove(&key)),
        }
    }

    fn merge(&mut self) {
        let gathered = std::mem::take(&mut self.gathered);
        if gathered.len() < self.sorted.len() / 16 {
            return gathered.into_iter().for_each(|(key, presence)| self.change(key, presence));
        }
        let (created, deleted) = net(gathered);
        // Both in order already, so this is one linear pass that leaves the nodes full.
        self.sorted.append(&mut BTreeSet::from_iter(created));
        for key in deleted {
            self.sorted.remove(&key);
        }
    }

    fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut rest = self.sorted.range::<str, _>((from, Bound::Unbounded));
        let mut matching = rest.by_ref().take_while(|key| key.as_str().starts_with(prefix));
        let keys = matching.by_ref().take(limit).cloned().collect();
        Page { keys, more: matching.next().is_some() }
    }
}

/// The changes that remain when the last one of each key counts, in key order.
fn net(gathered: Vec<(Key, Presence)>) -> (Vec<Key>, Vec<Key>) {
    // Comparing the first bytes in place spares most of the visits to the keys themselves.
    let mut changes: Vec<_> =
        gathered.into_iter().enumerate().map(|(at, (key, presence))| (head(&key), at, key, presence)).collect();
    changes.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| a.2.cmp(&b.2)).then(a.1.cmp(&b.1)));
    let (mut created, mut deleted) = (Vec::new(), Vec::new());
    let mut changes = changes.into_iter().peekable();
    while let Some((_, _, key, presence)) = changes.next() {
        if changes.peek().is_some_and(|(_, _, next, _)| *next == key) {
            continue;
        }
        match presence {
            Presence::Present => created.push(key),
            Presence::Absent => deleted.push(key),
        }
    }
    (created, deleted)
}

/// The first 16 bytes, in an integer that orders as they do. Equal heads of unequal keys are possible.
fn head(key: &Key) -> u128 {
    let mut bytes = [0; 16];
    let text = key.as_str().as_bytes();
    let len = text.len().min(bytes.len());
    bytes[..len].copy_from_slice(&text[..len]);
    u128::from_be_bytes(bytes)
}
