//! A log on disk without the code that opens and writes one: segments, a state that is applied to
//! while something reads them, random histories. For the tests of compaction and snapshots.

use std::sync::{Arc, Mutex};

use kv_core::command::{Key, Precondition, RequestId, Value};
use kv_core::contract::Base;
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch};
use kv_core::group::{ClusterId, FEATURE_LEVEL, Settings};
use kv_core::keyspace::Keyspace;
use kv_core::sessions::{SessionRecord, Sessions};
use kv_core::state_machine::StateMachine;
use proptest::prelude::*;

use super::compaction::{AppliedState, CompactionError, Settled, compact};
use super::manifest::{FileKind, SealedFile};
use super::reader::LogReader;
use super::segment::{Extent, LogFile, SegmentWriter};
use super::storage::{FileStorage, Storage};
use super::table::{FileTable, Shared, StagedSnapshot};
use super::{CompactedBase, Options};

pub(super) const SEED: u64 = 7;

/// A log on disk, its state, and all entries it ever had.
pub(super) struct Log {
    _dir: tempfile::TempDir,
    pub(super) reader: LogReader<FileStorage>,
    pub(super) state: Arc<Applied>,
    pub(super) all: Vec<Entry>,
}

/// The state, and what is applied to it while compaction runs.
pub(super) struct Applied {
    pub(super) machine: Mutex<StateMachine>,
    /// Applied when compaction asks to settle.
    pub(super) meanwhile: Mutex<Vec<Entry>>,
    pub(super) limit: Mutex<EntryId>,
}

impl Applied {
    /// Nothing is applied unless a test says so.
    pub(super) fn new(machine: StateMachine) -> Arc<Self> {
        let limit = Mutex::new(EntryId(u64::MAX));
        Arc::new(Self { machine: Mutex::new(machine), meanwhile: Mutex::default(), limit })
    }

    pub(super) fn apply(&self, entries: &[Entry]) {
        let mut machine = self.machine.lock().expect("no panic");
        entries.iter().for_each(|entry| drop(machine.apply(entry)));
    }

    pub(super) fn forget(&self, horizon: EntryId) {
        self.machine.lock().expect("no panic").forget_refused_up_to(horizon);
    }

    pub(super) fn applied(&self) -> EntryId {
        self.machine.lock().expect("no panic").applied()
    }

    /// Nothing more is applied.
    pub(super) fn hold(&self) {
        self.meanwhile.lock().expect("no panic").clear();
    }
}

impl AppliedState for Arc<Applied> {
    fn keyspace(&self) -> Arc<Keyspace> {
        Arc::clone(self.machine.lock().expect("no panic").keyspace())
    }

    fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(self.machine.lock().expect("no panic").sessions())
    }

    fn limit(&self) -> EntryId {
        *self.limit.lock().expect("no panic")
    }

    fn settled(&self) -> Result<Settled, String> {
        let mut machine = self.machine.lock().expect("no panic");
        for entry in self.meanwhile.lock().expect("no panic").drain(..) {
            machine.apply(&entry);
        }
        Ok(Settled { applied: machine.applied(), refused: machine.refused().to_vec() })
    }
}

pub(super) fn key(name: &str) -> Key {
    Key::new(name).expect("test key")
}

pub(super) fn set(name: &str, value: &str, version: u64) -> Body {
    let value = Value::from_json(value.as_bytes(), 1 << 20).expect("test value");
    Body::Set { key: key(name), value, version, precondition: Precondition::default(), request: None }
}

pub(super) fn delete(name: &str) -> Body {
    Body::Delete { key: key(name), precondition: Precondition::default(), request: None }
}

/// Numbers entries from 1 on.
pub(super) fn entries(bodies: Vec<Body>) -> Vec<Entry> {
    let numbered = bodies.into_iter().zip(1_u64..);
    numbered.map(|(body, id)| Entry::encode(EntryId(id), Epoch(1), Some(id * 1000), body)).collect()
}

pub(super) fn plain(bodies: Vec<Body>) -> Vec<Entry> {
    let numbered = bodies.into_iter().zip(1_u64..);
    numbered.map(|(body, id)| Entry::encode(EntryId(id), Epoch(1), None, body)).collect()
}

