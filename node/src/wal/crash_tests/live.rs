//! An open log with the state that it makes, what can be done to it, and what may be found after each
//! of that: the judge of all crashes of a log. What must be is known from the entries themselves, by
//! replaying them one by one, never from a recovery.

use std::sync::Arc;

use kv_core::contract::HardState;
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch};
use kv_core::group::{ClusterId, Configuration, ConfigurationAt, Settings};
use kv_core::message::Promise;
use kv_core::state_machine::StateMachine;

use crate::wal::compaction::compact;
use crate::wal::memory::{MemoryStorage, Survives};
use crate::wal::recovery::tests::{ME, found, member, reopen, set};
use crate::wal::test_log::{self, Applied, random_entries};
use crate::wal::{LogReader, Opened, Recovered, Wal, verify};

/// One operation on an open log.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Found(&'static [u64]),
    /// Entries and the committed id that comes with them; what is committed is applied.
    Append(Vec<Entry>, u64),
    Truncate(u64),
    /// A promise of this epoch.
    Promise(u64),
    RecoverByHand,
    Compact,
    /// Takes a snapshot in, as staged files.
    Receive(Snapshot),
    Install,
}

/// A snapshot and the log that it was made of.
#[derive(Debug, Clone)]
pub(in crate::wal) struct Snapshot {
    bytes: Arc<Vec<u8>>,
    log: Vec<Entry>,
}

/// What a log shows of itself, but for what its opening changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shown {
    pub(super) log: Vec<Entry>,
    hard: HardState,
    /// Of the base; a CONFIG entry above its id overrules it.
    configuration: ConfigurationAt,
}

/// What was acknowledged, and what else was asked for.
#[derive(Debug, Clone)]
pub(super) struct Told {
    acknowledged: Shown,
    submitted: Shown,
}

pub(super) struct Live {
    wal: Wal<MemoryStorage>,
    reader: LogReader<MemoryStorage>,
    state: Arc<Applied>,
    staged: Option<Vec<Entry>>,
    told: Told,
}

/// Deletes, refusals, repeated requests and changed limits.
pub(in crate::wal) fn history(entries: u8) -> Vec<Entry> {
    let step = |n: u8| match n % 10 {
        0 => test_log::Step::Settings { history_limit: 1 + u32::from(n / 10), dedup_limit: 3 },
        3 | 6 => test_log::Step::Delete { key: n % 3, request: n.is_multiple_of(2).then_some(n % 4) },
        _ => test_log::Step::Set {
            key: n % 3,
            guess: n.is_multiple_of(7),
            request: n.is_multiple_of(2).then_some(n % 4),
        },
    };
    random_entries(&(0..entries).map(step).collect::<Vec<_>>(), Settings::default())
}

/// Entries of another leader.
pub(super) fn of_epoch(epoch: u64, ids: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    ids.map(|id| Entry::encode(EntryId(id), Epoch(epoch), Some(1_000_000 + id), set(id).body)).collect()
}

pub(super) fn config(id: u64, epoch: u64, voters: &[u64]) -> Entry {
    let configuration = Configuration::new(voters.iter().map(|id| member(*id)).collect());
    Entry::encode(EntryId(id), Epoch(epoch), Some(1_000_000), Body::Control(Control::Config(configuration)))
}

pub(in crate::wal) fn replayed(log: &[Entry]) -> StateMachine {
    let mut machine = StateMachine::new(&kv_core::contract::Base::default(), 0);
    log.iter().for_each(|entry| drop(machine.apply(entry)));
    machine
}

fn without_counters(hard: &HardState) -> HardState {
    HardState { incarnation: 0, committed: EntryId::ZERO, ..hard.clone() }
}

impl Snapshot {
    pub(in crate::wal) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Of a log of these entries, compacted as far as it can be.
    pub(in crate::wal) fn of(log: Vec<Entry>) -> Self {
        let (_, mut live) = Live::after(&[Step::Found(&[1]), Step::Append(log.clone(), log.len() as u64)]);
        live.take(&Step::Compact).expect("memory");
        let applied = live.state.applied();
        let chunks = live.reader.snapshot(&|| applied).expect("initialised");
        let bytes = chunks.map(|chunk| chunk.expect("readable")).collect::<Vec<_>>().concat();
        Self { bytes: Arc::new(bytes), log }
    }
}

impl Live {
    /// A new volume after these steps, all of it durable.
    pub(super) fn after(steps: &[Step]) -> (MemoryStorage, Self) {
        let storage = MemoryStorage::default();
        let mut live = Self::open(&storage);
        for step in steps {
            live.take(step).unwrap_or_else(|e| panic!("{step:?}: {e}"));
        }
        storage.write_back();
        (storage, live)
    }

