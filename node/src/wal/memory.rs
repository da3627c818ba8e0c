//! A disk in memory that loses what was not synced, page by page, runs out of room and fails on
//! demand. For tests and simulation: everything it does follows from the calls and a seed. Never used
//! by a running node.

mod inode;
mod loss;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::storage::{Storage, StorageFile};
use inode::Inode;
pub use inode::PAGE_BYTES;
use loss::NameChange;
pub use loss::{Survives, Survivors};

type Names = BTreeMap<String, u64>;

#[derive(Debug, Clone, Default)]
struct Disk {
    inodes: BTreeMap<u64, Inode>,
    names: Names,
    durable_names: Names,
    /// What makes `names` of `durable_names`, in order: each may be lost by itself.
    name_changes: Vec<NameChange>,
    next_inode: u64,
    /// Calls that changed something, so far.
    calls: u64,
    /// The call that the power fails at; it may be done by half.
    power_fails_at: Option<u64>,
    sync_fails_at: Option<u64>,
    /// The call at which a sync failed last.
    failed_sync: Option<u64>,
    capacity_bytes: Option<u64>,
    is_read_only: bool,
    /// The process has no file descriptor left.
    is_out_of_handles: bool,
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

    /// The first sync at or behind this call fails. What it covered can be read until the power fails, and is
    /// then lost, whatever is synced later.
    pub fn sync_fails_at(&self, call: u64) {
        self.lock().sync_fails_at = Some(call);
    }

    /// The call at which a sync failed last; None: none did.
    pub fn failed_sync(&self) -> Option<u64> {
        self.lock().failed_sync
    }

    /// None: unlimited.
    pub fn set_capacity_bytes(&self, capacity: Option<u64>) {
        self.lock().capacity_bytes = capacity;
    }

    /// As a volume that was remounted read-only: changes are refused, open files included.
    pub fn set_read_only(&self, is_read_only: bool) {
        self.lock().is_read_only = is_read_only;
    }

    /// As a process that may not open one more file.
    pub fn set_out_of_handles(&self, is_out_of_handles: bool) {
        self.lock().is_out_of_handles = is_out_of_handles;
    }

    /// Everything is durable from now on, as a kernel may see to at any time.
    pub fn write_back(&self) {
        let mut disk = self.lock();
        disk.inodes.values_mut().for_each(Inode::sync);
        disk.durable_names = disk.names.clone();
        disk.name_changes.clear();
    }

    /// The disk as the next process finds it after this one was killed: what was written can be read.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        let mut disk = self.lock().clone();
        (disk.calls, disk.power_fails_at, disk.sync_fails_at, disk.failed_sync) = (0, None, None, None);
        Self(Arc::new(Mutex::new(disk)))
    }

    /// The bytes of a file; None: there is none.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.lock();
        disk.names.get(name).map(|id| disk.inodes[id].bytes().to_vec())
    }

    /// Changes a file behind everybody's back, durably.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.lock();
        let id = *disk.names.get(name).expect("a test tampers with a file that exists");
        let inode = disk.inodes.get_mut(&id).expect("names have inodes");
        let mut bytes = inode.bytes().to_vec();
        change(&mut bytes);
        *inode = Inode::settled(bytes);
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

/// How a call goes.
#[derive(PartialEq, Eq)]
enum Power {
    On,
    /// It fails during this very call.
    Fails,
}

impl Disk {
    /// A change of names, contents or lengths.
    fn change_call(&mut self) -> io::Result<Power> {
        if self.is_read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { self.call() }
    }

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
        if self.change_call()? == Power::Fails { Err(no_power()) } else { Ok(()) }
    }

    fn sync_call(&mut self) -> io::Result<()> {
        let call = self.calls;
        if self.call()? == Power::Fails {
            return Err(no_power());
        }
        if self.sync_fails_at.is_some_and(|at| call >= at) {
            (self.sync_fails_at, self.failed_sync) = (None, Some(call));
            return Err(io::Error::other("the disk failed to sync"));
        }
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        if self.power_fails_at.is_some_and(|at| self.calls > at) { Err(no_power()) } else { Ok(()) }
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|id| self.inodes[id].bytes().len() as u64).sum()
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

    fn list_by_age(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        let disk = self.lock();
        let mut files: Vec<(u64, &String)> =
            disk.names.iter().filter(|(name, _)| directory_of(name) == dir).map(|(name, id)| (*id, name)).collect();
        files.sort_unstable();
        let found = files.into_iter().map(|(id, name)| {
            let name = name.rsplit('/').next().expect("split gives one part");
            (name.to_owned(), disk.inodes[&id].bytes().len() as u64)
        });
        Ok(found.collect())
    }

    fn create(&self, name: &str) -> io::Result<MemoryFile> {
        let mut disk = self.lock();
        disk.whole_call()?;
        let existing = disk.names.get(name).copied();
        let inode = existing.unwrap_or(disk.next_inode);
        if existing.is_none() {
            disk.next_inode += 1;
            disk.change_names(NameChange::Appears { name: name.to_owned(), inode });
        }
        disk.inodes.entry(inode).or_default().set_len(0);
        Ok(MemoryFile { disk: Arc::clone(&self.0), inode })
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        let disk = self.lock();
        disk.alive()?;
        if disk.is_out_of_handles {
            return Err(rustix::io::Errno::MFILE.into());
        }
        let inode = *disk.names.get(name).ok_or_else(|| not_found(name))?;
        Ok(MemoryFile { disk: Arc::clone(&self.0), inode })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.whole_call()?;
        let inode = *disk.names.get(from).ok_or_else(|| not_found(from))?;
        disk.change_names(NameChange::Moves { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.whole_call()?;
        if !disk.names.contains_key(name) {
            return Err(not_found(name));
        }
        disk.change_names(NameChange::Goes { name: name.to_owned() });
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.sync_call()?;
        disk.sync_names(dir);
        Ok(())
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let disk = self.lock();
        let capacity = if disk.is_read_only { Some(0) } else { disk.capacity_bytes };
        Ok(capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used_bytes())))
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
            let rest = inode.bytes().get(offset..).unwrap_or(&[]);
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        }))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let power = disk.change_call()?;
        let start = usize::try_from(offset).expect("test files fit in memory");
        let len_now = self.with(&mut disk, |inode| inode.bytes().len());
        let growth = (start + buf.len()).saturating_sub(len_now) as u64;
        let room = disk.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used_bytes()));
        let is_full = growth > room;
        let part = match power {
            Power::On if !is_full => buf,
            _ => &buf[..buf.len() / 2],
        };
        if !is_full || (start + part.len()).saturating_sub(len_now) as u64 <= room {
            self.with(&mut disk, |inode| inode.write(start, part));
        }
        match power {
            Power::Fails => Err(no_power()),
            Power::On if is_full => Err(io::ErrorKind::StorageFull.into()),
            Power::On => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let failed_before = disk.failed_sync;
        let synced = disk.sync_call();
        if synced.is_ok() {
            self.with(&mut disk, Inode::sync);
        } else if disk.failed_sync != failed_before {
            self.with(&mut disk, Inode::fail_sync);
        }
        synced
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.whole_call()?;
        let len = usize::try_from(len).expect("test files fit in memory");
        self.with(&mut disk, |inode| inode.set_len(len));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut disk = lock(&self.disk);
        disk.alive()?;
        Ok(self.with(&mut disk, |inode| inode.bytes().len() as u64))
    }
}
