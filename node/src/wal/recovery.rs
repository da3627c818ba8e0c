//! Opening a data directory: what is there, what of it can be believed, what state it makes, and what
//! must be put right before anything is written. `format.md` has the argument for every crash. Called
//! at start and after the install of a snapshot.

mod blocks;
mod mend;
mod scan;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use kv_core::contract::{Base, HardState};
use kv_core::entry::{Entry, EntryId, Epoch, LogPosition};
use kv_core::group::{Configuration, ConfigurationAt, MemberId, NodeName, Settings};
use kv_core::message::Promise;
use kv_core::mutant::{self, Mutant};
use kv_core::state_machine::StateMachine;

use super::hint::{HINT_FILE, Hint};
use super::manifest::{FileKind, Gap, Manifest};
use super::reader::LogReader;
use super::segment::LogFile;
use super::storage::{Storage, StorageFile, is_lack_of_means, sync_dir};
use super::table::{FileTable, Shared};
use super::volume::{ASIDE_DIR, QUARANTINE_DIR, drop_oldest, foreign_file, highest_generation, settle_at_start};
use super::{OnDamage, Options, Position, Wal, WalError};
use blocks::Source;
use mend::Mended;
use scan::{Breach, Positions, Scan};

/// Damaged places described one by one; more are only counted.
pub const DAMAGE_MAX: usize = 1000;

/// What an empty directory is made into.
#[derive(Debug, Clone)]
pub struct NewVolume {
    pub name: NodeName,
    /// Drawn at random.
    pub member_id: MemberId,
    pub settings: Settings,
}

/// An open log.
#[derive(Debug)]
pub struct Opened<S: Storage> {
    pub wal: Wal<S>,
    pub reader: LogReader<S>,
    pub recovered: Recovered,
}

/// What was found, ready for a replica.
#[derive(Debug)]
pub struct Recovered {
    /// Its incarnation is raised, and a quarantine set when damage calls for one; both durable.
    pub hard: HardState,
    pub base: Base,
    pub state: StateMachine,
    pub epoch_runs: Vec<LogPosition>,
    pub configurations: Vec<ConfigurationAt>,
    /// Entries above the applied id.
    pub tail: Vec<Entry>,
    /// Ids that the log lacks, rising, declared by a LOST entry or not.
    pub gaps: Vec<Gap>,
    pub report: RecoveryReport,
}

/// What was kept of a damaged log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Salvage {
    #[default]
    Undamaged,
    /// A member of a group: the intact prefix; the rest went aside, and a leader refills it.
    Prefix,
    /// A group of one: all that is valid; what is missing nobody else has, except perhaps a learner.
    Everything,
}

/// Ids from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    pub first: EntryId,
    pub last: EntryId,
}

/// One place that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// A file's name in the data directory.
    pub file: String,
    /// Of the bad line; None: the file as a whole.
    pub offset: Option<u64>,
    pub reason: String,
}

/// What was cut off the end of the active segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    pub file: String,
    pub offset: u64,
    pub bytes: u64,
    /// Where the bytes were saved.
    pub saved_as: String,
}

/// How recovery went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub lines: u64,
    pub bytes: u64,
    pub salvage: Salvage,
    /// The first [`DAMAGE_MAX`]; `damage_total` counts all.
    pub damage: Vec<Damage>,
    pub damage_total: u64,
    /// Ids that the log should hold and does not, rising; of a group of one also those found missing
    /// before, as long as no LOST entry declares them.
    pub missing: Vec<IdRange>,
    /// The last line that was found, when it is intact. May be above what was kept.
    pub last_line: Option<LogPosition>,
    pub torn_tail: Option<TornTail>,
    /// Files that the manifest did not list, and where they are now.
    pub orphans: Vec<String>,
}

impl Recovered {
    /// Lines that a group of one lacks above its horizon, so that a learner may give them back.
    pub fn undeclared(&self) -> Vec<IdRange> {
        let horizon = self.base.horizon.id;
        let open = self.gaps.iter().filter(|gap| !gap.is_declared && gap.first > horizon);
        open.map(|gap| IdRange { first: gap.first, last: gap.last }).collect()
    }

