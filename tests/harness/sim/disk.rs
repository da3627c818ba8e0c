//! A disk that behaves as badly as a disk may: what is not synced is lost or torn page by page, a failed
//! sync leaves pages that can be read until the power goes and are then not there, there is no room, calls
//! fail, bits flip at rest. Everything it does follows from the calls and its seed. It knows files and
//! pages, nothing of the log. Each process of a node has a handle of its own: one that was left behind by a
//! crash can do no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use kv_node::wal::storage::{Storage, StorageFile};

use crate::random::Random;

/// Small, so that few lines tear in many places.
pub(crate) const PAGE_BYTES: usize = 64;

/// How a process and its disk part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process alone: the page cache stays.
    Process,
    /// Pages, lengths and names that were not synced are there or not, each by itself.
    Power,
    /// As a power loss of which nothing survives that was not synced.
    PowerLosesAll,
}

/// What goes wrong, once, at a call to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The machine stops during this call, which may be done by half.
    Stops,
    /// The process alone, in the same way: what it has done so far can be read, and may still be lost with the power.
    Killed,
    WriteFails,
    SyncFails,
    /// Of a file, or of a directory's names.
    ReadFails,
    /// A file is not made, renamed, removed or cut, and all is as it was.
    ChangeFails,
}

impl Trouble {
    /// How the process and its disk part there. None: the call fails, and the process goes on.
    pub(crate) fn crash(self) -> Option<Crash> {
        match self {
            Self::Stops => Some(Crash::Power),
            Self::Killed => Some(Crash::Process),
            Self::WriteFails | Self::SyncFails | Self::ReadFails | Self::ChangeFails => None,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Pages that the next sync writes.
    dirty: BTreeSet<usize>,
}

type Names = BTreeMap<String, u64>;

#[derive(Debug, Clone)]
struct Disk {
    inodes: BTreeMap<u64, Inode>,
    names: Names,
    durable_names: Names,
    /// `(from, to)` of renames whose directories were not synced since.
    renames: Vec<(String, String)>,
    next_inode: u64,
    calls: u64,
    trouble: Option<(u64, Trouble)>,
    /// What went wrong since somebody asked.
    happened: Option<Trouble>,
    has_stopped: bool,
    capacity_bytes: Option<u64>,
    /// A refused write for want of room, since somebody asked.
    was_full: bool,
    random: Random,
}

/// One process's handle.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk(Arc<Mutex<Disk>>);

#[derive(Debug)]
pub(crate) struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
}

impl SimDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            inodes: BTreeMap::new(),
            names: Names::new(),
            durable_names: Names::new(),
            renames: Vec::new(),
            next_inode: 1,
            calls: 0,
            trouble: None,
            happened: None,
            has_stopped: false,
            capacity_bytes: None,
            was_full: false,
            random: Random::new(seed),
        })))
    }

    /// The disk as the next process finds it. The old handle is of no more use.
    #[must_use]
    pub(crate) fn after(&self, crash: Crash) -> Self {
        let mut disk = self.lock();
        disk.has_stopped = true;
        Self(Arc::new(Mutex::new(disk.found_after(crash))))
    }

    /// What the disk would hold after a crash at this moment; nothing happens to the disk itself.
    #[must_use]
    pub(crate) fn image(&self, crash: Crash) -> Self {
        let mut disk = self.lock().clone();
        Self(Arc::new(Mutex::new(disk.found_after(crash))))
    }

    /// Calls so far, also those that only look.
    pub(crate) fn calls(&self) -> u64 {
        self.lock().calls
    }

    pub(crate) fn arm(&self, in_calls: u64, trouble: Trouble) {
        let mut disk = self.lock();
        disk.trouble = Some((disk.calls + in_calls, trouble));
    }

    pub(crate) fn disarm(&self) {
        self.lock().trouble = None;
    }

    /// Looks at what is there as it would be seen if nobody looked: undisturbed, and disturbing nothing.
    pub(crate) fn unseen(&self, look: impl FnOnce()) {
        let (calls, trouble) = {
            let mut disk = self.lock();
            (disk.calls, disk.trouble.take())
        };
        look();
        let mut disk = self.lock();
        (disk.calls, disk.trouble) = (calls, trouble);
    }

    /// No read fails from now on.
    pub(crate) fn lets_read(&self) {
        self.lock().trouble.take_if(|(_, what)| *what == Trouble::ReadFails);
    }

    /// A read has failed, and nothing else has gone wrong since it was asked last.
    pub(crate) fn take_failed_read(&self) -> bool {
        self.lock().happened.take_if(|what| *what == Trouble::ReadFails).is_some()
    }

    /// What has gone wrong since this was asked last.
    pub(crate) fn take_happened(&self) -> Option<Trouble> {
        self.lock().happened.take()
    }

    pub(crate) fn take_was_full(&self) -> bool {
        std::mem::take(&mut self.lock().was_full)
    }

    pub(crate) fn has_stopped(&self) -> bool {
        self.lock().has_stopped
    }

    /// None: without end.
    pub(crate) fn set_room(&self, bytes: Option<u64>) {
        let mut disk = self.lock();
        disk.capacity_bytes = bytes.map(|bytes| disk.used_bytes() + bytes);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    pub(crate) fn bytes_of(&self, name: &str) -> usize {
        let disk = self.lock();
        disk.names.get(name).map_or(0, |inode| disk.inodes[inode].now.len())
    }

    /// As they can be read now. Empty: there is no such file.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let disk = self.lock();
        disk.names.get(name).map_or_else(Vec::new, |inode| disk.inodes[inode].now.clone())
    }

    /// Flips a bit at rest, on the disk and in the cache.
    pub(crate) fn flip(&self, name: &str, byte: usize, bit: u32) {
        let mut disk = self.lock();
        let inode = disk.names[name];
        let inode = disk.inodes.get_mut(&inode).expect("names have inodes");
        for bytes in [&mut inode.now, &mut inode.durable] {
            if let Some(byte) = bytes.get_mut(byte) {
                *byte ^= 1 << bit;
            }
        }
    }

    /// Removes a file behind everybody's back.
    pub(crate) fn vanish(&self, name: &str) {
        let mut disk = self.lock();
        disk.names.remove(name);
        disk.durable_names.remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        lock(&self.0)
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().expect("no code panics while it holds the disk")
}

