//! The few things that the log asks of a disk, as a trait, so that a disk that loses, tears and refuses
//! writes can stand in; and the real one. Names are relative to the data directory, with `/` between
//! parts. Never decides anything. Called by every part of the log.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, StatVfsMountFlags, flock, statvfs};

/// Name of the file whose lock says that the directory is in use.
const LOCK_FILE: &str = "lock";

/// A directory of files, shared by threads. Nothing is durable before the sync that covers it returns.
pub trait Storage: std::fmt::Debug + Send + Sync + 'static {
    type File: StorageFile;

    /// Names of the files directly in `dir`, sorted; `""` is the data directory; empty when `dir` is absent.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Files directly in `dir` with their sizes in bytes, the oldest first; empty when `dir` is absent.
    fn list_by_age(&self, dir: &str) -> io::Result<Vec<(String, u64)>>;
    /// Creates an empty file or empties the one there; creates the directory that it is in,
    /// durably.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Opens a file that exists, for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Atomically replaces `to`; creates its directory as [`Self::create`] does. Open handles keep what they had.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Open handles keep what they had.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Room left for this process; none on a volume that is read-only.
    fn available_bytes(&self) -> io::Result<u64>;
    /// What people call the file: for reports and `/segments`.
    fn path_of(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// One open file. Positional, so that readers and the one writer share it.
pub trait StorageFile: std::fmt::Debug + Send + Sync + 'static {
    /// Reads up to `buf.len()` bytes; 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf`; after an error any part of it may have been written.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes contents and length durable. After an error nothing is known about either.
    fn sync(&self) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Reads exactly `len` bytes at `offset`, or as many as there are.
pub(crate) fn read_up_to<F: StorageFile>(file: &F, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut buf[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buf.truncate(filled);
    Ok(buf)
}

/// A failed sync is never "full", whatever its error: what reached the disk is not known then.
pub(crate) fn sync<F: StorageFile>(file: &F) -> io::Result<()> {
    file.sync().map_err(|e| io::Error::other(format!("fsync: {e}")))
}

/// As [`sync`], for a directory.
pub(crate) fn sync_dir<S: Storage>(storage: &S, dir: &str) -> io::Result<()> {
    storage.sync_dir(dir).map_err(|e| io::Error::other(format!("fsync of the directory: {e}")))
}

/// Whether nothing can be written for now: no room on the disk or in this user's share of it, or the
/// volume is read-only. Only for errors of writes and of names; syncs are wrapped by [`sync`].
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | PermissionDenied)
}

/// Whether an error says nothing of the file: the process or the machine has used up what it takes to open one.
pub(crate) fn is_lack_of_means(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| lacks.contains(&code))
}

/// A real directory. Whoever opened it for writing holds it alone until dropped.
#[derive(Debug)]
pub struct FileStorage {
    dir: PathBuf,
    /// Held for its lock; None: read-only.
    _lock: Option<File>,
}

/// Why a directory cannot be used as a data directory.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("data directory {0} is already in use by another process: each node needs its own (--data-dir, DATA_DIR)")]
    InUse(PathBuf),
    #[error("data directory {dir}: {error}")]
    Io { dir: PathBuf, error: io::Error },
}

impl FileStorage {
    /// Creates the directory when it is absent and takes its lock.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        let io = |error| StorageError::Io { dir: dir.to_owned(), error };
        fs::create_dir_all(dir).map_err(io)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK_FILE)).map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: Some(lock) }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StorageError::InUse(dir.to_owned())),
            Err(e) => Err(io(e.into())),
        }
    }

    /// For looking only: takes no lock, so a node may be running on it.
    pub fn open_read_only(dir: &Path) -> Result<Self, StorageError> {
        fs::read_dir(dir).map_err(|error| StorageError::Io { dir: dir.to_owned(), error })?;
        Ok(Self { dir: dir.to_owned(), _lock: None })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn is_read_only(&self) -> bool {
        self._lock.is_none()
    }

    fn create_parent(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path.parent().expect("a file in the data directory has a parent"))?;
        File::open(&self.dir)?.sync_all()
    }

    fn writable(&self) -> io::Result<()> {
        if self.is_read_only() { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl Storage for FileStorage {
    type File = File;

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.dir.join(dir)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() && entry.file_name() != LOCK_FILE {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn list_by_age(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for name in self.list(dir)? {
            let metadata = fs::metadata(self.dir.join(dir).join(&name))?;
            files.push((metadata.modified()?, name, metadata.len()));
        }
        files.sort();
        Ok(files.into_iter().map(|(_, name, bytes)| (name, bytes)).collect())
    }

    fn create(&self, name: &str) -> io::Result<File> {
        self.writable()?;
        let path = self.dir.join(name);
        let create = || OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        match create() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.create_parent(&path)?;
                create()
            }
            file => file,
        }
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(!self.is_read_only()).open(self.dir.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.writable()?;
        let (from, to) = (self.dir.join(from), self.dir.join(to));
        match fs::rename(&from, &to) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && from.exists() => {
                self.create_parent(&to)?;
                fs::rename(from, to)
            }
            renamed => renamed,
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.writable()?;
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.dir.join(dir))?.sync_all()
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.dir)?;
        if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Ok(0);
        }
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn path_of(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

impl StorageFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}