    /// Lines of the base, or above it, that are missing and not declared lost.
    pub fn missing(&self) -> Vec<IdRange> {
        let open = self.gaps.iter().filter(|gap| !gap.is_declared);
        open.map(|gap| IdRange { first: gap.first, last: gap.last }).collect()
    }

    /// Whether lines of the base are missing; learners hold the state they made, but cannot give it back as lines.
    pub fn lacks_of_base(&self) -> bool {
        let horizon = self.base.horizon.id;
        self.missing().iter().any(|range| range.first <= horizon)
    }

    /// Whether this member is the only voter.
    pub fn is_alone(&self) -> bool {
        let newest = self.configurations.last().unwrap_or(&self.base.configuration);
        let voters = &newest.configuration.voters;
        voters.len() == 1 && voters[0].member_id == self.hard.member_id
    }

    /// Of the next line above `id` that the log holds; None: `id` is at its end.
    pub fn epoch_above(&self, id: EntryId) -> Option<Epoch> {
        let mut next = id.next();
        while let Some(gap) = self.gaps.iter().find(|gap| gap.first <= next && next <= gap.last) {
            next = gap.last.next();
        }
        let last = self.tail.last().map_or(self.state.applied(), |entry| entry.id);
        let run = self.epoch_runs.iter().rev().find(|run| run.id <= next)?;
        (next <= last).then_some(run.epoch)
    }
}

impl RecoveryReport {
    pub fn is_damaged(&self) -> bool {
        self.damage_total > 0
    }

    /// With damage that was put right before the log was opened.
    pub(crate) fn after(self, mended: Vec<Damage>) -> Self {
        let damage_total = mended.len() as u64;
        let before = Self { damage: mended, damage_total, ..self.clone() };
        self.told_with(&before)
    }

    /// The damage that there was before, too, and what is missing now.
    pub(crate) fn told_with(self, before: &Self) -> Self {
        let damage = [&before.damage[..], &self.damage].concat();
        Self {
            salvage: before.salvage,
            damage_total: before.damage_total + self.damage_total,
            damage,
            torn_tail: before.torn_tail.clone(),
            orphans: before.orphans.clone(),
            ..self
        }
    }
}

/// Opens or creates the log. Everything reported is durable when this returns.
pub fn open<S: Storage>(storage: Arc<S>, options: &Options, new_volume: &NewVolume) -> Result<Opened<S>, WalError> {
    let mut manifest = match Manifest::load(&*storage)? {
        Some(manifest) => manifest,
        None => create(&*storage, new_volume)?,
    };
    for dir in [ASIDE_DIR, QUARANTINE_DIR] {
        drop_oldest(&*storage, dir, &BTreeSet::new()).map_err(in_directory)?;
    }
    let kept_before: BTreeSet<_> = storage.list(ASIDE_DIR).map_err(in_directory)?.into_iter().collect();
    let left_over = highest_generation(&*storage).map_err(in_directory)?;
    let orphans = settle_at_start(&*storage, &mut manifest).map_err(in_directory)?;
    manifest.hard.incarnation += 1;
    let generation = manifest.generation.max(left_over);
    let shared = Arc::new(Shared::new(Arc::clone(&storage), FileTable::empty(&manifest), generation, options));
    let (wal, mut recovered) = load(shared, manifest, options)?;
    recovered.report.orphans = orphans;
    let kept = storage.list(ASIDE_DIR).map_err(in_directory)?.into_iter();
    *wal.shared.put_aside() = kept.filter(|name| !kept_before.contains(name)).collect();
    tell(&recovered.report);
    Ok(Opened { reader: LogReader(Arc::clone(&wal.shared)), wal, recovered })
}

/// The same, but damage that is found now is an error, whatever the options say, and has changed nothing.
pub fn open_undamaged<S: Storage>(
    storage: Arc<S>,
    options: &Options,
    new_volume: &NewVolume,
) -> Result<Opened<S>, WalError> {
    let mut opened = open(storage, &Options { on_damage: OnDamage::Refuse, ..options.clone() }, new_volume)?;
    opened.wal.options = options.clone();
    Ok(opened)
}

pub(crate) fn in_directory(error: io::Error) -> WalError {
    WalError::Io { file: "data directory".to_owned(), error }
}