impl Disk {
    fn found_after(&mut self, crash: Crash) -> Self {
        let seed = self.random.draw();
        let mut found = Self {
            inodes: BTreeMap::new(),
            renames: Vec::new(),
            trouble: None,
            happened: None,
            has_stopped: false,
            was_full: false,
            random: Random::new(seed),
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            ..*self
        };
        if crash == Crash::Process {
            // The kernel goes on; what was under way to the disk still is.
            found.renames.clone_from(&self.renames);
            let kept = found.names.values().chain(found.durable_names.values());
            found.inodes = kept.map(|id| (*id, self.inodes[id].clone())).collect();
            return found;
        }
        let mut takes_new = || crash == Crash::Power && found.random.percent(50);
        found.names = surviving_names(self, &mut takes_new);
        let of = |id: &u64| &self.inodes[id];
        found.inodes = found.names.values().map(|id| (*id, surviving(of(id), &mut takes_new))).collect();
        found.durable_names.clone_from(&found.names);
        found
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|id| self.inodes[id].now.len() as u64).sum()
    }

    fn look(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.has_stopped { Err(stops()) } else { Ok(()) }
    }

    /// A call that changes nothing.
    fn read(&mut self) -> io::Result<()> {
        self.look()?;
        let calls = self.calls;
        match self.trouble.take_if(|(at, what)| calls > *at && *what == Trouble::ReadFails) {
            None => Ok(()),
            Some((_, what)) => {
                self.happened = Some(what);
                Err(io::Error::other("the disk failed to read"))
            }
        }
    }

    /// A call that changes something. The trouble that is due may be of another kind: then it waits.
    fn act(&mut self, kind: Trouble) -> io::Result<Option<Trouble>> {
        self.look()?;
        let due = self.trouble.filter(|(at, what)| self.calls > *at && (*what == kind || what.crash().is_some()));
        let Some((_, what)) = due else { return Ok(None) };
        self.trouble = None;
        self.happened = Some(what);
        self.has_stopped = what.crash().is_some();
        Ok(Some(what))
    }

    /// For calls that are not done at all when the machine stops, or when they fail.
    fn act_whole(&mut self) -> io::Result<()> {
        match self.act(Trouble::ChangeFails)? {
            Some(what) if what.crash().is_some() => Err(stops()),
            Some(_) => Err(io::Error::other("the disk failed to change a file")),
            None => Ok(()),
        }
    }
}

