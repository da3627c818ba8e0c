//! What the one writer shares with everybody else: the table of open files, the counter of
//! generations, the staged snapshot and the limits of space. Readers take an immutable copy of the
//! table; the writer puts a new one in its place.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use kv_core::contract::Base;
use kv_core::entry::{EntryId, LogPosition};
use kv_core::group::ClusterId;
use tokio::sync::Notify;

use super::Options;
use super::manifest::{FileKind, Gap, Manifest, SealedFile};
use super::segment::LogFile;
use super::storage::Storage;

/// More are found by the next scrub.
const SUSPECTS_MAX: usize = 1024;

/// The open files at one time. Holding it keeps all of them readable.
#[derive(Debug)]
pub struct FileTable<F> {
    /// History, live and sessions files: the state at the horizon.
    pub base: Vec<Arc<LogFile<F>>>,
    /// Segments above the horizon, ids rising; the last one is active.
    pub log: Vec<Arc<LogFile<F>>>,
    /// What `base` stands for, as the manifest has it.
    pub meta: Base,
    /// None: uninitialised.
    pub cluster_id: Option<ClusterId>,
    /// Ids that the log lacks, rising.
    pub gaps: Vec<Gap>,
    /// The manifest's: what was made from one lineage is refused in another.
    pub lineage: u64,
}

impl<F> FileTable<F> {
    /// Without files.
    pub(crate) fn empty(manifest: &Manifest) -> Self {
        Self {
            base: Vec::new(),
            log: Vec::new(),
            meta: manifest.base.clone(),
            cluster_id: manifest.hard.cluster_id.clone(),
            gaps: manifest.gaps.clone(),
            lineage: manifest.lineage,
        }
    }

    /// In the manifest's order; the active segment last.
    pub(crate) fn add(&mut self, file: Arc<LogFile<F>>) {
        match file.kind {
            FileKind::Log => self.log.push(file),
            FileKind::History | FileKind::Live | FileKind::Sessions => self.base.push(file),
        }
    }

    pub fn horizon(&self) -> LogPosition {
        self.meta.horizon
    }
}

/// A received snapshot, whole, verified and durable under staged names, that waits for its `Install`.
#[derive(Debug, Clone)]
pub struct StagedSnapshot {
    /// The id and epoch that its state is true at: its last entry.
    pub position: LogPosition,
    pub cluster_id: ClusterId,
    pub base: Base,
    /// All sealed, all staged under one generation; log segments cover (horizon, position] without a gap.
    pub files: Vec<SealedFile>,
    /// Of the log that it was made from.
    pub gaps: Vec<Gap>,
    pub generation: u64,
}

/// Bounds of space that can change while the node runs; 0: none.
#[derive(Debug, Default)]
pub(crate) struct SpaceLimits {
    storage_limit_bytes: AtomicU64,
}

impl SpaceLimits {
    pub(crate) fn storage_limit_bytes(&self) -> Option<u64> {
        Some(self.storage_limit_bytes.load(Ordering::Relaxed)).filter(|&limit| limit > 0)
    }

    pub(crate) fn set_storage_limit_bytes(&self, limit: Option<u64>) {
        self.storage_limit_bytes.store(limit.unwrap_or(0), Ordering::Relaxed);
    }
}

/// Files that could not be read as they should, until somebody has looked at them.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    names: Mutex<BTreeSet<String>>,
    pub(crate) added: Notify,
}

impl Suspects {
    pub(crate) fn add(&self, name: &str) {
        let mut names = self.names.lock().expect("no code panics while it holds this lock");
        if names.len() < SUSPECTS_MAX {
            names.insert(name.to_owned());
            self.added.notify_one();
        }
    }

    pub(crate) fn take(&self) -> Option<String> {
        self.names.lock().expect("no code panics while it holds this lock").pop_first()
    }
}

#[derive(Debug)]
pub(crate) struct Shared<S: Storage> {
    pub(crate) storage: Arc<S>,
    pub(crate) table: ArcSwap<FileTable<S::File>>,
    pub(crate) next_generation: AtomicU64,
    pub(crate) segment_bytes_max: u64,
    pub(crate) segments_max: usize,
    pub(crate) limits: SpaceLimits,
    /// The highest id that is durable here.
    pub(crate) durable: AtomicU64,
    pub(crate) suspects: Suspects,
    /// There is too little room to write.
    is_full: AtomicBool,
    /// What this start has put into `aside/`: it stays while the process lives.
    put_aside: Mutex<BTreeSet<String>>,
    staged: Mutex<Option<StagedSnapshot>>,
}

impl<S: Storage> Shared<S> {
    pub(crate) fn new(storage: Arc<S>, table: FileTable<S::File>, generation: u64, options: &Options) -> Self {
        let limits = SpaceLimits::default();
        limits.set_storage_limit_bytes(options.storage_limit_bytes);
        Self {
            storage,
            table: ArcSwap::from_pointee(table),
            next_generation: AtomicU64::new(generation + 1),
            segment_bytes_max: options.segment_bytes_max,
            segments_max: options.segments_max,
            limits,
            durable: AtomicU64::new(0),
            suspects: Suspects::default(),
            is_full: AtomicBool::new(false),
            put_aside: Mutex::default(),
            staged: Mutex::new(None),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    pub(crate) fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    pub(crate) fn put_aside(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.put_aside.lock().expect("no code panics while it holds this lock")
    }

    pub(crate) fn set_durable(&self, durable: EntryId) {
        self.durable.store(durable.0, Ordering::Release);
    }

    /// What readers see from now on.
    pub(crate) fn publish(&self, table: FileTable<S::File>, durable: EntryId) {
        self.table.store(Arc::new(table));
        self.durable.store(durable.0, Ordering::Release);
    }

    pub(crate) fn next_generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn durable(&self) -> EntryId {
        EntryId(self.durable.load(Ordering::Acquire))
    }

    pub(crate) fn staged(&self) -> MutexGuard<'_, Option<StagedSnapshot>> {
        self.staged.lock().expect("no code panics while it holds this lock")
    }
}
