//! Compaction against replay: whatever is compacted, and whatever is applied meanwhile, recovery from
//! the result shows the state that replaying every line ever written shows.

use std::sync::Mutex;

use kv_core::command::{Entity, Key, Precondition, RequestId, Value};
use kv_core::entry::{Body, Control, Entry, Epoch};
use kv_core::group::{ClusterId, Settings};
use kv_core::sessions::SessionRecord;
use kv_core::state_machine::StateMachine;
use proptest::prelude::*;

use super::*;
use crate::wal::Options;
use crate::wal::manifest::SealedFile;
use crate::wal::segment::{Extent, SegmentWriter};
use crate::wal::storage::FileStorage;
use crate::wal::table::Shared;

const SEED: u64 = 7;

/// A log on disk, its state, and all entries it ever had.
struct Log {
    _dir: tempfile::TempDir,
    reader: LogReader<FileStorage>,
    state: Arc<Applied>,
    all: Vec<Entry>,
}

/// The state, and what is applied to it while compaction runs.
struct Applied {
    machine: Mutex<StateMachine>,
    /// Applied when compaction asks to settle.
    meanwhile: Mutex<Vec<Entry>>,
    limit: Mutex<EntryId>,
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

fn key(name: &str) -> Key {
    Key::new(name).expect("test key")
}

fn set(name: &str, value: &str, version: u64) -> Body {
    let value = Value::from_json(value.as_bytes(), 1 << 20).expect("test value");
    Body::Set { key: key(name), value, version, precondition: Precondition::default(), request: None }
}

fn delete(name: &str) -> Body {
    Body::Delete { key: key(name), precondition: Precondition::default(), request: None }
}

/// Numbers entries from 1 on.
fn entries(bodies: Vec<Body>) -> Vec<Entry> {
    let numbered = bodies.into_iter().zip(1_u64..);
    numbered.map(|(body, id)| Entry::encode(EntryId(id), Epoch(1), Some(id * 1000), body)).collect()
}

fn plain(bodies: Vec<Body>) -> Vec<Entry> {
    let numbered = bodies.into_iter().zip(1_u64..);
    numbered.map(|(body, id)| Entry::encode(EntryId(id), Epoch(1), None, body)).collect()
}

impl Log {
    /// Segments of these lengths, the rest in the active one; everything applied but the last
    /// `meanwhile` entries.
    fn new(all: Vec<Entry>, segment_lines: &[usize], settings: Settings, meanwhile: usize) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let storage = Arc::new(FileStorage::open(dir.path()).expect("storage"));
        let base = Base { settings, ..Base::default() };
        let mut machine = StateMachine::new(&base, SEED);
        let applied = all.len() - meanwhile;
        all[..applied].iter().for_each(|entry| drop(machine.apply(entry)));
        let mut rest = &all[..];
        let mut log = Vec::new();
        for &lines in segment_lines.iter().chain([&usize::MAX]) {
            let (segment, after) = rest.split_at(lines.min(rest.len()));
            rest = after;
            log.push(write(&storage, FileKind::Log, log.len() as u64 + 1, segment));
        }
        let cluster_id = ClusterId::new("c").ok();
        let table = FileTable { base: Vec::new(), log, meta: base, cluster_id, gaps: Vec::new(), lineage: 0 };
        let reader = LogReader(Arc::new(Shared::new(storage, table, 100, &Options::default())));
        let state = Arc::new(Applied {
            machine: Mutex::new(machine),
            meanwhile: Mutex::new(all[applied..].to_vec()),
            limit: Mutex::new(EntryId(u64::MAX)),
        });
        Self { _dir: dir, reader, state, all }
    }

    fn compact(&self) -> Result<Option<CompactedBase>, CompactionError> {
        compact(&self.reader, &self.state)
    }

    /// As the committer does, without a manifest.
    fn swap(&mut self, compacted: &CompactedBase) {
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
        self.state.machine.lock().expect("no panic").forget_refused_up_to(horizon);
    }

    fn recovered(&self, up_to: EntryId) -> StateMachine {
        recover(&self.reader.table(), up_to)
    }

    /// Every line there ever was, replayed up to `up_to`.
    fn replayed(&self, settings: Settings, up_to: EntryId) -> StateMachine {
        let mut machine = StateMachine::new(&Base { settings, ..Base::default() }, SEED);
        self.all.iter().take_while(|entry| entry.id <= up_to).for_each(|entry| drop(machine.apply(entry)));
        machine
    }

    fn text_of(&self, kind: FileKind) -> Vec<String> {
        let table = self.reader.table();
        let files = table.base.iter().chain(&table.log).filter(|file| file.kind == kind);
        let lines = files.flat_map(|file| file.lines(0));
        lines.map(|line| String::from_utf8(line.expect("readable").1.to_vec()).expect("UTF-8")).collect()
    }