impl Log {
    /// Segments of these lengths, the rest in the active one; everything applied but the last
    /// `meanwhile` entries.
    pub(super) fn new(all: Vec<Entry>, segment_lines: &[usize], settings: Settings, meanwhile: usize) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let storage = Arc::new(FileStorage::open(dir.path()).expect("storage"));
        let base = empty_base(settings);
        let mut machine = StateMachine::new(&base, SEED);
        let applied = all.len() - meanwhile;
        all[..applied].iter().for_each(|entry| drop(machine.apply(entry)));
        let mut rest = &all[..];
        let mut log = Vec::new();
        for &lines in segment_lines.iter().chain([&usize::MAX]) {
            let (segment, after) = rest.split_at(lines.min(rest.len()));
            rest = after;
            let first = EntryId((all.len() - rest.len() - segment.len()) as u64 + 1);
            log.push(write(&storage, log.len() as u64 + 1, first, segment));
        }
        let cluster_id = ClusterId::new("c").ok();
        let table = FileTable { base: Vec::new(), log, meta: base, cluster_id, gaps: Vec::new(), lineage: 0 };
        let reader = LogReader(Arc::new(Shared::new(storage, table, 100, &Options::default())));
        let state = Applied::new(machine);
        state.meanwhile.lock().expect("no panic").extend_from_slice(&all[applied..]);
        Self { _dir: dir, reader, state, all }
    }

    pub(super) fn compact(&self) -> Result<Option<CompactedBase>, CompactionError> {
        compact(&self.reader, &self.state)
    }

    /// As the committer does, without a manifest.
    pub(super) fn swap(&mut self, compacted: &CompactedBase) {
        let horizon = compacted.base.horizon.id;
        let old = self.reader.table();
        let storage = self.reader.storage();
        let base = compacted.files.iter().map(|file| open(storage, file)).collect();
        let log = old.log.iter().filter(|file| file.first > horizon).cloned().collect();
        let table = FileTable {
            base,
            log,
            meta: compacted.base.clone(),
            cluster_id: old.cluster_id.clone(),
            gaps: Vec::new(),
            lineage: old.lineage,
        };
        self.reader =
            LogReader(Arc::new(Shared::new(Arc::clone(storage), table, compacted.generation, &Options::default())));
        self.state.forget(horizon);
    }

    pub(super) fn recovered(&self, up_to: EntryId) -> StateMachine {
        recover(&self.reader.table(), up_to)
    }

    /// Every line there ever was, replayed up to `up_to`.
    pub(super) fn replayed(&self, settings: Settings, up_to: EntryId) -> StateMachine {
        let mut machine = StateMachine::new(&empty_base(settings), SEED);
        self.all.iter().take_while(|entry| entry.id <= up_to).for_each(|entry| drop(machine.apply(entry)));
        machine
    }

    pub(super) fn text_of(&self, kind: FileKind) -> Vec<String> {
        let table = self.reader.table();
        let files = table.base.iter().chain(&table.log).filter(|file| file.kind == kind);
        let lines = files.flat_map(|file| file.lines(0));
        lines.map(|line| String::from_utf8(line.expect("readable").1.to_vec()).expect("UTF-8")).collect()
    }

    pub(super) fn staged_files(&self) -> Vec<String> {
        let names = self.reader.storage().list("").expect("readable");
        names.into_iter().filter(|name| name.contains(".gen") && !name.ends_with(".gen1")).collect()
    }
}

type OpenFile = Arc<LogFile<std::fs::File>>;

fn write(storage: &Arc<FileStorage>, number: u64, first: EntryId, lines: &[Entry]) -> OpenFile {
    let mut writer = SegmentWriter::create(&**storage, FileKind::Log, number, 1).expect("created");
    lines.iter().for_each(|entry| writer.push(entry.id, &entry.line).expect("written"));
    let sealed = writer.finish().expect("synced");
    open(storage, &SealedFile { first, ..sealed })
}

fn open(storage: &Arc<FileStorage>, sealed: &SealedFile) -> OpenFile {
    let file = storage.open(&sealed.staged_name().expect("staged")).expect("there");
    let extent = Extent { bytes: sealed.bytes, lines: sealed.lines, last: sealed.last, ..Extent::default() };
    LogFile::new(Arc::new(file), sealed.kind, sealed.number, sealed.first, extent)
}

