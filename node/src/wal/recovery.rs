//! Opening a data directory: what is there, what of it can be believed, and what state it makes.

use std::sync::Arc;

use kv_core::contract::{Base, HardState};
use kv_core::entry::{Entry, EntryId, LogPosition};
use kv_core::group::{ConfigurationAt, MemberId, NodeName, Settings};
use kv_core::state_machine::StateMachine;

use super::manifest::ManifestError;
use super::reader::LogReader;
use super::storage::Storage;
use super::{Options, Wal, WalError};

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
    pub report: RecoveryReport,
}

/// What was kept of a damaged log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Salvage {
    #[default]
    Undamaged,
    /// A member of a group: the state is that of the intact prefix; a leader refills the rest.
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
    /// Ids that the log should hold and does not, rising.
    pub missing: Vec<IdRange>,
    /// The last line of the log, when it is intact: what a vote may be judged by. May be above the
    /// intact prefix.
    pub last_line: Option<LogPosition>,
    pub torn_tail: Option<TornTail>,
    /// Files that the manifest does not list, moved to `aside/`.
    pub orphans: Vec<String>,
}

/// Damaged places described one by one; more are only counted.
pub const DAMAGE_MAX: usize = 1000;

impl RecoveryReport {
    pub fn is_damaged(&self) -> bool {
        self.damage_total > 0
    }
}

/// Opens or creates the log. Everything reported is durable when this returns.
pub fn open<S: Storage>(_storage: Arc<S>, _options: &Options, _new_volume: &NewVolume) -> Result<Opened<S>, WalError> {
    Err(WalError::Manifest(ManifestError::Damaged("not yet built".into())))
}