/// Each name is as it was synced or as it is now, by itself, except that both names of a rename share
/// their fate, as they do on file systems with a journal.
fn surviving_names(disk: &Disk, takes_new: &mut impl FnMut() -> bool) -> Names {
    let mut fates: BTreeMap<&str, bool> = BTreeMap::new();
    for (from, to) in &disk.renames {
        let fate = fates.get(from.as_str()).or(fates.get(to.as_str())).copied().unwrap_or_else(&mut *takes_new);
        fates.extend([(from.as_str(), fate), (to.as_str(), fate)]);
    }
    let all: BTreeSet<&String> = disk.names.keys().chain(disk.durable_names.keys()).collect();
    let mut found = Names::new();
    for name in all {
        let (old, new) = (disk.durable_names.get(name), disk.names.get(name));
        let is_new = old == new || fates.get(name.as_str()).copied().unwrap_or_else(&mut *takes_new);
        found.extend(if is_new { new } else { old }.map(|id| (name.clone(), *id)));
    }
    found
}

/// A page that is not dirty any more and yet not on the disk was given up by a failed sync: it is gone.
fn surviving(inode: &Inode, takes_new: &mut impl FnMut() -> bool) -> Inode {
    let Inode { now, durable, dirty } = inode;
    let len = if now.len() == durable.len() || (!dirty.is_empty() && takes_new()) { now.len() } else { durable.len() };
    let mut found = vec![0; len];
    let old = durable.len().min(len);
    found[..old].copy_from_slice(&durable[..old]);
    for page in dirty.iter().filter(|_| takes_new()) {
        let range = page_range(*page, now.len().min(len));
        found[range.clone()].copy_from_slice(&now[range]);
    }
    Inode { durable: found.clone(), now: found, dirty: BTreeSet::new() }
}

fn page_range(page: usize, len: usize) -> std::ops::Range<usize> {
    (page * PAGE_BYTES).min(len)..((page + 1) * PAGE_BYTES).min(len)
}

impl Inode {
    fn write(&mut self, buf: &[u8], start: usize) {
        let end = start + buf.len();
        let before = self.now.len();
        self.now.resize(before.max(end), 0);
        self.now[start..end].copy_from_slice(buf);
        self.touch(start.min(before), end);
    }

    fn touch(&mut self, start: usize, end: usize) {
        self.dirty.extend(start / PAGE_BYTES..end.div_ceil(PAGE_BYTES));
    }

    fn resize(&mut self, len: usize) {
        let before = self.now.len();
        self.now.resize(len, 0);
        self.dirty.retain(|page| page * PAGE_BYTES < len.max(1));
        self.touch(before.min(len).saturating_sub(1), len.max(1));
    }

    fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        for page in std::mem::take(&mut self.dirty) {
            let range = page_range(page, self.now.len());
            self.durable[range.clone()].copy_from_slice(&self.now[range]);
        }
    }

    /// Some pages reach the disk, some do not, and none is tried again.
    fn fail_to_sync(&mut self, random: &mut Random) {
        for page in std::mem::take(&mut self.dirty) {
            if random.percent(50) && page * PAGE_BYTES <= self.durable.len() {
                let range = page_range(page, self.now.len());
                self.durable.resize(self.durable.len().max(range.end), 0);
                self.durable[range.clone()].copy_from_slice(&self.now[range]);
            }
        }
    }
}

fn stops() -> io::Error {
    io::Error::other("the machine or the process has stopped")
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

impl Storage for SimDisk {
    type File = SimFile;

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut disk = self.lock();
        disk.read()?;
        let inside = disk.names.keys().filter(|name| directory_of(name) == dir);
        Ok(inside.map(|name| name.rsplit('/').next().expect("split gives one part").to_owned()).collect())
    }

    fn list_by_age(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        let mut disk = self.lock();
        disk.read()?;
        let inside = disk.names.iter().filter(|(name, _)| directory_of(name) == dir);
        let mut files: Vec<(u64, String)> = inside.map(|(name, inode)| (*inode, name.clone())).collect();
        files.sort();
        let sized = files.into_iter().map(|(inode, name)| {
            let name = name.rsplit('/').next().expect("split gives one part").to_owned();
            (name, disk.inodes[&inode].now.len() as u64)
        });
        Ok(sized.collect())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut disk = self.lock();
        disk.act_whole()?;
        let inode = match disk.names.get(name) {
            Some(inode) => *inode,
            None => {
                let inode = disk.next_inode;
                disk.next_inode += 1;
                disk.names.insert(name.to_owned(), inode);
                inode
            }
        };
        disk.inodes.entry(inode).or_default().resize(0);
        Ok(SimFile { disk: Arc::clone(&self.0), inode })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let mut disk = self.lock();
        disk.read()?;
        let inode = *disk.names.get(name).ok_or_else(|| not_found(name))?;
        Ok(SimFile { disk: Arc::clone(&self.0), inode })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.act_whole()?;
        let inode = disk.names.remove(from).ok_or_else(|| not_found(from))?;
        disk.names.insert(to.to_owned(), inode);
        disk.renames.push((from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.act_whole()?;
        disk.names.remove(name).map(drop).ok_or_else(|| not_found(name))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut disk = self.lock();
        if disk.act(Trouble::SyncFails)?.is_some() {
            return Err(io::Error::other("the disk failed to sync a directory"));
        }
        let disk = &mut *disk;
        disk.durable_names.retain(|name, _| directory_of(name) != dir);
        let inside = disk.names.iter().filter(|(name, _)| directory_of(name) == dir);
        disk.durable_names.extend(inside.map(|(name, inode)| (name.clone(), *inode)));
        disk.renames.retain(|(from, to)| directory_of(from) != dir && directory_of(to) != dir);
        Ok(())
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let mut disk = self.lock();
        disk.look()?;
        Ok(disk.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used_bytes())))
    }
}

