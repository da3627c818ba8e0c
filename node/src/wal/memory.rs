//! A disk in memory that loses what was not synced, page by page, runs out of room and fails on
//! demand. For tests and simulation: everything it does follows from the calls and a seed. Never used
//! by a running node.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::storage::{Storage, StorageFile};

/// Small, so that small tests tear in many places.
pub const PAGE_BYTES: usize = 64;

/// What a loss of power leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    Nothing,
    Everything,
    /// Each page, each length and each name by itself, as the seed decides.
    Some(u64),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
}

type Names = BTreeMap<String, u64>;

#[derive(Debug, Default)]
struct Disk {
    inodes: BTreeMap<u64, Inode>,
    names: Names,
    durable_names: Names,
    /// `(from, to)` of renames whose directories were not synced since.
    renames: Vec<(String, String)>,
    next_inode: u64,
    /// Calls that changed something, so far.
    calls: u64,
    /// The call that the power fails at; it may be done by half.
    power_fails_at: Option<u64>,
    sync_fails_at: Option<u64>,
    capacity_bytes: Option<u64>,
}

/// Clones share one disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage(Arc<Mutex<Disk>>);

#[derive(Debug)]
pub struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
}

impl MemoryStorage {
    /// Calls so far that changed something or made it durable: the places to fail at.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// From the call with this number on every call fails; that one may be done by half.
    pub fn power_fails_at(&self, call: u64) {
        self.lock().power_fails_at = Some(call);
    }

    /// The first sync at or behind this call fails; nothing of it is durable.
    pub fn sync_fails_at(&self, call: u64) {
        self.lock().sync_fails_at = Some(call);
    }

    /// None: unlimited.
    pub fn set_capacity_bytes(&self, capacity: Option<u64>) {
        self.lock().capacity_bytes = capacity;
    }

    /// The disk as it is found when the power is back.
    #[must_use]
    pub fn after_power_loss(&self, survives: Survives) -> Self {
        let disk = self.lock();
        let mut chance = Chance(match survives {
            Survives::Some(seed) => seed,
            Survives::Nothing | Survives::Everything => 0,
        });
        let mut takes_new = || match survives {
            Survives::Nothing => false,
            Survives::Everything => true,
            Survives::Some(_) => chance.coin(),
        };
        let names = surviving_names(&disk, &mut takes_new);
        let inodes = names.values().map(|id| (*id, settled(surviving_bytes(&disk.inodes[id], &mut takes_new))));
        let found = Disk {
            inodes: inodes.collect(),
            durable_names: names.clone(),
            names,
            next_inode: disk.next_inode,
            capacity_bytes: disk.capacity_bytes,
            ..Disk::default()
        };
        Self(Arc::new(Mutex::new(found)))
    }

    /// The bytes of a file; None: there is none.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.lock();
        disk.names.get(name).map(|id| disk.inodes[id].now.clone())
    }

    /// Changes a file behind everybody's back, durably.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.lock();
        let id = *disk.names.get(name).expect("a test tampers with a file that exists");
        let inode = disk.inodes.get_mut(&id).expect("names have inodes");
        change(&mut inode.now);
        inode.durable = inode.now.clone();
    }

    /// All names, with their directories.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        lock(&self.0)
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().expect("no code panics while it holds the disk")
}

fn settled(bytes: Vec<u8>) -> Inode {
    Inode { now: bytes.clone(), durable: bytes }
}

/// Each name is as it was synced or as it is now, by itself, except that both names of a rename share
/// their fate, as they do on file systems with a journal.
fn surviving_names(disk: &Disk, takes_new: &mut impl FnMut() -> bool) -> Names {
    let mut found = Names::new();
    let mut fates: BTreeMap<&str, bool> = BTreeMap::new();
    for (from, to) in &disk.renames {
        let fate = fates.get(from.as_str()).or(fates.get(to.as_str())).copied().unwrap_or_else(&mut *takes_new);
        fates.extend([(from.as_str(), fate), (to.as_str(), fate)]);
    }
    let all: std::collections::BTreeSet<_> = disk.names.keys().chain(disk.durable_names.keys()).collect();
    for name in all {
        let (old, new) = (disk.durable_names.get(name), disk.names.get(name));
        let is_new = old == new || fates.get(name.as_str()).copied().unwrap_or_else(&mut *takes_new);
        let kept = if is_new { new } else { old };
        found.extend(kept.map(|id| (name.clone(), *id)));
    }
    found
}

fn surviving_bytes(inode: &Inode, takes_new: &mut impl FnMut() -> bool) -> Vec<u8> {
    let Inode { now, durable } = inode;
    if now == durable {
        return now.clone();
    }
    let len = if now.len() == durable.len() || takes_new() { now.len() } else { durable.len() };
    let mut found = vec![0; len];
    for start in (0..len).step_by(PAGE_BYTES) {
        let page = start..len.min(start + PAGE_BYTES);
        let (old, new) = (durable.get(start..).unwrap_or(&[]), now.get(start..).unwrap_or(&[]));
        let (old, new) = (&old[..old.len().min(page.len())], &new[..new.len().min(page.len())]);
        let kept = if old == new || takes_new() { new } else { old };
        found[start..start + kept.len()].copy_from_slice(kept);
    }
    found
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn coin(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) & 1 == 1
    }
}