/// The state that a received snapshot recovers to.
pub(super) fn recover_staged(storage: &Arc<FileStorage>, staged: &StagedSnapshot) -> StateMachine {
    let files = staged.files.iter().map(|file| open(storage, file));
    let (log, base) = files.partition(|file| file.kind == FileKind::Log);
    let table = FileTable { base, log, meta: staged.base.clone(), cluster_id: None, gaps: Vec::new(), lineage: 0 };
    recover(&table, staged.position.id)
}

impl LogFile<std::fs::File> {
    /// Overwrites what stands behind `offset` with zeros.
    pub(super) fn damage(&self, offset: u64) {
        let bytes = self.bytes();
        self.file.set_len(offset).and_then(|()| self.file.set_len(bytes)).expect("damaged");
    }
}

pub(super) fn recover<F: super::StorageFile>(table: &FileTable<F>, up_to: EntryId) -> StateMachine {
    let mut machine = StateMachine::new(&table.meta, SEED);
    let lines = |kind| {
        let files = table.base.iter().chain(&table.log).filter(move |file| file.kind == kind);
        files.flat_map(|file| file.lines(0)).map(|line| line.expect("readable").1)
    };
    let decoded = |kind| lines(kind).map(|line| Entry::decode(line).expect("valid"));
    decoded(FileKind::History).for_each(|entry| machine.restore_history(&entry));
    decoded(FileKind::Live).for_each(|entry| machine.restore_live(&entry));
    for line in lines(FileKind::Sessions) {
        machine.restore_session(SessionRecord::decode(&line).expect("valid"));
    }
    for entry in decoded(FileKind::Log).filter(|entry| entry.id <= up_to) {
        machine.apply(&entry);
    }
    machine
}

pub(super) fn settings(history_limit: u32, dedup_limit: u64) -> Settings {
    Settings { history_limit, dedup_limit, dedup_expiry_seconds: 10 }
}

/// One step of a random history.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Set { key: u8, guess: bool, request: Option<u8> },
    Delete { key: u8, request: Option<u8> },
    Settings { history_limit: u32, dedup_limit: u64 },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let request = proptest::option::weighted(0.4, 0..6_u8);
    prop_oneof![
        8 => (0..5_u8, proptest::bool::weighted(0.15), request.clone())
            .prop_map(|(key, guess, request)| Step::Set { key, guess, request }),
        3 => (0..5_u8, request).prop_map(|(key, request)| Step::Delete { key, request }),
        1 => (0..4_u32, 0..5_u64)
            .prop_map(|(history_limit, dedup_limit)| Step::Settings { history_limit, dedup_limit }),
    ]
}

/// Of a group that this release founds.
fn empty_base(settings: Settings) -> Base {
    Base { settings, feature_level: FEATURE_LEVEL, ..Base::default() }
}

/// Makes entries of the steps: most SETs with the version that fits, some with a wrong one.
pub(super) fn random_entries(steps: &[Step], initial: Settings) -> Vec<Entry> {
    let mut machine = StateMachine::new(&empty_base(initial), SEED);
    let mut all = Vec::new();
    for (step, id) in steps.iter().zip(1_u64..) {
        let request = |n: &Option<u8>| n.and_then(|n| RequestId::new("client", &format!("r{n}")).ok());
        let body = match step {
            Step::Set { key: n, guess, request: r } => {
                let name = format!("k{n}");
                let current = machine.keyspace().head(&name).map_or(0, |(_, version)| version);
                let version = if *guess { 3 } else { current + 1 };
                let Body::Set { key, value, precondition, .. } = set(&name, &id.to_string(), version) else {
                    unreachable!()
                };
                Body::Set { key, value, version, precondition, request: request(r) }
            }
            Step::Delete { key: n, request: r } => {
                Body::Delete { key: key(&format!("k{n}")), precondition: Precondition::default(), request: request(r) }
            }
            Step::Settings { history_limit, dedup_limit } => {
                Body::Control(Control::Settings(settings(*history_limit, *dedup_limit)))
            }
        };
        let entry = Entry::encode(EntryId(id), Epoch(1 + id / 10), Some(id * 1500), body);
        machine.apply(&entry);
        all.push(entry);
    }
    all
}