impl SimFile {
    fn act<T>(&self, disk: &mut Disk, act: impl FnOnce(&mut Inode, &mut Random) -> T) -> T {
        let inode = disk.inodes.get_mut(&self.inode).expect("an inode lives as long as its disk");
        act(inode, &mut disk.random)
    }
}

fn in_memory(n: u64) -> usize {
    usize::try_from(n).expect("simulated files fit in memory")
}

impl StorageFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = lock(&self.disk);
        disk.read()?;
        Ok(self.act(&mut disk, |inode, _| {
            let rest = inode.now.get(in_memory(offset)..).unwrap_or(&[]);
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        }))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let trouble = disk.act(Trouble::WriteFails)?;
        let start = in_memory(offset);
        let len = self.act(&mut disk, |inode, _| inode.now.len());
        let room = disk.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used_bytes()));
        let fits = usize::try_from(room).unwrap_or(usize::MAX).saturating_add(len).saturating_sub(start).min(buf.len());
        let part = match trouble {
            Some(_) => in_memory(disk.random.below(fits as u64 + 1)),
            None => fits,
        };
        self.act(&mut disk, |inode, _| inode.write(&buf[..part], start));
        disk.was_full |= fits < buf.len();
        match trouble {
            Some(_) => Err(io::Error::other("the disk failed to write")),
            None if fits < buf.len() => Err(io::ErrorKind::StorageFull.into()),
            None => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        match disk.act(Trouble::SyncFails)? {
            None => self.act(&mut disk, |inode, _| inode.sync()),
            Some(what) if what.crash().is_some() => return Err(stops()),
            Some(_) => {
                self.act(&mut disk, Inode::fail_to_sync);
                return Err(io::Error::other("the disk failed to sync"));
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.act_whole()?;
        self.act(&mut disk, |inode, _| inode.resize(in_memory(len)));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut disk = lock(&self.disk);
        disk.look()?;
        Ok(self.act(&mut disk, |inode, _| inode.now.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
        let file = disk.open(name).ok()?;
        let mut bytes = vec![0; 1000];
        let n = file.read_at(&mut bytes, 0).expect("readable");
        bytes.truncate(n);
        Some(bytes)
    }

    #[test]
    fn what_was_not_synced_survives_the_process_and_not_the_power() {
        let disk = SimDisk::new(1);
        let file = disk.create("f").expect("created");
        disk.sync_dir("").expect("synced");
        file.write_at(b"one", 0).and_then(|()| file.sync()).expect("synced");
        file.write_at(b"two", 3).expect("written");
        assert_eq!(content(&disk.image(Crash::PowerLosesAll), "f"), Some(b"one".to_vec()));
        assert_eq!(content(&disk.after(Crash::Process), "f"), Some(b"onetwo".to_vec()));
        assert!(disk.open("f").is_err(), "a handle that was left behind does nothing");
    }

    #[test]
    fn what_a_failed_sync_gave_up_is_read_until_the_power_goes_and_no_later_sync_brings_it_back() {
        let lost = (0..20).any(|seed| {
            let disk = SimDisk::new(seed);
            let file = disk.create("f").expect("created");
            disk.sync_dir("").expect("synced");
            disk.arm(0, Trouble::SyncFails);
            file.write_at(&[7; 3 * PAGE_BYTES], 0).expect("written");
            assert!(file.sync().is_err());
            file.sync().expect("the trouble has passed");
            let next = disk.after(Crash::Process);
            assert_eq!(content(&next, "f"), Some(vec![7; 3 * PAGE_BYTES]));
            content(&next.after(Crash::Power), "f") != Some(vec![7; 3 * PAGE_BYTES])
        });
        assert!(lost, "pages vanish");
    }
}
