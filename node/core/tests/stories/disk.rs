//! A disk of the stories' world: what survives a crash, and what recovery makes of it. It keeps all lines
//! for ever, also those below the horizon, so that any two disks can be compared.

use std::collections::{BTreeMap, VecDeque};

use kv_core::contract::{Base, Boot, Failover, HardState, Limits, Lost, Persist, Quarantine, Tuning};
use kv_core::entry::{Body, Control, Entry, EntryId, LogPosition};
use kv_core::group::{ConfigurationAt, MemberId, NodeName};
use kv_core::message::Promise;
use kv_core::state_machine::StateMachine;

use super::{HEARTBEAT_MS, TIMEOUT_MS};

#[derive(Clone)]
pub(super) struct Disk {
    pub(super) hard: HardState,
    pub(super) base: Base,
    pub(super) log: Vec<Entry>,
}

/// A snapshot that waits to be installed.
pub(super) type Staged = (Base, Vec<Entry>);
/// What the disk was given and holds back.
pub(super) type Held = VecDeque<(u64, Persist)>;

impl Disk {
    /// The log starts at id 1, and has no gaps.
    pub(super) fn line(&self, id: EntryId) -> Option<&Entry> {
        self.log.get(usize::try_from(id.0.checked_sub(1)?).ok()?)
    }

    /// As recovery leaves it when what compaction has made is damaged: no state, and so no line either.
    pub(super) fn without_base(&self) -> Self {
        let quarantine = Quarantine { reason: "damaged: the base".into(), until: None, may_vote: false };
        let hard = HardState { quarantine: Some(quarantine), committed: EntryId::ZERO, ..self.hard.clone() };
        let base = Base { horizon: LogPosition::default(), refused: Vec::new(), ..self.base.clone() };
        Self { hard, base, log: Vec::new() }
    }

    /// True: a snapshot was installed.
    pub(super) fn write(&mut self, op: Persist, staged: &mut Option<Staged>) -> bool {
        match op {
            Persist::Append { entries, .. } => {
                for entry in entries {
                    assert_eq!(entry.id.0, self.log.len() as u64 + 1, "a log has no gaps");
                    self.log.push(entry);
                }
            }
            Persist::Truncate { keep } => self.log.retain(|entry| entry.id <= keep),
            Persist::State(hard) => self.hard = *hard,
            Persist::Found { state, base } => (self.hard, self.base) = (*state, *base),
            Persist::Recover { state, configuration } => {
                self.hard = *state;
                self.base.configuration = configuration;
            }
            Persist::Install { state, .. } => {
                self.hard = *state;
                (self.base, self.log) = staged.take().expect("a snapshot was staged");
                return true;
            }
        }
        false
    }
}

/// A volume that nothing was written to.
pub(super) fn empty_disk(name: &str, member_id: MemberId) -> Disk {
    Disk { hard: empty_state(name, member_id), base: Base::default(), log: Vec::new() }
}

fn empty_state(name: &str, member_id: MemberId) -> HardState {
    HardState {
        name: NodeName::new(name).expect("a legal name"),
        member_id,
        cluster_id: None,
        promise: Promise::default(),
        incarnation: 0,
        quarantine: None::<Quarantine>,
        seen: BTreeMap::new(),
        committed: EntryId::ZERO,
    }
}

pub(super) fn position_of(disk: &Disk, id: EntryId) -> LogPosition {
    disk.log.iter().find(|entry| entry.id == id).map_or(disk.base.horizon, Entry::position)
}

/// The base with the configuration in force at `id`.
pub(super) fn base_at(disk: &Disk, id: EntryId) -> Base {
    let mut base = disk.base.clone();
    for entry in disk.log.iter().filter(|entry| entry.id <= id && entry.id > disk.base.configuration.id) {
        if let Body::Control(Control::Config(configuration)) = &entry.body {
            base.configuration = ConfigurationAt { id: entry.id, configuration: configuration.clone() };
        }
    }
    base
}

/// What recovery would find. The disk keeps all lines, so state is replayed from the first.
pub(super) fn boot(name: &str, disk: &Disk, failover: Failover, start_id: u64) -> Boot {
    let mut state = StateMachine::new(&Base { horizon: LogPosition::default(), ..disk.base.clone() }, 7);
    let voters = base_at(disk, EntryId(u64::MAX)).configuration.configuration.voters;
    let only = voters.len() == 1 && voters[0].member_id == disk.hard.member_id;
    let known = if only { EntryId(u64::MAX) } else { disk.hard.committed.max(disk.base.horizon.id) };
    let (applied, tail): (Vec<Entry>, Vec<Entry>) = disk.log.iter().cloned().partition(|entry| entry.id <= known);
    applied.iter().for_each(|entry| drop(state.apply(entry)));
    let above = disk.log.iter().filter(|entry| entry.id > disk.base.horizon.id);
    let mut epoch_runs: Vec<LogPosition> = Vec::new();
    for entry in above.clone() {
        if epoch_runs.last().is_none_or(|run| run.epoch != entry.epoch) {
            epoch_runs.push(entry.position());
        }
    }
    let config = |entry: &Entry| match &entry.body {
        Body::Control(Control::Config(c)) => Some(ConfigurationAt { id: entry.id, configuration: c.clone() }),
        _ => None,
    };
    Boot {
        hard: disk.hard.clone(),
        base: disk.base.clone(),
        start_id,
        url: format!("http://{name}:8000"),
        peer_url: format!("{name}:9000"),
        tuning: Tuning { heartbeat_interval_ms: HEARTBEAT_MS, heartbeat_timeout_ms: TIMEOUT_MS, failover },
        seed: disk.hard.member_id.0,
        state,
        epoch_runs,
        configurations: above.filter_map(config).collect::<Vec<_>>(),
        tail,
        lost: Lost::default(),
        lead_at_start: false,
        limits: Limits::default(),
    }
}