    fn staged_files(&self) -> Vec<String> {
        let names = self.reader.storage().list("").expect("readable");
        names.into_iter().filter(|name| name.contains(".gen") && !name.ends_with(".gen1")).collect()
    }
}

fn write(storage: &Arc<FileStorage>, kind: FileKind, number: u64, lines: &[Entry]) -> Arc<LogFile<std::fs::File>> {
    let mut writer = SegmentWriter::create(&**storage, kind, number, 1).expect("created");
    lines.iter().for_each(|entry| writer.push(entry.id, &entry.line).expect("written"));
    open(storage, &writer.finish().expect("synced"))
}

fn open(storage: &Arc<FileStorage>, sealed: &SealedFile) -> Arc<LogFile<std::fs::File>> {
    let file = storage.open(&sealed.staged_name().expect("staged")).expect("there");
    let extent = Extent { bytes: sealed.bytes, lines: sealed.lines, last: sealed.last, ..Extent::default() };
    LogFile::new(Arc::new(file), sealed.kind, sealed.number, sealed.first, extent)
}

fn recover<F: crate::wal::StorageFile>(table: &FileTable<F>, up_to: EntryId) -> StateMachine {
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

fn settings(history_limit: u32, dedup_limit: u64) -> Settings {
    Settings { history_limit, dedup_limit, dedup_expiry_seconds: 10 }
}

fn locators(machine: &StateMachine, name: &str) -> Vec<(u64, u64)> {
    let found = machine.keyspace().versions(name).found.expect("key exists");
    found.earlier.iter().map(|l| (l.version, l.id.0)).chain([(found.current.version, found.current.id.0)]).collect()
}

#[test]
fn the_six_entry_example_compacts_to_the_lines_of_ids_5_and_6() {
    let all = plain(vec![
        set("user1", "\"initial-value\"", 1),
        set("user2", "\"hello\"", 1),
        set("user1", "\"updated-value\"", 2),
        delete("user2"),
        set("user3", "\"new-entry\"", 1),
        set("user1", "\"final-value\"", 3),
    ]);
    let original: Vec<_> = all.iter().map(|e| String::from_utf8(e.line.to_vec()).expect("UTF-8")).collect();
    let mut log = Log::new(all, &[6], Settings::default(), 0);
    let compacted = log.compact().expect("readable").expect("one sealed segment");
    assert_eq!(compacted.outcome, CompactionOutcome { segments_compacted: 1, entries_removed: 4 });
    log.swap(&compacted);
    assert_eq!(log.text_of(FileKind::Live), [original[4].as_str(), &original[5]]);
    assert_eq!(log.text_of(FileKind::History), [original[0].as_str(), &original[2]]);
    assert_eq!(log.text_of(FileKind::Log), [""; 0]);
    let recovered = log.recovered(EntryId(6));
    assert_eq!(locators(&recovered, "user1"), [(1, 1), (2, 3), (3, 6)]);
    assert_eq!(recovered.digest(), log.replayed(Settings::default(), EntryId(6)).digest());
}

#[test]
fn with_nothing_sealed_or_below_the_limit_there_is_nothing_to_do() {
    let all = plain(vec![set("a", "1", 1), set("a", "2", 2), set("a", "3", 3)]);
    let log = Log::new(all.clone(), &[], Settings::default(), 0);
    assert!(log.compact().expect("readable").is_none());
    let log = Log::new(all.clone(), &[2], Settings::default(), 0);
    *log.state.limit.lock().expect("no panic") = EntryId(1);
    assert!(log.compact().expect("readable").is_none());
    let log = Log::new(all, &[2], Settings::default(), 2);
    assert!(log.compact().expect("readable").is_none(), "only applied entries may be compacted");
}

#[test]
fn a_key_deleted_and_created_again_above_the_horizon_keeps_its_value_at_the_horizon() {
    let bodies = vec![
        set("a", "1", 1),
        set("a", "2", 2),
        set("b", "1", 1),
        delete("a"),
        set("a", "3", 1),
        set("b", "2", 2),
        delete("b"),
    ];
    for meanwhile in 0..=4 {
        let mut log = Log::new(entries(bodies.clone()), &[3], Settings::default(), meanwhile);
        let compacted = log.compact().expect("readable").expect("one sealed segment");
        assert_eq!(compacted.applied, EntryId(7));
        log.swap(&compacted);
        assert_eq!(log.text_of(FileKind::Live).len(), 2, "a and b had a value at the horizon");
        let recovered = log.recovered(EntryId(7));
        assert_eq!(recovered.digest(), log.replayed(Settings::default(), EntryId(7)).digest());
        assert!(recovered.refused().is_empty());
    }
}

#[test]
fn the_history_limit_of_the_state_decides_what_the_history_file_holds() {
    for (limit, expected) in [(0, 0), (1, 1), (2, 2), (9, 3)] {
        let all = entries((1..=4).map(|version| set("a", "1", version)).collect());
        let mut log = Log::new(all, &[4], settings(limit, 100), 0);
        let compacted = log.compact().expect("readable").expect("sealed");
        log.swap(&compacted);
        assert_eq!(log.text_of(FileKind::History).len(), expected);
        assert_eq!(log.recovered(EntryId(4)).digest(), log.replayed(settings(limit, 100), EntryId(4)).digest());
    }
}

#[test]
fn settings_in_the_base_are_those_at_the_horizon() {
    let bodies = vec![
        Body::Control(Control::Settings(settings(1, 5))),
        set("a", "1", 1),
        set("a", "2", 2),
        Body::Control(Control::Settings(settings(0, 5))),
    ];
    let mut log = Log::new(entries(bodies), &[3], Settings::default(), 0);
    let compacted = log.compact().expect("readable").expect("sealed");
    assert_eq!(compacted.base.settings, settings(1, 5));
    log.swap(&compacted);
    assert_eq!(log.recovered(EntryId(4)).digest(), log.replayed(Settings::default(), EntryId(4)).digest());
}

#[test]
fn a_refused_set_is_not_taken_for_its_keys_latest() {
    let Body::Set { key, value, precondition: _, .. } = set("a", "9", 7) else { unreachable!() };
    let precondition = Precondition { version: Some(6), entity: Entity::Any };
    let refused = Body::Set { key, value, version: 7, precondition, request: None };
    let bodies = vec![set("a", "1", 1), refused.clone(), refused, set("a", "2", 2)];
    let mut log = Log::new(entries(bodies), &[2], Settings::default(), 0);
    let compacted = log.compact().expect("readable").expect("sealed");
    assert_eq!(compacted.base.refused, [EntryId(3)]);
    log.swap(&compacted);
    assert_eq!(log.recovered(EntryId(4)).digest(), log.replayed(Settings::default(), EntryId(4)).digest());
}

#[test]
fn a_damaged_line_ends_compaction_and_leaves_nothing_behind() {
    let all = entries(vec![set("a", "1", 1), set("a", "2", 2), set("b", "1", 1), set("b", "2", 2)]);
    let log = Log::new(all, &[3], Settings::default(), 0);
    let table = log.reader.table();
    let offset = table.log[0].bytes() - 5;
    table.log[0].file.set_len(offset).and_then(|()| table.log[0].file.set_len(offset + 5)).expect("damaged");
    assert!(matches!(log.compact(), Err(CompactionError::Read(_))));
    assert_eq!(log.staged_files(), [""; 0]);
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Set { key: u8, guess: bool, request: Option<u8> },
    Delete { key: u8, request: Option<u8> },
    Settings { history_limit: u32, dedup_limit: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let request = proptest::option::weighted(0.4, 0..6_u8);
    prop_oneof![
        8 => (0..5_u8, proptest::bool::weighted(0.15), request.clone())
            .prop_map(|(key, guess, request)| Step::Set { key, guess, request }),
        3 => (0..5_u8, request).prop_map(|(key, request)| Step::Delete { key, request }),
        1 => (0..4_u32, 0..5_u64)
            .prop_map(|(history_limit, dedup_limit)| Step::Settings { history_limit, dedup_limit }),
    ]
}

/// Makes entries of the steps: most SETs with the version that fits, some with a wrong one.
fn random_entries(steps: &[Step], initial: Settings) -> Vec<Entry> {
    let mut machine = StateMachine::new(&Base { settings: initial, ..Base::default() }, SEED);
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn recovery_after_compactions_equals_full_replay(
        steps in proptest::collection::vec(step(), 1..60),
        segments in proptest::collection::vec(1..15_usize, 0..8),
        meanwhile in 0..30_usize,
        first_limit in 0..60_u64,
    ) {
        let initial = settings(2, 3);
        let all = random_entries(&steps, initial);
        let last = all.last().expect("at least one step").id;
        let meanwhile = meanwhile.min(all.len());
        let mut log = Log::new(all, &segments, initial, meanwhile);
        for limit in [first_limit, u64::MAX] {
            *log.state.limit.lock().expect("no panic") = EntryId(limit);
            let Some(compacted) = log.compact().expect("readable") else { continue };
            log.swap(&compacted);
            for id in compacted.applied.0..=last.0 {
                let (recovered, replayed) = (log.recovered(EntryId(id)), log.replayed(initial, EntryId(id)));
                prop_assert_eq!(recovered.digest(), replayed.digest(), "at {} of {}", id, last);
                let horizon = compacted.base.horizon.id;
                let refused: Vec<_> = replayed.refused().iter().filter(|&&id| id > horizon).copied().collect();
                prop_assert_eq!(recovered.refused(), &refused[..]);
            }
        }
    }
}
