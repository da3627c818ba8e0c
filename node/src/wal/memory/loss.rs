//! What a loss of power leaves of the disk in memory: one disk of those that are possible, or all of
//! them. Each name, length and page that was not synced survives by itself, except that both names of a
//! rename share their fate, as they do on file systems with a journal.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::inode::Inode;
use super::{Disk, MemoryStorage, Names, directory_of};

/// What a loss of power leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    Nothing,
    Everything,
    /// Each page, each length and each name by itself, as the seed decides.
    Some(u64),
}

/// Disks that may be found when the power is back.
#[derive(Debug)]
pub struct Survivors {
    pub disks: Vec<MemoryStorage>,
    /// Whether these are all that are possible.
    pub is_complete: bool,
}

/// A change of names that is not durable yet.
#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Appears { name: String, inode: u64 },
    Goes { name: String },
    Moves { from: String, to: String, inode: u64 },
}

impl NameChange {
    fn carry_out(&self, names: &mut Names) {
        match self {
            Self::Appears { name, inode } => drop(names.insert(name.clone(), *inode)),
            Self::Goes { name } => drop(names.remove(name)),
            Self::Moves { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }

    /// What a sync of `dir` makes durable, and what it does not.
    fn split(self, dir: &str) -> (Option<Self>, Option<Self>) {
        let is_inside = |name: &str| directory_of(name) == dir;
        match self {
            Self::Moves { from, to, inode } if is_inside(&from) != is_inside(&to) => {
                let (appears, goes) = (Self::Appears { name: to, inode }, Self::Goes { name: from.clone() });
                if is_inside(&from) { (Some(goes), Some(appears)) } else { (Some(appears), Some(goes)) }
            }
            Self::Appears { ref name, .. } | Self::Goes { ref name } | Self::Moves { from: ref name, .. } => {
                if is_inside(name) {
                    (Some(self), None)
                } else {
                    (None, Some(self))
                }
            }
        }
    }
}

impl Disk {
    pub(super) fn change_names(&mut self, change: NameChange) {
        change.carry_out(&mut self.names);
        self.name_changes.push(change);
    }

    pub(super) fn sync_names(&mut self, dir: &str) {
        for change in std::mem::take(&mut self.name_changes) {
            let (durable, left) = change.split(dir);
            durable.iter().for_each(|change| change.carry_out(&mut self.durable_names));
            self.name_changes.extend(left);
        }
    }

    fn surviving(&self, pick: &mut dyn FnMut(usize) -> usize) -> MemoryStorage {
        let mut names = self.durable_names.clone();
        for change in &self.name_changes {
            if pick(2) == 1 {
                change.carry_out(&mut names);
            }
        }
        let mut inodes = BTreeMap::new();
        for id in names.values() {
            inodes.entry(*id).or_insert_with(|| Inode::settled(self.inodes[id].surviving(pick)));
        }
        let found = Self {
            inodes,
            durable_names: names.clone(),
            names,
            next_inode: self.next_inode,
            capacity_bytes: self.capacity_bytes,
            ..Self::default()
        };
        MemoryStorage(Arc::new(Mutex::new(found)))
    }
}

impl MemoryStorage {
    /// The disk as it is found when the power is back.
    #[must_use]
    pub fn after_power_loss(&self, survives: Survives) -> Self {
        match survives {
            Survives::Nothing => self.lock().surviving(&mut |_| 0),
            Survives::Everything => self.lock().surviving(&mut |versions| versions - 1),
            Survives::Some(seed) => self.lock().surviving(&mut by_chance(seed)),
        }
    }

    /// Every disk that may be found when the power is back, if there are at most `disks_max`. Otherwise
    /// that many of them: with all of what was not synced and with nothing of it, with each single piece
    /// kept or lost, then as the seed decides.
    pub fn survivors(&self, disks_max: usize, seed: u64) -> Survivors {
        let disk = self.lock();
        let mut odometer = Odometer::default();
        let mut disks = Vec::new();
        while disks.len() < disks_max {
            disks.push(disk.surviving(&mut |versions| odometer.pick(versions)));
            if !odometer.advance() {
                return Survivors { disks, is_complete: true };
            }
        }
        Survivors { disks: some_survivors(&disk, disks_max, seed), is_complete: false }
    }
}

fn some_survivors(disk: &Disk, disks_max: usize, seed: u64) -> Vec<MemoryStorage> {
    let mut disks = vec![disk.surviving(&mut |_| 0), disk.surviving(&mut |versions| versions - 1)];
    for newest in [true, false] {
        let mut single = 0;
        let mut asked = usize::MAX;
        while single < asked && disks.len() < disks_max {
            asked = 0;
            disks.push(disk.surviving(&mut |versions| {
                let takes_newest = newest == (asked == single);
                asked += 1;
                if takes_newest { versions - 1 } else { 0 }
            }));
            single += 1;
        }
    }
    let samples = disks_max.saturating_sub(disks.len()) as u64;
    disks.extend((0..samples).map(|sample| disk.surviving(&mut by_chance(seed + sample))));
    disks
}

/// Goes through all sequences of picks, which may depend on the picks before.
#[derive(Default)]
struct Odometer {
    /// What was picked, and of how many.
    wheels: Vec<(usize, usize)>,
    at: usize,
}

impl Odometer {
    fn pick(&mut self, versions: usize) -> usize {
        if self.at == self.wheels.len() {
            self.wheels.push((0, versions));
        }
        self.at += 1;
        self.wheels[self.at - 1].0
    }

    /// False: that was the last sequence.
    fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((picked, versions)) = self.wheels.pop() {
            if picked + 1 < versions {
                self.wheels.push((picked + 1, versions));
                return true;
            }
        }
        false
    }
}

/// SplitMix64.
fn by_chance(mut state: u64) -> impl FnMut(usize) -> usize {
    move |versions| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % versions as u64).expect("below the number of versions")
    }
}

#[cfg(test)]
mod tests;