fn create<S: Storage>(storage: &S, new_volume: &NewVolume) -> Result<Manifest, WalError> {
    if let Some(name) = foreign_file(storage).map_err(in_directory)? {
        return Err(WalError::Foreign(name));
    }
    let NewVolume { name, member_id, settings } = new_volume.clone();
    let hard = HardState {
        name,
        member_id,
        cluster_id: None,
        promise: Promise::default(),
        incarnation: 0,
        quarantine: None,
        seen: std::collections::BTreeMap::new(),
        committed: EntryId::ZERO,
    };
    let manifest = Manifest::new(hard, Base { settings, ..Base::default() });
    // A hint that was left behind by a log that is gone would call this one cut off.
    if Hint::load(storage).is_some() {
        storage.remove(HINT_FILE).map_err(in_directory)?;
    }
    storage.create(&manifest.active.name()).map_err(in_directory)?;
    sync_dir(storage, "").map_err(in_directory)?;
    manifest.store(storage).map_err(in_directory)?;
    Ok(manifest)
}

/// One event for everything that a person should know.
fn tell(report: &RecoveryReport) {
    let RecoveryReport { lines, bytes, salvage, damage, damage_total, missing, last_line: _, torn_tail, orphans } =
        report;
    if let Some(first) = damage.first() {
        tracing::warn!(
            places = damage_total, file = first.file, offset = first.offset, reason = first.reason,
            missing = ?missing, kept = ?salvage, "the log is damaged; the bad lines are in {}/", QUARANTINE_DIR
        );
    }
    if let Some(TornTail { file, offset, bytes, saved_as }) = torn_tail {
        tracing::info!(file, offset, bytes, saved_as, "cut the unfinished end of the log");
    }
    tracing::info!(lines, bytes, orphans = ?orphans, "recovered the log");
}

/// Reads and judges what the manifest lists, puts right what must be, and makes the log ready to write.
/// Staged names must be settled.
pub(crate) fn load<S: Storage>(
    shared: Arc<Shared<S>>,
    manifest: Manifest,
    options: &Options,
) -> Result<(Wal<S>, Recovered), WalError> {
    let storage = &*shared.storage;
    let sources = open_sources(storage, &manifest)?;
    let positions = positions(&manifest, Hint::load(storage));
    let found = scan::scan(&manifest, &sources, positions, (options.recovery_threads, options.hash_seed))?;
    if options.on_damage == OnDamage::Refuse && found.damage_total > 0 {
        return Err(WalError::Damaged(describe(&found)));
    }
    let salvage = salvage_of(&manifest, &found);
    let mended = mend::mend(&shared, &manifest, &sources, &found, salvage)?;
    if salvage == Salvage::Everything || found.breach == Some(Breach::Base) {
        // What was applied was applied without knowing of the damage: once more, from what is listed now.
        let report = report_of(&mended.manifest, &found, salvage, mended.torn_tail);
        drop(found);
        let (wal, mut recovered) = load(shared, mended.manifest, options)?;
        recovered.report = report;
        return Ok((wal, recovered));
    }
    ready(shared, mended, &sources, found, salvage, options)
}

fn open_sources<S: Storage>(storage: &S, manifest: &Manifest) -> Result<Vec<Source<S::File>>, WalError> {
    let open = |name: String, kind, seal| {
        let file = storage.open(&name).map(Arc::new);
        let (file, bytes) = match file.and_then(|file| Ok((file.len()?, file))) {
            Ok((bytes, file)) => (Ok(file), bytes),
            Err(error) if is_lack_of_means(&error) => return Err(WalError::Io { file: name, error }),
            Err(e) => (Err(e), 0),
        };
        Ok(Source { file, kind, bytes, seal })
    };
    let sealed = manifest.files.iter().map(|f| open(f.name(), f.kind, Some((f.bytes, f.crc))));
    let active = std::iter::once_with(|| open(manifest.active.name(), FileKind::Log, None));
    sealed.chain(active).collect()
}

/// Whether this member alone is the group, so that what it has is all there is. As far as the manifest knows: the
/// log may hold a newer configuration that was never acknowledged. One that is being refilled goes through past ones.
pub(super) fn is_group_of_one(manifest: &Manifest) -> bool {
    let is_trusted = manifest.hard.cluster_id.is_some() && manifest.hard.quarantine.is_none();
    is_trusted && names_only(&manifest.configuration.configuration, manifest)
}