    fn open(storage: &MemoryStorage) -> Self {
        let Opened { wal, reader, recovered } = reopen(storage).expect("a new volume");
        let Recovered { hard, base, state, .. } = recovered;
        let shown = Shown { log: Vec::new(), hard: without_counters(&hard), configuration: base.configuration };
        let told = Told { acknowledged: shown.clone(), submitted: shown };
        Self { wal, reader, state: Applied::new(state), staged: None, told }
    }

    pub(super) fn told(&self) -> Told {
        self.told.clone()
    }

    /// Nobody will install what was received.
    pub(super) fn withdraw(&self) {
        self.reader.withdraw();
    }

    /// Carries a step out. After an error that leaves the log usable it may be taken again.
    pub(super) fn take(&mut self, step: &Step) -> Result<(), String> {
        self.told.submitted = self.outcome_of(step);
        self.carry_out(step)?;
        self.told.acknowledged = self.told.submitted.clone();
        Ok(())
    }

    fn outcome_of(&self, step: &Step) -> Shown {
        let mut shown = self.told.acknowledged.clone();
        match step {
            Step::Found(voters) => {
                let configuration = Configuration::new(voters.iter().map(|id| member(*id)).collect());
                shown.configuration = ConfigurationAt { id: EntryId(0), configuration };
                shown.hard.cluster_id = ClusterId::new("c").ok();
            }
            Step::Append(entries, _) => shown.log.extend(entries.iter().cloned()),
            Step::Truncate(keep) => shown.log.retain(|entry| entry.id.0 <= *keep),
            Step::Promise(epoch) => shown.hard.promise = Promise { epoch: Epoch(*epoch), candidate: Some(ME) },
            Step::RecoverByHand => {
                shown.hard.cluster_id = ClusterId::new("other").ok();
                let configuration = Configuration::new(vec![member(ME.0)]);
                shown.configuration = ConfigurationAt { id: self.wal.last(), configuration };
            }
            Step::Compact | Step::Receive(_) => {}
            Step::Install => {
                shown.log = self.staged.clone().expect("received before");
                let configuration = Configuration::new(vec![member(1)]);
                shown.configuration = ConfigurationAt { id: EntryId(0), configuration };
            }
        }
        shown
    }

    fn carry_out(&mut self, step: &Step) -> Result<(), String> {
        let Shown { hard, configuration, .. } = self.told.submitted.clone();
        match step {
            Step::Found(voters) => found(&mut self.wal, &hard, voters).map_err(|e| e.to_string()),
            Step::Append(entries, committed) => self.append(entries, EntryId(*committed)),
            Step::Truncate(keep) => self.wal.truncate(EntryId(*keep)).map_err(|e| e.to_string()),
            Step::Promise(_) => self.wal.save_state(hard).map_err(|e| e.to_string()),
            Step::RecoverByHand => self.wal.recover(hard, configuration).map_err(|e| e.to_string()),
            Step::Compact => self.compact(),
            Step::Receive(snapshot) => self.receive(snapshot),
            Step::Install => self.install(hard),
        }
    }

    fn append(&mut self, entries: &[Entry], committed: EntryId) -> Result<(), String> {
        self.wal.append(entries, committed).map_err(|e| e.to_string())?;
        let applied = self.state.applied();
        let log = &self.told.submitted.log;
        let news: Vec<_> = log.iter().filter(|e| e.id > applied && e.id <= committed).cloned().collect();
        self.state.apply(&news);
        Ok(())
    }

    fn compact(&mut self) -> Result<(), String> {
        let compacted = compact(&self.reader, &self.state).map_err(|e| e.to_string())?;
        self.wal.swap_compacted(compacted.expect("a sealed segment")).map_err(|e| e.to_string())?;
        self.state.forget(self.reader.table().horizon().id);
        Ok(())
    }

    fn receive(&mut self, Snapshot { bytes, log }: &Snapshot) -> Result<(), String> {
        let mut receiver = self.reader.receive_snapshot();
        bytes.chunks(100).try_for_each(|chunk| receiver.feed(chunk)).map_err(|e| e.to_string())?;
        self.reader.offer(receiver.finish().map_err(|e| e.to_string())?.staged);
        self.staged = Some(log.clone());
        Ok(())
    }

    fn install(&mut self, hard: HardState) -> Result<(), String> {
        let position = self.staged.as_ref().and_then(|log| log.last()).expect("not empty").position();
        let recovered = self.wal.install(hard, position).map_err(|e| e.to_string())?;
        self.reader = self.wal.reader();
        self.state = Applied::new(recovered.state);
        Ok(())
    }
}