/// How a call goes.
#[derive(PartialEq, Eq)]
enum Power {
    On,
    /// It fails during this very call.
    Fails,
}

impl Disk {
    fn call(&mut self) -> io::Result<Power> {
        let call = self.calls;
        self.calls += 1;
        match self.power_fails_at {
            Some(at) if call > at => Err(no_power()),
            Some(at) if call == at => Ok(Power::Fails),
            _ => Ok(Power::On),
        }
    }

    /// For calls that are not done at all when the power fails.
    fn whole_call(&mut self) -> io::Result<()> {
        if self.call()? == Power::Fails { Err(no_power()) } else { Ok(()) }
    }

    fn sync_call(&mut self) -> io::Result<()> {
        let call = self.calls;
        self.whole_call()?;
        if self.sync_fails_at.is_some_and(|at| call >= at) {
            self.sync_fails_at = None;
            return Err(io::Error::other("the disk failed to sync"));
        }
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        if self.power_fails_at.is_some_and(|at| self.calls > at) { Err(no_power()) } else { Ok(()) }
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|id| self.inodes[id].now.len() as u64).sum()
    }
}

fn no_power() -> io::Error {
    io::Error::other("no power")
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

impl Storage for MemoryStorage {
    type File = MemoryFile;

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let disk = self.lock();
        disk.alive()?;
        let inside = disk.names.keys().filter(|name| directory_of(name) == dir);
        Ok(inside.map(|name| name.rsplit('/').next().expect("split gives one part").to_owned()).collect())
    }

    fn create(&self, name: &str) -> io::Result<MemoryFile> {
        let mut disk = self.lock();
        disk.whole_call()?;
        let existing = disk.names.get(name).copied();
        let inode = existing.unwrap_or(disk.next_inode);
        if existing.is_none() {
            disk.next_inode += 1;
            disk.names.insert(name.to_owned(), inode);
        }
        disk.inodes.entry(inode).or_default().now.clear();
        Ok(MemoryFile { disk: Arc::clone(&self.0), inode })
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        let disk = self.lock();
        disk.alive()?;
        let inode = *disk.names.get(name).ok_or_else(|| not_found(name))?;
        Ok(MemoryFile { disk: Arc::clone(&self.0), inode })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.whole_call()?;
        let inode = disk.names.remove(from).ok_or_else(|| not_found(from))?;
        disk.names.insert(to.to_owned(), inode);
        disk.renames.push((from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.whole_call()?;
        disk.names.remove(name).map(drop).ok_or_else(|| not_found(name))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.sync_call()?;
        let elsewhere = |name: &String| directory_of(name) != dir;
        let mut durable: Names =
            disk.durable_names.iter().filter(|(name, _)| elsewhere(name)).map(|(n, i)| (n.clone(), *i)).collect();
        durable.extend(disk.names.iter().filter(|(name, _)| !elsewhere(name)).map(|(n, i)| (n.clone(), *i)));
        disk.durable_names = durable;
        disk.renames.retain(|(from, to)| directory_of(from) != dir && directory_of(to) != dir);
        Ok(())
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let disk = self.lock();
        Ok(disk.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used_bytes())))
    }
}

impl MemoryFile {
    fn with<T>(&self, disk: &mut Disk, change: impl FnOnce(&mut Inode) -> T) -> T {
        change(disk.inodes.get_mut(&self.inode).expect("inodes are never dropped while the disk is"))
    }
}

impl StorageFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = lock(&self.disk);
        disk.alive()?;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(self.with(&mut disk, |inode| {
            let rest = inode.now.get(offset..).unwrap_or(&[]);
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        }))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let power = disk.call()?;
        let start = usize::try_from(offset).expect("test files fit in memory");
        let len_now = self.with(&mut disk, |inode| inode.now.len());
        let growth = (start + buf.len()).saturating_sub(len_now) as u64;
        let room = disk.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used_bytes()));
        let is_full = growth > room;
        let part = match power {
            Power::On if !is_full => buf,
            _ => &buf[..buf.len() / 2],
        };
        if !is_full || (start + part.len()).saturating_sub(len_now) as u64 <= room {
            self.with(&mut disk, |inode| {
                let end = start + part.len();
                inode.now.resize(inode.now.len().max(end), 0);
                inode.now[start..end].copy_from_slice(part);
            });
        }
        match power {
            Power::Fails => Err(no_power()),
            Power::On if is_full => Err(io::ErrorKind::StorageFull.into()),
            Power::On => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.sync_call()?;
        self.with(&mut disk, |inode| inode.durable = inode.now.clone());
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.whole_call()?;
        let len = usize::try_from(len).expect("test files fit in memory");
        self.with(&mut disk, |inode| inode.now.resize(len, 0));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut disk = lock(&self.disk);
        disk.alive()?;
        Ok(self.with(&mut disk, |inode| inode.now.len() as u64))
    }
}