fn names_only(configuration: &Configuration, manifest: &Manifest) -> bool {
    let voters = &configuration.voters;
    voters.len() == 1 && voters[0].member_id == manifest.hard.member_id
}

fn positions(manifest: &Manifest, hint: Option<Hint>) -> Positions {
    let hint = hint.filter(|hint| hint.lineage == manifest.lineage).unwrap_or_default();
    let committed = manifest.hard.committed.max(hint.committed);
    let known_durable = if mutant::on(Mutant::TakeDamageForTornTail) {
        EntryId::ZERO
    } else {
        hint.durable.max(committed).max(manifest.active.first.prev())
    };
    let applies_all = is_group_of_one(manifest) || mutant::on(Mutant::ApplyPastCommittedAtRestart);
    let apply_to = if applies_all { EntryId(u64::MAX) } else { committed };
    Positions { known_durable, committed, apply_to }
}

fn salvage_of(manifest: &Manifest, found: &Scan<'_>) -> Salvage {
    match found.damage_total {
        0 => Salvage::Undamaged,
        _ if is_group_of_one(manifest) && !found.knows_others => Salvage::Everything,
        _ => Salvage::Prefix,
    }
}

fn describe(found: &Scan<'_>) -> String {
    let first = &found.damage[0];
    let place = first.offset.map(|offset| format!(", offset {offset}")).unwrap_or_default();
    format!("{}{place}: {} ({} places in all)", first.file, first.reason, found.damage_total)
}

fn report_of(manifest: &Manifest, found: &Scan<'_>, salvage: Salvage, torn_tail: Option<TornTail>) -> RecoveryReport {
    RecoveryReport {
        lines: found.lines,
        bytes: found.bytes,
        salvage,
        damage: found.damage.clone(),
        damage_total: found.damage_total,
        missing: undeclared(manifest, &found.missing),
        last_line: found.last_line,
        torn_tail,
        orphans: Vec::new(),
    }
}

fn undeclared(manifest: &Manifest, missing: &[IdRange]) -> Vec<IdRange> {
    let gaps = manifest.gaps.iter().filter(|gap| !gap.is_declared);
    let mut ranges: Vec<_> = gaps.map(|gap| IdRange { first: gap.first, last: gap.last }).collect();
    for range in missing {
        if !ranges.contains(range) {
            ranges.push(*range);
        }
    }
    ranges.sort_by_key(|range| range.first);
    ranges
}

/// The log as it is now listed and open.
fn ready<S: Storage>(
    shared: Arc<Shared<S>>,
    mended: Mended,
    sources: &[Source<S::File>],
    mut found: Scan<'_>,
    salvage: Salvage,
    options: &Options,
) -> Result<(Wal<S>, Recovered), WalError> {
    let Mended { manifest, active, torn_tail } = mended;
    let report = report_of(&manifest, &found, salvage, torn_tail);
    let mut table = FileTable::empty(&manifest);
    for ((file, source), verdict) in manifest.files.iter().zip(sources).zip(&mut found.verdicts) {
        let handle = Arc::clone(source.file.as_ref().expect("a file that is kept was read"));
        let index = std::mem::take(&mut verdict.index);
        table.add(LogFile::sealed(handle, file, index));
    }
    let opened = shared.storage.open(&manifest.active.name()).map_err(in_directory)?;
    let active_file = LogFile::active(Arc::new(opened), &manifest.active, &active);
    table.add(Arc::clone(&active_file));
    let last = found.prefix_last.id;
    let mut wal =
        Wal::start(shared, manifest, table, Position { active: active_file, crc: active.crc, last }, options)?;
    wal.configurations = found.configurations.clone();
    let recovered = Recovered {
        hard: wal.manifest.hard.clone(),
        base: wal.manifest.base.clone(),
        state: found.state,
        epoch_runs: found.epoch_runs,
        configurations: found.configurations,
        tail: found.tail,
        gaps: wal.manifest.gaps.clone(),
        report,
    };
    Ok((wal, recovered))
}