impl Told {
    /// Recovers the disk: it shows what was acknowledged, or what was asked for, or of an append a part;
    /// no damage, and nothing left over. Recovering it again shows the same, and what was appended meanwhile.
    pub(super) fn check(&self, disk: &MemoryStorage, what: &str) {
        let mut opened = reopen(disk).unwrap_or_else(|e| panic!("{what}: {e}"));
        let report = &opened.recovered.report;
        assert!(!report.is_damaged(), "{what}: {report:?}");
        let mut shown = self.shown_by(&opened).unwrap_or_else(|e| panic!("{what}: {e}"));
        let next = of_epoch(1000, opened.wal.last().0 + 1..=opened.wal.last().0 + 1);
        opened.wal.append(&next, EntryId::ZERO).unwrap_or_else(|e| panic!("{what}: {e}"));
        shown.log.extend(next);
        drop(opened);
        let again = reopen(&disk.after_power_loss(Survives::Nothing)).unwrap_or_else(|e| panic!("{what}, again: {e}"));
        let report = &again.recovered.report;
        let is_clean = !report.is_damaged() && report.torn_tail.is_none() && report.orphans.is_empty();
        assert!(is_clean, "{what}, again: {report:?}");
        shown.matches(&again).unwrap_or_else(|e| panic!("{what}, again: {e}"));
    }

    fn shown_by(&self, opened: &Opened<MemoryStorage>) -> Result<Shown, String> {
        let last = opened.wal.last();
        let mut reasons = Vec::new();
        for shown in self.allowed(usize::try_from(last.0).expect("small")) {
            match shown.matches(opened) {
                Ok(()) => return Ok(shown),
                Err(reason) => reasons.push(reason),
            }
        }
        let Self { acknowledged, submitted } = self;
        let (acknowledged, submitted) = (acknowledged.log.len(), submitted.log.len());
        Err(format!("ends at {last}, acknowledged {acknowledged}, submitted {submitted}: {reasons:?}"))
    }

    /// What may be shown by a log of this length.
    fn allowed(&self, len: usize) -> Vec<Shown> {
        let Self { acknowledged, submitted } = self;
        let is_append = submitted.log.starts_with(&acknowledged.log);
        let mut allowed: Vec<_> =
            [acknowledged, submitted].into_iter().filter(|s| s.log.len() == len).cloned().collect();
        if is_append && acknowledged.log.len() < len && len < submitted.log.len() {
            allowed.push(Shown { log: submitted.log[..len].to_vec(), ..submitted.clone() });
        }
        allowed
    }
}

impl Shown {
    /// Whether an open log, its state and its files are these.
    fn matches(&self, opened: &Opened<MemoryStorage>) -> Result<(), String> {
        let Recovered { hard, base, state, configurations, tail, gaps, .. } = &opened.recovered;
        let ensure = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        let (applied, horizon) = (state.applied().0, base.horizon.id.0);
        let from = |id: u64| &self.log[usize::try_from(id).expect("small")..];
        ensure(horizon <= applied && applied <= self.log.len() as u64, "applied")?;
        ensure(tail == from(applied), "the tail")?;
        let held = opened.reader.read_from(EntryId(horizon + 1), usize::MAX).map_err(|e| e.to_string())?;
        ensure(held == from(horizon), "the log above the horizon")?;
        let expected = replayed(&self.log[..usize::try_from(applied).expect("small")]);
        ensure(state.digest() == expected.digest(), "the state")?;
        ensure(without_counters(hard) == self.hard, "the member's own state")?;
        ensure(hard.committed.0 <= self.log.len() as u64, "the committed id")?;
        let newest = configurations.last().unwrap_or(&base.configuration);
        ensure(*newest == self.newest_configuration(), "the configuration")?;
        ensure(gaps.is_empty(), "gaps")?;
        earlier_versions_can_be_read(&expected, &opened.reader)?;
        let files = verify::of_storage(&**opened.reader.storage()).map_err(|e| e.to_string())?;
        let is_clean = !files.is_damaged() && files.torn_end.is_none() && files.orphans.is_empty();
        if is_clean { Ok(()) } else { Err(files.to_string()) }
    }

    fn newest_configuration(&self) -> ConfigurationAt {
        let above = self.log.iter().rev().filter(|entry| entry.id > self.configuration.id);
        let mut configs = above.filter_map(|entry| match &entry.body {
            Body::Control(Control::Config(configuration)) => {
                Some(ConfigurationAt { id: entry.id, configuration: configuration.clone() })
            }
            _ => None,
        });
        configs.next().unwrap_or_else(|| self.configuration.clone())
    }
}

fn earlier_versions_can_be_read(state: &StateMachine, reader: &LogReader<MemoryStorage>) -> Result<(), String> {
    let keyspace = state.keyspace();
    for key in keyspace.page("", None, 10).found.keys {
        let versions = keyspace.versions(key.as_str()).found.expect("listed");
        for earlier in versions.earlier {
            let read = reader.read_entry(earlier.id).map_err(|e| e.to_string())?;
            if read.is_none_or(|entry| entry.id != earlier.id) {
                return Err(format!("version {} of {key:?} is gone", earlier.version));
            }
        }
    }
    Ok(())
}
